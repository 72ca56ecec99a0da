"""Each screen of the annotation app in a real browser, by the keyboard alone, under its own content policy."""

import json
import re

import pytest
from annotation_world import CORRECTED, RESPONSE, add, served
from browser import TimeoutError, chromium, expect, page, press, sign_in, tab_to  # noqa: F401  (two are fixtures)

from rlhfv_jax.annotation import exports, project
from rlhfv_jax.annotation.collected import finished
from rlhfv_jax.data import sources


@pytest.fixture
def world(tmp_path):
    """Three answers to correct and two to label, served."""
    with served(tmp_path) as world:
        add(world.store, tmp_path, "correction", [{"response": RESPONSE, "model": "m"}] * 3)
        add(world.store, tmp_path, "mhumaneval", [{"response": RESPONSE, "benchmark": "mmhal", "model": "m"}] * 2)
        yield world


def correct(page) -> None:  # noqa: F811
    """From home to the corrected, typed and submitted first answer."""
    press(page, "Enter")
    editor = page.get_by_label("Answer, corrected in place")
    expect(editor).to_have_value(RESPONSE)
    press(page, "Enter")
    expect(editor).to_be_focused()
    press(page, "Home")
    press(page, *["ArrowRight"] * 2, *["Delete"] * 3)
    page.keyboard.type("blue")
    press(page, *["ArrowRight"] * len(" bus stands on the "), *["Delete"] * 4)
    page.keyboard.type("right")
    press(page, "Alt+ArrowLeft", "Alt+4")  # the first segment is the current one; its type, while writing
    press(page, "Escape", "2")
    expect(page.locator(".tally")).to_have_text("2 segments")
    expect(page.locator(".state")).to_contain_text("Saved", timeout=10_000)


def submit(page, confirmed: str = "Control+Enter") -> None:  # noqa: F811
    """Submits the item; one done in less than three seconds, or much longer than before, is asked about once."""
    before = page.url
    press(page, confirmed)
    page.wait_for_function("before => location.href !== before || document.querySelector('.problems p')", arg=before)
    if page.url == before:
        expect(page.locator(".problems")).to_contain_text(re.compile("less than three seconds|much longer"))
        press(page, confirmed)
    page.wait_for_url(lambda url: url != before)


def test_an_answer_is_corrected_by_the_keyboard_and_exported_as_it_was_typed(page, world, tmp_path):  # noqa: F811
    sign_in(page, world, "ada")
    correct(page)
    submit(page)
    expect(page.get_by_label("Answer, corrected in place")).to_have_value(RESPONSE)  # the next one
    exports.export(world.store, 1, project.new("correction"), "parquet", tmp_path / "pairs.parquet")
    (record,) = sources.read(tmp_path / "pairs.parquet")
    assert (record.chosen, record.rejected) == (CORRECTED, RESPONSE)
    typed = [
        [(text[s.start : s.end], s.type) for s in side]
        for side, text in zip(record.segments, (CORRECTED, RESPONSE), strict=True)
    ]
    assert typed == [
        [("blue", "attributes"), ("right", "positions")],
        [("red", "attributes"), ("left", "positions")],
    ]
    assert all(url.startswith(world.url) for url in page.problems.asked)


def test_an_answer_is_labeled_by_the_keyboard(page, world):  # noqa: F811
    sign_in(page, world, "ada")
    tab_to(page, "Start")
    press(page, "Enter")
    expect(page.get_by_role("listbox")).to_be_visible()
    press(page, "ArrowRight", "ArrowRight", "Shift+ArrowRight", "4")  # "red bus", others
    press(page, *["ArrowRight"] * 4, "Enter", "2")  # the word, then its type
    expect(page.locator(".tally")).to_have_text("2 segments")
    submit(page)
    (row,) = finished(world.store.read, 2)
    assert [(s.src_text, s.type) for s in row.segments] == [("red bus", "others"), ("left", "positions")]


