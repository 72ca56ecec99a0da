"""Takes the documentation's pictures of the annotation app: `python tests/take_pictures.py docs/images`.

A seeded project of drawn scenes, half done by two people, in a headless Chromium.
"""

import base64
import contextlib
import dataclasses
import io
import random
import shutil
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from annotation_world import World, add, served
from browser import expect, playwright, press, sign_in
from PIL import Image, ImageDraw
from starlette.testclient import TestClient
from test_annotation_adjudication import given, work

from rlhfv_jax.annotation import app, people, project, serving
from rlhfv_jax.data.tokenizer import MuffinTokenizer

TOKENIZER = Path(__file__).parents[2] / "shared/data/stories260K/tok512.model"
ANSWER = (
    "The image shows a red double-decker bus parked on the right side of the street. Three people are standing next to "
    "the bus, and one of them is holding an umbrella. The sun is shining in a clear sky, and the people seem to be "
    "waiting to get on the bus."
)
# Words of the answer, in its order; what is in their place in the picture; the type of the error.
ERRORS = (
    ("red", "blue", "attributes"),
    ("right", "left", "positions"),
    ("Three", "Two", "numbers"),
    (", and one of them is holding an umbrella", "", "objects"),
    ("waiting to get on", "walking away from", "actions"),
)
RESPONSES = tuple(ANSWER.replace(ERRORS[i][0], ERRORS[i][1]) for i in range(4))  # each with one error less
ITEMS, DONE = 40, 30


def scene() -> str:
    """The picture of all items: a blue bus, two people, a sun; base64 of a PNG."""
    image = Image.new("RGB", (1280, 912), "#c4def2")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 560, 1280, 600), fill="#6a9650")
    draw.rectangle((0, 600, 1280, 912), fill="#969696")
    draw.ellipse((1080, 60, 1210, 190), fill="#fadc5a")
    draw.rounded_rectangle((130, 300, 800, 670), 40, fill="#235ab4")
    for left in range(180, 730, 120):
        draw.rounded_rectangle((left, 350, left + 90, 460), 16, fill="#e1eefa")
    for middle in (270, 640):
        draw.ellipse((middle - 64, 610, middle + 64, 738), fill="#1e1e1e")
        draw.ellipse((middle - 28, 646, middle + 28, 702), fill="#bebebe")
    for middle, shirt in ((940, "#f0c828"), (1080, "#3c8c46")):
        draw.ellipse((middle - 36, 430, middle + 36, 502), fill="#e6bea0")
        draw.rectangle((middle - 44, 500, middle + 44, 648), fill=shirt)
        draw.rectangle((middle - 38, 648, middle - 6, 776), fill="#283050")
        draw.rectangle((middle + 6, 648, middle + 38, 776), fill="#283050")
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def amended(response: str, seen: Sequence[tuple[str, str, str]]) -> str:
    """The answer in which these errors are corrected."""
    for wrong, right, _ in seen:
        response = response.replace(wrong, right, 1)
    return response


def annotate(world: World) -> None:
    """Both annotators work: each overlooks some errors, the first skips an item now and then."""
    draw = random.Random(0)
    application = app.build(serving.Server(world.store), hosts=["testserver"])
    for name, count in (("ada", DONE), ("bob", 20)):
        client = TestClient(application, headers={"X-Requested-With": "rlhfv"})
        client.post("/api/session", json={"token": world.tokens[name]}).raise_for_status()
        for turn in range(count):
            item = given(client)
            response = client.get(f"/api/items/{item}").json()["response"]
            if name == "ada" and turn % 10 == 9:
                skip = {"base_rev": 0, "op_id": uuid.uuid4().hex, "reason": "prompt_unclear"}
                client.post(f"/api/items/{item}/skip", json=skip).raise_for_status()
                continue
            there = [error for error in ERRORS if error[0] in response]
            seen = [error for error in there if draw.random() < (0.1 if error[2] == "actions" else 0.8)]
            if turn % 9 == 4:
                seen = []
            types = [kind for _, _, kind in seen]
            milliseconds = draw.randint(25_000, 90_000)
            work(client, item, amended(response, seen), types, response, active_ms=milliseconds).raise_for_status()


