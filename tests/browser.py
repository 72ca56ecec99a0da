"""A headless Chromium for tests of the annotation app; skips, with the reason, where there is none."""

import shutil
from collections.abc import Iterator

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
expect.set_options(timeout=30_000)  # milliseconds; a busy machine is slow, not wrong
TimeoutError = playwright.TimeoutError
VIEW = {"width": 1280, "height": 720}


@pytest.fixture(scope="module")
def chromium() -> Iterator:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Problems(list):
    """What a page reported: script errors, refused policies, and every address it asked."""

    def __init__(self, page):
        super().__init__()
        self.asked: list[str] = []
        page.on("pageerror", lambda error: self.append(str(error)))
        page.on("dialog", lambda dialog: (self.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda m: self.append(m.text) if "Content Security Policy" in m.text else None)


@pytest.fixture
def page(chromium):
    """A fresh page; fails the test that leaves a script error behind. `page.problems` may be emptied."""
    context = chromium.new_context(viewport=VIEW, locale="en-US")
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.problems = Problems(page)
    yield page
    context.close()
    assert page.problems == []


def press(page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def tab_to(page, name: str, role: str = "") -> None:
    """Presses Tab until the element with this accessible name has the focus, as somebody without a mouse does."""
    for _ in range(80):
        page.keyboard.press("Tab")
        found = page.evaluate(
            "() => { const e = document.activeElement; const l = e.labels?.[0];"
            " return [e.getAttribute('aria-label') || l?.innerText || e.innerText || '', e.tagName, e.type || '']; }"
        )
        if found[0].strip().startswith(name) and role in ("", found[1], found[2]):
            return
    raise AssertionError(f"Tab never reaches {name!r}")


def sign_in(page, world, name: str) -> None:
    """Types the token; home is on the screen afterwards."""
    page.goto(world.url)
    expect(page.get_by_label("Your token")).to_be_focused()
    page.keyboard.type(world.tokens[name])
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=f"Hello, {name}")).to_be_visible()