@pytest.mark.slow
def test_segments_are_divided_joined_reverted_and_undone_by_the_keyboard(page, tmp_path):  # noqa: F811
    with served(tmp_path) as world:
        add(world.store, tmp_path, "correction", [{"response": "The cat sits on two mats."}])
        sign_in(page, world, "ada")
        press(page, "Enter")
        editor, rows = page.get_by_label("Answer, corrected in place"), page.locator(".row")
        expect(editor).to_be_visible()
        press(page, "Enter", "Control+a")
        page.keyboard.type("The cat sits under three mats.")
        press(page, "Escape")
        expect(rows).to_have_count(1)
        press(page, "s")
        expect(page.get_by_role("dialog")).to_be_visible()
        press(page, "Enter")
        expect(rows).to_have_count(2)
        press(page, "2", "3")
        expect(rows.nth(0)).to_contain_text("on → under")
        expect(rows.nth(1)).to_contain_text("Numbers")
        press(page, "k", "m")
        expect(rows).to_have_count(1)
        press(page, "Control+z")
        expect(rows).to_have_count(2)
        press(page, "j", "u")
        expect(editor).to_have_value("The cat sits under two mats.")
        press(page, "Control+z", "Control+Shift+z")
        expect(editor).to_have_value("The cat sits under two mats.")
        press(page, "u")
        expect(editor).to_have_value("The cat sits on two mats.")
        press(page, "n")
        expect(page.locator(".problems")).to_contain_text("three seconds")


@pytest.mark.slow
def test_no_hallucination_asks_before_it_takes_changes_back(page, world):  # noqa: F811
    sign_in(page, world, "ada")
    correct(page)
    before = page.url
    press(page, "n")
    expect(page.locator(".problems")).to_contain_text("take back every change")
    press(page, "n")
    page.wait_for_function(
        "b => location.href !== b || /less than/.test(document.querySelector('.problems').innerText)", arg=before
    )
    if page.url == before:
        press(page, "n")
    page.wait_for_url(lambda url: url != before)
    (row,) = finished(world.store.read, 1)
    assert (row.verdict, row.corrected, row.segments) == ("clean", RESPONSE, ())


@pytest.mark.slow
def test_an_item_is_skipped_with_a_reason_by_the_keyboard(page, world):  # noqa: F811
    sign_in(page, world, "ada")
    press(page, "Enter")
    expect(page.get_by_label("Answer, corrected in place")).to_be_visible()
    press(page, "x")
    expect(page.get_by_role("dialog")).to_be_visible()
    press(page, *["ArrowDown"] * 4)
    tab_to(page, "The reason")
    page.keyboard.type("too blurred")
    press(page, "Enter")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.wait_for_url("**/work/2")
    (row,) = finished(world.store.read, 1)
    assert (row.verdict, row.skip_reason) == ("skipped", "other: too blurred")
    press(page, "x")
    expect(page.get_by_role("dialog")).to_be_visible()
    press(page, "ArrowDown", "Enter")
    page.wait_for_url("**/work/3")
    for item, words in ((1, "too blurred"), (2, "The prompt is unclear")):
        page.goto(f"{world.url}/#/p/1/mine/{item}")
        expect(page.locator(".timeline")).to_contain_text(f"; {words}")


@pytest.mark.slow
def test_history_reopens_and_restores_by_the_keyboard(page, world):  # noqa: F811
    sign_in(page, world, "ada")
    correct(page)
    submit(page)
    tab_to(page, "History")
    press(page, "Enter")
    expect(page.get_by_role("heading", name="Your history")).to_be_visible()
    expect(page.locator("tbody tr")).to_have_count(1)
    tab_to(page, "0", "A")
    press(page, "Enter")
    expect(page.get_by_role("heading", name="Item 0")).to_be_visible()
    revisions = page.locator(".timeline li")
    first = revisions.count()
    assert first >= 2
    tab_to(page, "Restore revision 1")
    press(page, "Enter")
    expect(page.get_by_label("Answer, corrected in place")).to_be_visible()
    history = page.request.get(f"{world.url}/api/items/1/history").json()
    assert [event["kind"] for event in history[:3]] == ["draft", "reopened", "submitted"]
    assert history[0]["corrected"] == history[-1]["corrected"]  # revision 1, again


