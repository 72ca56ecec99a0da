"""The comparison in a real browser: the page in a file, and the application's, with 3 models and 146 questions."""

import json
from pathlib import Path

import comparison_world
import pytest
from annotation_world import served
from browser import Problems, chromium, expect, page, press, sign_in, tab_to  # noqa: F401  (two are fixtures)

from rlhfv_jax.annotation import diff
from rlhfv_jax.annotation.ballots import Ballots
from rlhfv_jax.comparing import page as pages
from rlhfv_jax.comparing import sets, thumbnails, votes

NAMES = comparison_world.NAMES


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    files = comparison_world.write(tmp_path_factory.mktemp("world"))
    return sets.read([files[name] for name in NAMES], files["questions"], NAMES, [files["spans"]])


@pytest.fixture(scope="module")
def file(comparison, tmp_path_factory):
    return written(comparison, tmp_path_factory.mktemp("page"))


def written(comparison, folder: Path) -> Path:
    images = thumbnails.embed([item.question for item in comparison.items], 20_000_000)
    path = folder / "compare.html"
    path.write_text(pages.page(comparison, images, "Comparison"), encoding="utf-8")
    return path


def first(comparison, count: int) -> sets.Comparison:
    return sets.Comparison(NAMES, comparison.items[:count], comparison.types, comparison.counts)


def opened(page, file: Path) -> None:  # noqa: F811
    page.goto(file.as_uri())
    expect(page.locator("article")).to_have_count(len(json_of(page)["items"]))


def json_of(page) -> dict:  # noqa: F811
    return json.loads(page.locator("#data").text_content())


SHOWN = """articles => articles.map(article => [...article.querySelectorAll(".answer")].map(answer => ({
  gone: [...answer.querySelectorAll("del")].map(e => e.textContent),
  put: [...answer.querySelectorAll("ins")].map(e => e.textContent).join(""),
  marks: [...answer.querySelectorAll("mark")].map(e => [e.querySelector(".badge")?.firstChild.textContent,
    [...e.childNodes].filter(n => !n.classList?.contains("badge")).map(n => n.textContent).join("")]),
  text: answer.querySelector("p").textContent})))"""


