"""The worst answers of each run, with the words that name what is not there marked in their text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlhfv_jax.errors import UserError
from rlhfv_jax.evals.lemmas import noun_lemma
from rlhfv_jax.evals.scores import Scores
from rlhfv_jax.reporting.marked import marked
from rlhfv_jax.reporting.markup import Markup, element, join, lines, section
from rlhfv_jax.reporting.runs import Run

SAME_ANSWERS = ("over_generalization",)  # of Object HalBench, counted by scene
CLEAN = 3  # MMHal-Bench: ratings below are hallucinations
_TOKEN = re.compile(r"\w+")
_NO_OBJECT = ("train track", "home plate")  # read as one word by Object HalBench's scorer, and no object of its own


def examples_section(runs: Sequence[Run], count: int) -> Markup:
    """Show up to `count` answers of each run and benchmark: most hallucinated mentions first, or lowest ratings."""
    shown = [(run, scores) for run in runs for name, scores in run.scores.items() if name not in SAME_ANSWERS]
    parts = [part for run, scores in shown if (part := _of(run, scores, count))]
    if not parts or count == 0:
        return Markup("")
    note = (
        "The worst by the benchmark's own count, so they show how a model fails and not how it answers. Marked words "
        "name objects that the picture's annotations do not have."
    )
    return section("Worst answers", "examples", element("p", note, class_="note"), *parts)


def locate(text: str, words: Sequence[str]) -> list[tuple[int, int] | None]:
    """Where each word stands in the text, as characters: by its tokens or their noun lemmas, each place once.

    Words come in the text's order where the scorer found them itself; one that is not found after the last is looked
    for from the start. None for a word that stands nowhere, as one that a chat model put differently.

    >>> locate("Two dogs, and a dog.", ["dog", "dog", "cat"])
    [(4, 8), (16, 19), None]
    """
    tokens = [(match.start(), match.end(), match.group().lower()) for match in _TOKEN.finditer(text)]
    lemmas = [noun_lemma(token) for _, _, token in tokens]
    forms = [{token, lemma} for (_, _, token), lemma in zip(tokens, lemmas, strict=True)]
    pairs = [" ".join(pair) for pair in itertools.pairwise(lemmas)]
    taken = {at + i for at, pair in enumerate(pairs) if pair in _NO_OBJECT for i in (0, 1)}
    places: list[tuple[int, int] | None] = []
    last = 0
    for word in words:
        wanted = word.lower().split()
        size, spots = len(wanted), range(len(tokens) - len(wanted) + 1)
        found = next(
            (
                at
                for at in (*spots[last:], *spots[:last])
                if size
                and not taken & set(range(at, at + size))
                and all(part in forms[at + i] or noun_lemma(part) in forms[at + i] for i, part in enumerate(wanted))
            ),
            None,
        )
        if found is None:
            places.append(None)
            continue
        taken |= set(range(found, found + size))
        last = found + size
        places.append((tokens[found][0], tokens[found + size - 1][1]))
    return places


def _of(run: Run, scores: Scores, count: int) -> Markup:
    answers = [item for item in scores.items if isinstance(item.get("text"), str)]
    where = f"items.jsonl of {run.name}, {scores.benchmark}"
    if any("hallucinated" in item for item in answers):
        wrong = [item for item in answers if _pairs(item, "hallucinated", where)]
        worst = sorted(wrong, key=lambda item: -len(item["hallucinated"]))[:count]
        cards = [_objects(item, where) for item in worst]
    else:
        rated = [item for item in answers if _rating(item) is not None and item["rating"] < CLEAN]
        worst = sorted(rated, key=lambda item: item["rating"])[:count]
        cards = [_judged(item) for item in worst]
    if not cards:
        return Markup("")
    heading = element("h3", f"{run.name}: {scores.benchmark}", class_="run")
    return lines(heading, element("div", join(cards, "\n"), class_="cards"))


def _objects(item: Mapping[str, Any], where: str) -> Markup:
    """An answer with its hallucinated objects marked, each mention of them."""
    wrong = _pairs(item, "hallucinated", where)
    mentions = _pairs(item, "mentioned", where) or wrong
    nodes = {node for _, node in wrong}
    places = locate(item["text"], [word for word, _ in mentions])
    spans, elsewhere = [], []
    for (word, node), place in zip(mentions, places, strict=True):
        if node not in nodes:
            continue
        if place is None:
            elsewhere.append(word)
        else:
            spans.append({"start": place[0], "end": place[1], "type": "object"})
    parts = [
        _head(item, f"{len(wrong)} hallucinated mention{'' if len(wrong) == 1 else 's'}"),
        element("p", marked(item["text"], spans, "mark", {}), class_="text"),
    ]
    if elsewhere:
        parts.append(element("p", "In other words in the text: ", ", ".join(elsewhere), class_="notes"))
    if isinstance(truth := item.get("truth"), list):
        told = ", ".join(map(str, truth)) or "nothing"
        parts.append(element("p", element("b", "In the picture"), " ", told, class_="notes"))
    return element("article", lines(*parts), class_="sheet")


def _judged(item: Mapping[str, Any]) -> Markup:
    """An answer that a judge rated low, with the question, the person's answer and the judge's words."""
    parts = [_head(item, f"rated {item['rating']}"), element("p", item["text"] or "(an empty answer)", class_="text")]
    for name, title in (("question", "Question"), ("truth", "A person's answer"), ("review", "The judge")):
        if isinstance(told := item.get(name), str):
            parts.append(element("p", element("b", title), " ", told, class_="notes"))
    return element("article", lines(*parts), class_="sheet")


def _head(item: Mapping[str, Any], count: str) -> Markup:
    name = f"Question {item.get('question_id', '?')}"
    if item.get("image_id"):
        name += f", image {item['image_id']}"
    return element("h4", name, " ", element("span", count, class_="count bad"))


def _rating(item: Mapping[str, Any]) -> float | None:
    rating = item.get("rating")
    return rating if isinstance(rating, int | float) and not isinstance(rating, bool) else None


def _pairs(item: Mapping[str, Any], name: str, where: str) -> list[tuple[str, str]]:
    """(word, object) of each mention; a bare word is its own object."""
    pairs = []
    for one in item.get(name) or []:
        pair = [one, one] if isinstance(one, str) else one
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise UserError(f"{where}, {name}: expected words or [word, object], found {one!r}.")
        pairs.append((pair[0], pair[1]))
    return pairs
