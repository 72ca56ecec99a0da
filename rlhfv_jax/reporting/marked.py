"""Texts with some of their characters marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhfv_jax.reporting.markup import Markup, element, join

STYLED = ("object", "number", "attribute", "position", "misc")  # types of spans that the style sheet tells apart


def marked(text: str, spans: Sequence[Mapping[str, Any]], tag: str, names: Mapping[str, str]) -> Markup:
    """Wrap the spans' characters in `tag`, typed, and change nothing else of the text.

    Args:
      spans: with `start`, `end` and `type`.
      names: what a type is called where that is not its own name.

    Raises:
      ValueError: a span is empty, reaches past the text or overlaps the one before.
    """
    parts: list[str] = []
    at = 0
    for span in sorted(spans, key=lambda one: (one["start"], one["end"])):
        start, end = span["start"], span["end"]
        if not at <= start < end <= len(text):
            raise ValueError(
                f"Span {start}:{end} of {text!r} ({len(text)} characters) is empty, past its end or overlaps another."
            )
        kind = names.get(span["type"], span["type"])
        style = span["type"] if span["type"] in STYLED else "misc"
        parts += [text[at:start], element(tag, text[start:end], class_=f"t-{style}", data_type=kind)]
        at = end
    return join([*parts, text[at:]])