def test_the_page_in_a_file_shows_what_python_computes_and_asks_nothing_of_anybody(page, comparison, file):  # noqa: F811
    opened(page, file)
    shown = page.locator("article").evaluate_all(SHOWN)
    letters, changes = {t.key: t.letter for t in comparison.types}, 0
    for item, answers in zip(comparison.items, shown, strict=True):
        first = item.answers[0]
        for k, (answer, found) in enumerate(zip(item.answers, answers, strict=True)):
            if answer is None:
                assert found["text"] == "No answer."
                continue
            expected = diff.segments(first.text, answer.text) if k else []
            changes += len(expected)
            assert found["gone"] == [first.text[c.src0 : c.src1] for c in expected if c.src0 < c.src1]
            assert found["put"] == "".join(answer.text[c.dst0 : c.dst1] for c in expected)
            assert found["marks"] == [[letters[s.type], answer.text[s.start : s.end]] for s in answer.spans or ()]
    assert changes > 300
    assert [url for url in page.problems.asked if not url.startswith("data:")] == [file.as_uri()]
    hostile = page.locator("article").nth(3)
    expect(hostile.locator(".question")).to_have_text(comparison_world.HOSTILE, use_inner_text=False)
    assert hostile.locator("script, .answer img").count() == 0  # and no dialog opened: `page` fails on one


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(1280, 720), (390, 844)])
def test_questions_are_searched_filtered_and_walked_by_the_keyboard(page, comparison, file, width, height):  # noqa: F811
    page.set_viewport_size({"width": width, "height": height})
    opened(page, file)
    articles, count = page.locator("article"), page.locator(".counts-line")
    expect(count).to_have_text("146 questions · 3 models · DPO lacks 1 · DDPO lacks 1 (1 failed)")
    press(page, "j", "j")
    expect(articles.nth(1)).to_be_focused()
    expect(articles.nth(1)).to_be_in_viewport()
    press(page, "3")
    expect(articles.nth(1).locator(".reference h3")).to_contain_text("DDPO")
    press(page, "m")
    expect(page.locator("del")).to_have_count(0)
    press(page, "0")
    expect(page.locator("ins")).to_have_count(0)
    press(page, "/")
    page.keyboard.type("q14 ")
    wanted = [i for i in comparison.items if "q14" in i.id]
    expect(articles).to_have_count(len(wanted))
    expect(count).to_contain_text(f"{len(wanted)} of 146 questions")
    press(page, "Escape", "j", "z")
    expect(page.get_by_role("dialog").locator("img")).to_be_visible()
    press(page, "Escape")
    page.get_by_label("Search").fill("")
    page.get_by_label("Show").select_option("lacking")
    expect(articles).to_have_count(2)
    page.get_by_label("Show").select_option("all")
    page.get_by_label("Marked as").select_option("numbers")
    marked = [i for i in comparison.items if any(s.type == "numbers" for a in i.answers if a for s in a.spans or ())]
    expect(articles).to_have_count(len(marked))
    press(page, "?")
    expect(page.get_by_role("dialog")).to_contain_text("next, previous question")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_a_blind_vote_in_the_file_is_kept_and_downloaded(page, comparison, file, tmp_path):  # noqa: F811
    opened(page, file)
    page.get_by_role("button", name="Vote blindly").click()
    articles = page.locator("article")
    assert not any(name in articles.nth(0).inner_text() for name in NAMES) and page.locator("mark").count() == 0
    press(page, "j", "c")
    expect(articles.nth(0).locator(".chosen .model")).to_be_visible()
    name = articles.nth(0).locator(".chosen .model").inner_text()
    press(page, "j", "t", "n")
    expect(articles.nth(2)).to_be_focused()
    page.reload()
    page.get_by_role("button", name="Vote blindly").click()
    expect(articles.nth(0).locator(".chosen .model")).to_have_text(name)
    expect(articles.nth(0).locator("h3 > span:first-child")).to_have_text(["A", "B", "C"])
    with page.expect_download() as download:
        page.get_by_role("button", name="Download 2 votes").click()
    download.value.save_as(tmp_path / "votes.jsonl")
    cast = votes.read([tmp_path / "votes.jsonl"])
    assert [(v.question_id, v.choice) for v in cast] == [("q0", name), ("q1", "tie")]
    assert cast[0].comparison == comparison.digest and cast[0].shown[2] == name


@pytest.mark.slow
def test_a_blind_vote_in_the_application_by_the_keyboard(page, comparison, tmp_path):  # noqa: F811
    with served(tmp_path, ballots=lambda store: Ballots(store, first(comparison, 5), blind=True)) as world:
        sign_in(page, world, "ada")
        tab_to(page, "Vote")
        press(page, "Enter")
        articles = page.locator("article")
        expect(articles).to_have_count(5)
        expect(articles.nth(0).locator("img")).to_have_js_property("complete", True)
        assert not any(name in page.content() for name in NAMES)
        for place in range(5):
            press(page, "j", "b")
            expect(articles.nth(place).locator(".chosen h3")).to_contain_text("your vote")
        expect(page.get_by_role("region", name="Results").locator("tbody tr")).to_have_count(3)
        rows = world.store.read.execute("SELECT choice, shown_json FROM vote").fetchall()
        assert len(rows) == 5 and all(choice == json.loads(shown)[1] for choice, shown in rows)
        assert all(url.startswith(world.url) for url in page.problems.asked)


@pytest.mark.slow
def test_axe_finds_no_serious_violation_in_a_comparison_light_or_dark(page, comparison, tmp_path):  # noqa: F811
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    opened(page, written(first(comparison, 3), tmp_path))
    press(page, "j")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for blind in (False, True):
            found = axe.Axe().run(page).response["violations"]
            bad = [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")]
            assert bad == [], (scheme, blind)
            page.get_by_role("button", name="Vote blindly" if not blind else "Show the models").click()
