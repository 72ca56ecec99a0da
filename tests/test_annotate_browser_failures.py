"""What an annotator sees when something fails: the server, the tab, a second tab, the disk, the image, the session."""

import contextlib
import shutil
import time
import uuid

import pytest
from annotation_world import CORRECTED, RESPONSE, add, served
from browser import chromium, expect, page, press, sign_in  # noqa: F401  (two are fixtures)

from rlhfv_jax.annotation import saving
from rlhfv_jax.annotation.store import Busy

pytestmark = pytest.mark.slow
SAVES = "**/api/items/*/annotation"


@pytest.fixture
def world(tmp_path):
    with served(tmp_path) as world:
        add(world.store, tmp_path, "correction", [{"response": RESPONSE}] * 2)
        yield world


@pytest.fixture
def shut(monkeypatch):
    """While it is entered no save succeeds."""

    def refuse(*_):
        raise Busy("shut")

    @contextlib.contextmanager
    def closed():
        with monkeypatch.context() as patch:
            patch.setattr(saving, "save", refuse)
            yield

    return closed


def begin(page, world):  # noqa: F811
    """The first item, its text field with the focus."""
    sign_in(page, world, "ada")
    press(page, "Enter")
    expect(editor(page)).to_have_value(RESPONSE)
    press(page, "Enter", "Control+a")


def editor(page):  # noqa: F811
    return page.get_by_label("Answer, corrected in place")


def state(page):  # noqa: F811
    return page.locator(".state")


def put(page, world, rev: int, text: str):  # noqa: F811
    """Another tab's save."""
    body = {"base_rev": rev, "op_id": uuid.uuid4().hex, "state": "draft", "corrected": text}
    reply = page.request.put(f"{world.url}/api/items/1/annotation", data=body, headers={"X-Requested-With": "rlhfv"})
    assert reply.status == 200, reply.text()


def test_without_a_server_one_types_on_and_it_is_saved_when_it_is_back(page, tmp_path):  # noqa: F811
    with served(tmp_path) as world:
        add(world.store, tmp_path, "correction", [{"response": RESPONSE}])
        begin(page, world)
    page.keyboard.type(CORRECTED)
    expect(page.get_by_role("alert").first).to_contain_text("cannot be reached")
    expect(state(page)).to_have_text("Offline")
    expect(page.get_by_role("button", name="Submit")).to_be_disabled()
    with served(tmp_path, port=int(world.url.rsplit(":", 1)[1])) as again:
        expect(state(page)).to_contain_text("Saved", timeout=20_000)
        row = again.store.read.execute("SELECT corrected, rev FROM annotation").fetchone()
        assert row["corrected"] == CORRECTED
        assert row["rev"] == again.store.read.execute("SELECT COUNT(*) FROM event").fetchone()[0]


def test_a_tab_closed_before_it_saved_gives_its_text_back(page, world, shut):  # noqa: F811
    begin(page, world)
    with shut():
        page.keyboard.type(CORRECTED)
        page.close()
        time.sleep(0.3)
    assert world.store.read.execute("SELECT COUNT(*) FROM annotation").fetchone()[0] == 0
    later = page.context.new_page()
    later.goto(f"{world.url}/#/p/1/work")
    expect(editor(later)).to_have_value(CORRECTED)
    expect(later.get_by_text("Restored what this browser had not saved yet.")).to_be_visible()
    expect(state(later)).to_have_text("Saved, revision 1")


@pytest.mark.parametrize("choice", ["Keep this browser's", "Take the server's"])
def test_a_closed_tabs_text_and_a_newer_one_on_the_server_are_both_shown(page, world, choice, shut):  # noqa: F811
    begin(page, world)
    with shut():
        page.keyboard.type(CORRECTED)
        page.close()
        time.sleep(0.3)
    later = page.context.new_page()
    newer = RESPONSE.replace("red", "green")
    put(later, world, 0, newer)
    later.goto(f"{world.url}/#/p/1/work")
    dialog = later.get_by_role("dialog")
    expect(dialog).to_contain_text("green")
    expect(dialog).to_contain_text("blue")
    later.keyboard.press("Escape")
    expect(dialog).to_be_visible()  # a choice has to be made
    later.get_by_role("button", name=choice).focus()
    later.keyboard.press("Enter")
    mine = choice.startswith("Keep")
    expect(editor(later)).to_have_value(CORRECTED if mine else newer)
    expect(state(later)).to_have_text(f"Saved, revision {2 if mine else 1}")


