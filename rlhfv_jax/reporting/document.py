"""A page as one file: head, style and body, with a policy under which nothing loads and nothing runs."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from rlhfv_jax.reporting.markup import Markup, element, lines

# Nothing may be loaded and nothing may run, whatever a text on the page says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def document(title: str, *body: Markup) -> str:
    """Build the page with the house's style sheet, light and dark."""
    style = files("rlhfv_jax.reporting").joinpath("style.css").read_text(encoding="utf-8")
    return frame(title, _POLICY, style, *body)


def frame(title: str, policy: str, style: str, *body: Markup) -> str:
    """Build a page of one style sheet under a content-security policy."""
    head = lines(
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(style)),
    )
    whole = element("html", lines(element("head", head), element("body", lines(*body))), lang="en")
    return "<!doctype html>\n" + whole + "\n"


def write(path: Path, page: str) -> None:
    """Write a page, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    # A lone half of a surrogate pair, which JSON can bring, has no UTF-8.
    temporary.write_bytes(page.encode("utf-8", "replace"))
    os.replace(temporary, path)