@pytest.mark.slow
def test_statistics_show_the_papers_row_beside_ones_own(page, world):  # noqa: F811
    sign_in(page, world, "ada")
    correct(page)
    submit(page)
    tab_to(page, "Statistics")
    press(page, "Enter")
    table = page.get_by_role("region", name="Beside the paper")
    expect(table).to_contain_text("Words per response, corrected10.0 [10.0, 10.0]64.4")
    expect(table).to_contain_text("Segments per response2.00 [2.00, 2.00]2.65")
    expect(page.get_by_role("region", name="Hallucination types")).to_contain_text("Objects00.0 % [0.0, 0.0]41.2 %")


@pytest.mark.slow
def test_an_administrator_imports_adds_people_and_exports_by_the_keyboard(page, world, tmp_path):  # noqa: F811
    sign_in(page, world, "ada")
    correct(page)
    submit(page)
    tab_to(page, "Sign out")
    press(page, "Enter")
    expect(page.get_by_label("Your token")).to_be_focused()
    sign_in(page, world, "eve")
    press(page, "Enter")
    expect(page.get_by_label("Answer, corrected in place")).to_be_visible()
    tab_to(page, "Administration")
    press(page, "Enter")
    expect(page.get_by_role("heading", name="Administration")).to_be_visible()

    bad = tmp_path / "more.jsonl"
    bad.write_text(json.dumps({"id": 7, "prompt": "p", "response": " "}) + "\n")
    tab_to(page, "File")
    choose(page, bad)
    tab_to(page, "Check")
    press(page, "Enter")
    expect(page.get_by_text("1 not usable")).to_be_visible()
    expect(page.get_by_role("button", name="Import", exact=True)).to_be_disabled()

    tab_to(page, "Name")
    page.keyboard.type("<b>Barbara</b>")
    press(page, "Enter")
    token = page.locator(".token code")
    expect(token).to_contain_text("/#t=")
    expect(page.get_by_role("row", name="<b>Barbara</b>")).to_be_visible()

    tab_to(page, "RLHF-V parquet")
    press(page, "Enter")
    link = page.get_by_role("link", name="pairs.parquet")
    expect(link).to_be_visible()
    tab_to(page, "pairs.parquet")
    with page.expect_download() as download:
        press(page, "Enter")
    (record,) = sources.read(_moved(download.value.path(), tmp_path / "got.parquet"))
    assert record.chosen == CORRECTED
    tab_to(page, "Make a backup")
    press(page, "Enter")
    expect(page.get_by_text("Written: backups/")).to_be_visible()

    link_of_barbara = token.inner_text()
    page.goto("about:blank")
    page.context.clear_cookies()
    page.goto(link_of_barbara)
    expect(page.get_by_role("heading", name="Hello, <b>Barbara</b>")).to_be_visible()
    assert "#t=" not in page.url


def choose(page, path) -> None:  # noqa: F811
    """Opens the chooser of the file field that has the focus; a busy browser may miss the first press."""
    for wait in (4_000, 15_000):
        try:
            with page.expect_file_chooser(timeout=wait) as chooser:
                press(page, "Space")
            return chooser.value.set_files(path)
        except TimeoutError:
            continue
    raise AssertionError("no file chooser opens")


def _moved(source, target):
    target.write_bytes(source.read_bytes())
    return target


