"""A comparison as one HTML file: data, images and script stand in it, and a policy lets nothing else in."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rlhfv_jax.comparing.bundle import bundle, static
from rlhfv_jax.comparing.sets import Comparison, Item, notes
from rlhfv_jax.comparing.thumbnails import Thumbnails
from rlhfv_jax.reporting.document import frame
from rlhfv_jax.reporting.markup import Markup, element

STYLES = ("style.css", "desk.css", "compare.css")


def page(comparison: Comparison, images: Thumbnails, title: str) -> str:
    """The file's text. Whatever the texts hold stays text: they are JSON that no HTML parser reads as markup, and the
    only script that may run is the one whose hash is in the policy."""
    script, style = bundle("comparefile.js"), "\n".join(map(static, STYLES))
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return frame(
        title,
        policy,
        style,
        element("div", element("noscript", "This page needs JavaScript to show the answers."), id="app"),
        element("script", Markup(_inert(_data(comparison, images, title))), type="application/json", id="data"),
        element("script", Markup(script), type="module"),
    )


def answers(item: Item) -> list[dict[str, Any] | None]:
    """An item's answers as the view takes them, without names."""
    return [None if a is None else {"text": a.text, "spans": a.spans} for a in item.answers]


def types(comparison: Comparison) -> list[dict[str, str]]:
    """The types of the legend."""
    return [asdict(t) for t in comparison.types]


def _data(comparison: Comparison, images: Thumbnails, title: str) -> dict[str, Any]:
    return {
        "title": title,
        "digest": comparison.digest,
        "names": comparison.names,
        "types": types(comparison),
        "notes": notes(comparison) + _broken(images.broken),
        "images": images.urls,
        "items": [
            {"id": item.id, "prompt": item.prompt, "image": place, "answers": answers(item)}
            | ({"broken": True} if place is None and item.question.image is not None else {})
            for item, place in zip(comparison.items, images.of, strict=True)
        ],
    }


def _broken(images: Sequence[str]) -> list[str]:
    return [f"{len(images)} images cannot be shown"] if images else []


def _inert(value: Any) -> str:
    """JSON that holds no sign with which markup begins."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