def fill(world: World, folder: Path) -> None:
    """A project of corrections, half done, one of labels, and the people of both."""
    picture = scene()
    rows = [
        {
            "response": RESPONSES[i % 4] if i < DONE else ANSWER,
            "model": "example",
            "prompt": "Describe this image.",
            "image_base64": picture,
        }
        for i in range(ITEMS)
    ]
    add(world.store, folder, "correction", rows, dataclasses.replace(project.new("correction"), overlap=0.5))
    asked = {"prompt": "How many people are there, and where do they stand?", "image_base64": picture}
    counted = (
        "There are three people in the image. They stand to the left of a red bus, and one of them holds an umbrella."
    )
    add(world.store, folder, "mhumaneval", [asked | {"response": counted, "model": "example"}] * 12)
    world.tokens["rita"] = people.add(world.store, "rita", "reviewer")
    annotate(world)


def shoot(world: World, browser, folder: Path) -> None:
    """Writes each screen's picture as annotate-NAME.png."""

    @contextlib.contextmanager
    def screen(name: str, path: str, person: str = "", width: int = 1280, height: int = 720, dark: bool = False):
        colors = "dark" if dark else "light"
        context = browser.new_context(viewport={"width": width, "height": height}, locale="en-US", color_scheme=colors)
        page = context.new_page()
        if person:
            sign_in(page, world, person)
        page.goto(f"{world.url}/#/{path}")
        yield page
        page.wait_for_load_state("networkidle")
        whole = name in ("statistics", "administration")
        page.screenshot(path=folder / f"annotate-{name}.png", full_page=whole)
        context.close()

    with screen("sign-in", "", width=600, height=480) as page:
        expect(page.get_by_label("Your token")).to_be_focused()
    with screen("correct", "p/1/work", "ada") as page:
        correct(page)
    with screen("weights", "p/1/work", "ada", width=800, height=560) as page:
        expect(page.locator(".tally")).to_contain_text("segments")
        press(page, "w")
        page.get_by_text("Marked tokens weigh").wait_for()
    with screen("home", "", "ada", height=380) as page:
        expect(page.get_by_role("heading", name="Hello, ada")).to_be_visible()
    with screen("history", "p/1/mine", "ada", height=620) as page:
        page.get_by_role("heading", name="Your history").wait_for()
    with screen("label", "p/2/work", "bob", dark=True) as page:
        expect(page.get_by_role("listbox")).to_be_visible()
        press(page, *["ArrowRight"] * 3, "3", *["ArrowRight"] * 7, *["Shift+ArrowRight"] * 3)
        expect(page.locator(".state")).to_contain_text("Saved")
    with screen("adjudicate", "p/1/adjudicate", "rita", height=1000) as page:
        page.get_by_role("link", name="Decide the first").click()
        page.locator(".places").wait_for()
        press(page, "b", "a")
    with screen("agreement", "p/1/agreement", "rita", height=800) as page:
        page.get_by_text("Two by two").wait_for()
    with screen("statistics", "p/1/stats", "eve") as page:
        page.get_by_text("Gold F1:").wait_for()
    with screen("administration", "p/1/admin", "eve") as page:
        page.get_by_role("button", name="RLHF-V parquet").click()
        page.get_by_text("pairs.parquet").wait_for()


def correct(page) -> None:
    """Types the corrected answer and gives the segments their types, all but the last."""
    editor = page.get_by_label("Answer, corrected in place")
    expect(editor).not_to_have_value("")
    text = amended(editor.input_value(), ERRORS[:4])
    press(page, "Enter", "Control+a")
    page.keyboard.insert_text(text)
    press(page, "Escape")
    expect(page.locator(".row")).to_have_count(4)
    keys = {"blue": "4", "left": "2", "Two": "3"}
    for row in range(page.locator(".row").count() - 1):
        words = page.locator(".row").nth(row)
        words.click()
        press(page, next(key for word, key in keys.items() if word in words.inner_text()))
    page.evaluate("document.activeElement.blur()")
    expect(page.locator(".state")).to_contain_text("Saved")


def main(folder: Path) -> None:
    """Takes all pictures anew."""
    tokenizer = MuffinTokenizer.from_file(TOKENIZER)
    with tempfile.TemporaryDirectory() as name, served(Path(name), tokenizer=tokenizer) as world:
        fill(world, Path(name))
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            shoot(world, browser, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
