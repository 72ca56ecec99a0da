"""HTML by construction: elements are balanced, and every text is escaped unless it is markup already."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

_VOID = frozenset({"img", "meta"})


class Markup(str):
    """HTML that is safe to put on a page as it is. Joining it by `+` gives a plain text again, which is escaped."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str | int | float | None) -> Markup:
    """Build `<name attributes>children</name>`; children that are plain text are escaped.

    Attribute names are written as Python allows them: `class_` is `class`, `stroke_width` is `stroke-width`. An
    attribute of None is left out.
    """
    pairs = [(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None]
    opening = "".join(f' {key}="{escape(str(value))}"' for key, value in pairs)
    if name in _VOID:
        return Markup(f"<{name}{opening}>")
    return Markup(f"<{name}{opening}>{join(children)}</{name}>")


def join(parts: Iterable[str], separator: str = "") -> Markup:
    """Put parts one after the other, plain text escaped."""
    return Markup(separator.join(part if isinstance(part, Markup) else escape(part) for part in parts))


def lines(*parts: str) -> Markup:
    """Put blocks one after the other, each on its own line of the source; empty ones are left out."""
    return join((part for part in parts if part), "\n")


def section(title: str, name: str, *parts: str) -> Markup:
    """Build a section with its heading; `name` is its anchor."""
    heading = element("h2", title, id=name)
    return element("section", lines(heading, *parts), aria_labelledby=name)


def scrolling(table: Markup, label: str) -> Markup:
    """Give a wide table a container of its own that scrolls, by keyboard too, so that the page never does."""
    return element("div", table, class_="scroll", role="region", aria_label=label, tabindex=0)


def picture(png: bytes, alt: str) -> Markup:
    """Put a PNG on the page itself."""
    source = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return element("img", src=source, alt=alt, class_="scene", width=64, height=64)


def facts(pairs: Iterable[tuple[str, str]]) -> Markup:
    """Build a list of names and values."""
    rows = [element("div", element("dt", name), element("dd", value)) for name, value in pairs]
    return element("dl", join(rows, "\n"), class_="facts")