@pytest.mark.slow
def test_axe_finds_no_serious_violation_on_any_screen_light_or_dark(page, world):  # noqa: F811
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = []

    def check(name: str) -> None:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            for one in axe.Axe().run(page).response["violations"]:
                if one["impact"] in ("serious", "critical"):
                    found.append((name, scheme, one["id"], [node["html"][:160] for node in one["nodes"]][:3]))

    page.goto(world.url)
    expect(page.get_by_label("Your token")).to_be_visible()
    check("sign-in")
    sign_in(page, world, "ada")
    check("home")
    correct(page)
    check("correct")
    for key in ("?", "g", "x", "s"):
        press(page, key)
        expect(page.get_by_role("dialog")).to_be_visible()
        check(f"dialog {key}")
        press(page, "Escape")
    submit(page)
    page.goto(f"{world.url}/#/p/2/work")
    expect(page.get_by_role("listbox")).to_be_visible()
    press(page, "ArrowRight", "ArrowRight", "4", *["ArrowRight"] * 5, "Shift+ArrowRight")
    check("label")
    for screen, heading in (("mine", "Your history"), ("mine/1", "Item 0"), ("stats", "Statistics")):
        page.goto(f"{world.url}/#/p/1/{screen}")
        expect(page.get_by_role("heading", name=heading)).to_be_visible()
        page.wait_for_load_state("networkidle")
        check(screen)
    page.context.clear_cookies()
    page.reload()
    sign_in(page, world, "eve")
    page.goto(f"{world.url}/#/p/1/admin")
    expect(page.get_by_role("row", name="ada annotator")).to_be_visible()
    check("administration")
    assert found == []


@pytest.mark.slow
def test_the_first_page_is_under_60_kilobytes_and_nothing_leaves_the_machine(page, world):  # noqa: F811
    sizes = {}
    page.on("response", lambda r: sizes.__setitem__(r.url, int(r.headers.get("content-length", 0))))
    page.goto(world.url)
    expect(page.get_by_label("Your token")).to_be_visible()
    plain = {}
    for url in sizes:
        plain[url] = len(page.request.get(url, headers={"accept-encoding": "identity"}).body())
    assert sum(plain.values()) < 60_000, plain  # as files; compressed they are fewer still
    assert 0 < sum(sizes.values()) < sum(plain.values())
    sign_in(page, world, "ada")
    correct(page)
    submit(page)
    for screen in ("mine", "stats"):
        page.goto(f"{world.url}/#/p/1/{screen}")
        page.wait_for_load_state("networkidle")
    assert {url.split("/")[2] for url in page.problems.asked} == {world.url.split("/")[2]}


@pytest.mark.slow
def test_scripts_in_prompts_answers_and_names_stay_text(page, tmp_path):  # noqa: F811
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script> javascript:alert(3) <svg onload=alert(4)>"
    with served(tmp_path) as world:
        add(world.store, tmp_path, "correction", [{"response": evil, "prompt": evil, "model": evil, "id": evil}])
        sign_in(page, world, "ada")
        press(page, "Enter")
        editor = page.get_by_label("Answer, corrected in place")
        expect(editor).to_have_value(evil)
        press(page, "Enter", "End")
        page.keyboard.type(evil)
        press(page, "Escape", "1")
        expect(page.locator(".state")).to_contain_text("Saved")
        submit(page)
        for screen in ("mine", "mine/1", "stats"):
            page.goto(f"{world.url}/#/p/1/{screen}")
            expect(page.get_by_text("onerror=alert(1)").first).to_be_visible()
        assert page.locator("img[src=x], #app script, #app svg").count() == 0
    assert page.problems == []  # no dialog opened, no script ran


@pytest.mark.slow
def test_a_tablet_and_a_small_screen_show_everything_without_scrolling_sideways(page, world):  # noqa: F811
    sign_in(page, world, "ada")
    correct(page)
    for width, height in ((1280, 720), (820, 1180), (1180, 820)):
        page.set_viewport_size({"width": width, "height": height})
        for name in ("Submit", "No hallucination", "Skip", "Objects", "Zoom in"):
            expect(page.get_by_role("button", name=name).first).to_be_in_viewport(ratio=1)
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    page.locator(".frame").hover()
    page.mouse.wheel(0, -400)
    expect(page.locator(".zoom")).not_to_have_text("100 %")
