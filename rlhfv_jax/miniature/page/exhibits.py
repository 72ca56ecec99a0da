"""Answers to look at: the gallery with its wrong words marked, and the corrected pairs with their segments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlhfv_jax.miniature.page.readings import Details, label, ordered
from rlhfv_jax.reporting.marked import marked
from rlhfv_jax.reporting.markup import Markup, element, join, lines, picture, section
from rlhfv_jax.reporting.numbers import number

TYPES = {
    "object": "object",
    "number": "number",
    "attribute": "color",
    "position": "position",
    "misc": "place",
}
"""The paper's segment types and what they are called in this world, where the only attribute is the color."""


def gallery_section(gallery: Sequence[Mapping[str, Any]]) -> Markup:
    """Show each scene with the truth and every model's answer, the wrong words marked."""
    if not gallery:
        return Markup("")
    note = (
        "Wrong words are marked by color and by the line through or under them. An object that is not there is struck; "
        "what is said about it is neither right nor wrong."
    )
    return section(
        "Answers, before and after",
        "gallery",
        element("p", note, class_="note"),
        _legend("mark"),
        _cards(map(_scene, gallery)),
    )


def corrections_section(details: Details, corrections: Sequence[Mapping[str, Any]]) -> Markup:
    """Show preference pairs: the answer with its wrong segments struck, and its correction."""
    counts = details.get("pairs", {})
    told = []
    if "pairs" in counts:
        of = f" from {counts['sampled']} sampled answers" if "sampled" in counts else ""
        told.append(f"{counts['pairs']} preference pairs{of}.")
    if "segments_per_pair" in counts:
        told.append(f"{number(counts['segments_per_pair'], 2)} corrected segments per pair.")
    if counts.get("types"):
        shares = (f"{TYPES.get(kind, kind)} {number(share)}%" for kind, share in counts["types"].items())
        told.append(f"By type: {', '.join(shares)}.")
    if not told and not corrections:
        return Markup("")
    note = (
        "Wrong segments are struck, what replaced them is underlined; the rest is equal in both. DDPO gives "
        "the marked ones more weight."
    )
    parts = [element("p", " ".join(told))] if told else []
    if corrections:
        parts += [element("p", note, class_="note"), _cards(map(_pair, corrections))]
    return section("Corrected pairs", "pairs", *parts)


def _cards(cards: Iterable[Markup]) -> Markup:
    return element("div", join(cards, "\n"), class_="cards")


def _legend(tag: str) -> Markup:
    items = [element("li", element(tag, name, class_=f"t-{kind}")) for kind, name in TYPES.items()]
    return element("ul", join(items, "\n"), class_="legend")


def _scene(item: Mapping[str, Any]) -> Markup:
    answers = item["answers"]
    said = [_answer(label(name), answers[name]) for name in ordered(answers)]
    truth = element("p", element("b", "In the scene"), " ", item["truth"], class_="truth")
    image = picture(item["image_png"], f"Scene {item['id']}: {item['truth']}")
    return element("article", image, element("div", lines(truth, *said), class_="said"), class_="card")


def _answer(name: str, answer: Mapping[str, Any]) -> Markup:
    errors = answer["errors"]
    count = "no error" if not errors else "1 error" if len(errors) == 1 else f"{len(errors)} errors"
    head = element("h3", name, " ", element("span", count, class_="count bad" if errors else "count good"))
    text = element("p", marked(answer["text"], errors, "mark", TYPES), class_="text")
    notes = [_note(answer["text"], error) for error in sorted(errors, key=lambda one: one["start"])]
    told = element("p", join(notes, "; "), class_="notes") if notes else ""
    return element("div", lines(head, text, told), class_="answer")


def _note(text: str, error: Mapping[str, Any]) -> Markup:
    word = element("b", text[error["start"] : error["end"]])
    expected = error.get("expected") or ()
    names = [expected] if isinstance(expected, str) else list(expected)
    if error["type"] == "object":
        return join([word, " is not there", f" (left unmentioned: {', '.join(names)})" if names else ""])
    kind = TYPES.get(error["type"], error["type"])
    return join([kind, " ", word, " should be ", ", ".join(names)] if names else [kind, " ", word, " is wrong"])


def _pair(item: Mapping[str, Any]) -> Markup:
    image = picture(item["image_png"], f"Scene {item['id']}")
    said = [
        _half("Answer, rejected", item["rejected"], item["rejected_segments"], "del"),
        _half("Correction, chosen", item["chosen"], item["chosen_segments"], "ins"),
    ]
    return element("article", image, element("div", lines(*said), class_="said"), class_="card")


def _half(title: str, text: str, segments: Sequence[Mapping[str, Any]], tag: str) -> Markup:
    body = element("p", marked(text, segments, tag, TYPES), class_="text typed")
    return element("div", lines(element("h3", title), body), class_="answer")