def test_the_second_tab_never_overwrites_the_first(page, world):  # noqa: F811
    begin(page, world)
    put(page, world, 0, RESPONSE.replace("red", "green"))
    page.keyboard.type(CORRECTED)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Two copies of your work")
    expect(state(page)).to_have_text("Two copies")
    assert world.store.read.execute("SELECT corrected FROM annotation").fetchone()[0] == RESPONSE.replace(
        "red", "green"
    )
    page.get_by_role("button", name="Keep this browser's").focus()
    press(page, "Enter")
    expect(state(page)).to_have_text("Saved, revision 2")
    texts = [event["corrected"] for event in page.request.get(f"{world.url}/api/items/1/history").json()]
    assert texts == [CORRECTED, RESPONSE.replace("red", "green")]  # neither is lost


def test_submitting_twice_in_a_hurry_submits_once(page, world):  # noqa: F811
    page.route(SAVES, lambda route: (page.wait_for_timeout(150), route.continue_()))
    begin(page, world)
    page.keyboard.type(CORRECTED)
    press(page, "Escape", "4", "4")
    expect(page.locator(".tally")).to_have_text("2 segments")
    page.wait_for_timeout(3000)
    press(page, *["Control+Enter"] * 3)
    page.wait_for_url("**/work/2")
    kinds = [event["kind"] for event in page.request.get(f"{world.url}/api/items/1/history").json()]
    assert kinds.count("submitted") == 1


@pytest.mark.parametrize(("status", "said"), [(507, "disk is full"), (503, "cannot write now")])
def test_a_full_disk_is_red_and_never_saved(page, world, status, said):  # noqa: F811
    answer = {"error": "x", "detail": f"The server's {said}; nothing was saved.", "fields": []}
    page.route(SAVES, lambda route: route.fulfill(status=status, json=answer))
    begin(page, world)
    page.keyboard.type(CORRECTED)
    expect(page.get_by_role("alert").first).to_contain_text(said)
    expect(state(page)).to_have_text("Not saved")
    page.unroute(SAVES)
    expect(state(page)).to_have_text("Saved, revision 1", timeout=20_000)


def test_a_missing_image_is_shown_as_one_and_is_the_reason_to_skip(page, world):  # noqa: F811
    for folder in ("images", "images_shown"):
        shutil.rmtree(world.store.folder / folder, ignore_errors=True)
    sign_in(page, world, "ada")
    press(page, "Enter")
    expect(page.get_by_text("The image is missing or broken. Skip this item (x).")).to_be_visible()
    press(page, "x")
    expect(page.get_by_label("The image is missing or broken")).to_be_checked()
    press(page, "Enter")
    page.wait_for_url("**/work/2")
    assert world.store.read.execute("SELECT skip_reason FROM annotation").fetchone()[0] == "image_missing"


def test_a_session_that_ends_while_one_types_costs_no_word(page, world):  # noqa: F811
    begin(page, world)
    page.keyboard.type(CORRECTED[:12])
    expect(state(page)).to_contain_text("Saved")
    world.store.write(lambda c: c.execute("DELETE FROM session") and None)
    page.keyboard.type(CORRECTED[12:])
    expect(page.get_by_label("Your token")).to_be_visible()
    press(page, "Control+a")  # where the last letters may have gone
    page.keyboard.type(world.tokens["ada"])
    press(page, "Enter")
    expect(editor(page)).to_have_value(CORRECTED)
    expect(state(page)).to_contain_text("Saved")
    assert world.store.read.execute("SELECT corrected FROM annotation").fetchone()[0] == CORRECTED
