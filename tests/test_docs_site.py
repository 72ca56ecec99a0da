"""The documentation as a site: it builds strictly, opens as a file, is searched, and asks nothing of other hosts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from browser import chromium, expect, page  # noqa: F401  fixtures

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_site_builds_strictly_and_is_searched_offline(tmp_path, page):  # noqa: F811
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(build, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)
    assert result.returncode == 0, result.stderr
    page.goto((tmp_path / "site" / "api" / "rlhfv_jax.html").as_uri())
    expect(page.get_by_role("heading", name="rlhfv_jax.losses").first).to_be_visible()
    page.goto((tmp_path / "site" / "index.html").as_uri())
    page.keyboard.press("/")
    page.keyboard.type("stop and continue")
    expect(page.locator(".md-search-result__item").first).to_contain_text("Stop and continue")
    assert [address for address in page.problems.asked if address.startswith("http")] == []
