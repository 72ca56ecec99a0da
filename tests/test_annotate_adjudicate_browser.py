"""Two annotators differ in a real browser, a reviewer decides by the keyboard alone, and the export is the decision."""

import dataclasses
import json
import re

import pytest
from annotation_world import RESPONSE, add, served
from browser import VIEW, Problems, chromium, expect, page, press, sign_in, tab_to  # noqa: F401  (two are fixtures)
from starlette.testclient import TestClient
from test_annotate_browser import correct, submit
from test_annotation_adjudication import given, work

from rlhfv_jax.annotation import app, exports, people, project, serving
from rlhfv_jax.annotation.collected import outcomes
from rlhfv_jax.data import sources


@pytest.fixture
def world(tmp_path):
    """Two answers that two people correct, and one that two people label."""
    with served(tmp_path) as world:
        both = {kind: dataclasses.replace(project.new(kind), overlap=1.0) for kind in project.KINDS}
        add(world.store, tmp_path, "correction", [{"response": RESPONSE, "model": "m"}] * 2, both["correction"])
        add(world.store, tmp_path, "mhumaneval", [{"response": RESPONSE, "model": "m"}], both["mhumaneval"])
        world.tokens["rita"] = people.add(world.store, "rita", "reviewer")
        yield world


def green(page) -> None:  # noqa: F811
    """The second annotator's view of the first answer: one other word in its first place, of another type."""
    press(page, "Enter")
    editor = page.get_by_label("Answer, corrected in place")
    expect(editor).to_have_value(RESPONSE)  # not the first annotator's text
    press(page, "Enter", "Home", *["ArrowRight"] * 2, *["Delete"] * 3)
    page.keyboard.type("green")
    press(page, "Alt+1", "Escape")
    expect(page.locator(".tally")).to_have_text("1 segment")
    expect(page.locator(".state")).to_contain_text("Saved", timeout=10_000)


def test_two_annotators_differ_and_a_reviewer_decides_by_keys(page, chromium, world, tmp_path):  # noqa: F811
    for name, does in (("ada", correct), ("bob", green)):
        context = chromium.new_context(viewport=VIEW, locale="en-US")
        own = context.new_page()
        problems = Problems(own)
        sign_in(own, world, name)
        expect(own.get_by_role("link", name="Statistics").first).to_be_visible()
        does(own)
        submit(own)
        expect(own.get_by_role("link", name="Adjudicate")).to_have_count(0)
        expect(own.get_by_label("Answer, corrected in place")).to_have_value(RESPONSE)
        submit(own, "n")
        context.close()
        assert problems == []

    sign_in(page, world, "rita")
    page.goto(f"{world.url}/#/p/1/adjudicate")
    first = page.get_by_role("link", name="Decide the first")
    expect(first).to_be_focused()
    press(page, "Enter")
    rows = page.locator(".places tbody tr")
    expect(rows).to_have_count(2)
    sides = page.locator(".side")
    a = "a" if "blue" in sides.nth(0).inner_text() else "b"  # the order tells no names
    b = {"a": "b", "b": "a"}[a]
    editor = page.get_by_label("Result")
    press(page, b)
    expect(editor).to_have_value(RESPONSE.replace("red", "green"))
    press(page, "k", a, a)
    expect(editor).to_have_value("A blue bus stands on the right of two men.")
    press(page, "o")
    expect(editor).to_have_value("A blue bus stands on the left of two men.")
    press(page, "Enter")
    expect(editor).to_be_focused()
    press(page, "End", "ArrowLeft", *["Backspace"] * 3)
    page.keyboard.type("women")
    press(page, "Escape", "1")
    expect(page.locator(".tally")).to_have_text("2 segments")
    press(page, "r")
    page.keyboard.type("Blue, and women.")
    press(page, "Escape", "Control+Enter")
    expect(page.locator("main")).to_contain_text("Nothing is waiting")

    exports.export(world.store, 1, project.new("correction"), "parquet", tmp_path / "pairs.parquet")
    (record,) = sources.read(tmp_path / "pairs.parquet")
    assert record.chosen == "A blue bus stands on the left of two women."
    assert [(record.chosen[s.start : s.end], s.type) for s in record.segments[0]] == [
        ("blue", "attributes"),
        ("women", "objects"),
    ]
    lines = [json.loads(line) for line in (tmp_path / "pairs.annotations.jsonl").read_text().splitlines()]
    assert [line["corrected"] for line in lines if line["counts"]] == [record.chosen, RESPONSE]
    assert [line["reason"] for line in lines if line["origin"] == "adjudication"] == ["Blue, and women."]
    page.goto(f"{world.url}/#/p/1/agreement")
    expect(page.get_by_role("heading", name="Measures")).to_be_visible()
    expect(page.locator("main")).to_contain_text("undefined (no variation)")
    expect(page.get_by_role("link", name="Administration")).to_have_count(0)


def differ(world) -> None:
    """Both people's work on the first item of each project, through the interface without a browser."""
    application = app.build(serving.Server(world.store), hosts=["testserver"])
    for name, text, kind in (("ada", RESPONSE.replace("red", "blue"), "others"), ("bob", RESPONSE, "objects")):
        client = TestClient(application, headers={"X-Requested-With": "rlhfv"})
        client.post("/api/session", json={"token": world.tokens[name]})
        assert given(client) == 1 and work(client, 1, text, ["attributes"]).status_code == 200
        item = client.post("/api/projects/2/next").json()["item"]
        segments = [{"src0": 2, "src1": 5, "dst0": 2, "dst1": 5, "type": kind}]
        assert work(client, item, verdict="corrected", segments=segments).status_code == 200


@pytest.mark.slow
def test_labels_are_decided_by_keys_and_axe_finds_nothing_serious(page, world):  # noqa: F811
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    differ(world)
    sign_in(page, world, "rita")
    found = []
    for path, ready in (
        ("1/adjudicate", "Decide the first"),
        ("1/adjudicate/1", "undecided"),
        ("1/agreement", "Two by two"),
        ("1/stats", "Gold F1:"),
        ("2/adjudicate/3", "undecided"),
    ):
        page.goto(f"{world.url}/#/p/{path}")
        expect(page.locator("main")).to_contain_text(ready)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            for one in axe.Axe().run(page).response["violations"]:
                if one["impact"] in ("serious", "critical"):
                    found.append((path, scheme, one["id"], [node["html"][:160] for node in one["nodes"]][:3]))
    assert found == []
    press(page, "a")
    expect(page.locator(".word.marked")).to_have_text(re.compile("red"))
    press(page, *["ArrowRight"] * 3, "Shift+ArrowLeft", "1")  # "bus" and "red" overlap what was taken
    expect(page.locator(".problems")).to_contain_text("overlap")
    press(page, "Escape", *["ArrowRight"] * 5, "2")
    expect(page.locator(".tally")).to_have_text("2 segments")
    press(page, "Control+Enter")
    expect(page.locator("main")).to_contain_text("Nothing is waiting")
    (one,) = outcomes(world.store.read, 2)
    assert one.state == "adjudicated" and len(one.counts.segments) == 2 and one.counts.segments[0].src_text == "red"
