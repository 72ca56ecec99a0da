"""What people who did the same items agree in: the report of agreement, and the raw table that it is computed from."""

import csv
import dataclasses
import io
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rlhfv_jax.annotation import agreement, overlaps
from rlhfv_jax.annotation.agreement import Figure, Table
from rlhfv_jax.annotation.collected import Finished, Outcome
from rlhfv_jax.annotation.project import Project

COMPLETE = ("agreed", "needs_adjudication", "adjudicated")
MOST_PAIRS = 50  # pairs of people that are listed, those with most items in common
TWO_ONLY = "not of two annotators"


class Pair(NamedTuple):
    """Two people's work on one item, the one of the lower number first. `types` are those of matched segments."""

    item: int
    first: Finished
    second: Finished
    exact: int
    types: tuple[tuple[str, str], ...]
    similarity: float

    @property
    def segments(self) -> int:
        """How many segments the two have together."""
        return len(self.first.segments) + len(self.second.segments)


def pair(first: Finished, second: Finished) -> Pair:
    """Compares two annotations of an item, neither of them a skip."""
    if first.annotator > second.annotator:
        first, second = second, first
    left, right = ([s.change for s in row.segments] for row in (first, second))
    places = [Counter((s.change.src0, s.change.src1) for s in row.segments) for row in (first, second)]
    matched = overlaps.pairs(left, right, first.response)
    a, b = first.corrected.split(), second.corrected.split()
    return Pair(
        item=first.item,
        first=first,
        second=second,
        exact=(places[0] & places[1]).total(),
        types=tuple((first.segments[i].type, second.segments[j].type) for i, j in matched),
        similarity=overlaps.f1(overlaps.common_words(a, b) if a != b else len(a), len(a), len(b)),
    )


def shared(outcomes: Sequence[Outcome]) -> list[tuple[Finished, ...]]:
    """The work, by annotator, of every item that at least two people did and nobody has still to do; skips left out."""
    every = ([row for row in one.rows if row.verdict != "skipped"] for one in outcomes if one.state in COMPLETE)
    return [tuple(sorted(rows, key=lambda row: row.annotator)) for rows in every if len(rows) > 1]


def report(outcomes: Sequence[Outcome], project: Project) -> dict[str, Any]:
    """Plain values: counts, a figure a measure and level, and a row for each two people who share items."""
    items = shared(outcomes)
    pairs = [[pair(a, b) for a, b in itertools.combinations(rows, 2)] for rows in items]
    people = sorted({row.annotator for rows in items for row in rows})
    states = Counter(one.state for one in outcomes)
    return {
        "kind": project.kind,
        "items": len(items),
        "annotations": sum(map(len, items)),
        "annotators": len(people),
        "states": {name: states[name] for name in ("agreed", "needs_adjudication", "adjudicated", "open")},
        "measures": _measures(items, pairs, project, len(people) == 2),
        "pairs": _between(pairs),
        "pairs_in_all": len({(p.first.annotator, p.second.annotator) for of in pairs for p in of}),
    }


def _measures(
    items: Sequence[tuple[Finished, ...]], pairs: Sequence[Sequence[Pair]], project: Project, two: bool
) -> list[dict[str, Any]]:
    """[{"level", "measure", value, low, high, n, unit, undefined}] in the order in which they are shown."""
    keys = project.type_keys
    tables: dict[tuple[str, str], Table] = {}
    hallucinated = [[int(row.verdict == "corrected") for row in rows] for rows in items]
    _nominal(tables, "responses, clean or hallucinated", hallucinated, two)
    codes, of = _words(items, keys)
    for level, marks in (("words, marked or not", np.minimum(codes, 1)), ("words, by type", codes)):
        size = 2 if marks is not codes else len(keys) + 1
        counts = sum(np.eye(size + 1)[marks[r]][:, :size] for r in range(len(marks)))  # -1, missing, is cut off
        terms = _by_item(agreement.alpha_terms(counts), of, len(items)) if len(of) else np.zeros((len(items), size + 1))
        tables[level, "alpha"] = Table(terms, agreement.alphas, len(of), "words")
    together = [sum(p.segments for p in of) for of in pairs]
    for name, hits in (
        ("exact F1", [sum(p.exact for p in of) for of in pairs]),
        ("overlap F1", [sum(len(p.types) for p in of) for of in pairs]),
    ):
        terms = np.asarray([2 * np.asarray(hits, float), together]).T.reshape(-1, 2)
        tables["segments", name] = Table(terms, agreement.ratios, sum(together), "segments")
    _types(tables, pairs, keys, two)
    if project.kind == "correction":
        terms = np.asarray([[sum(p.similarity for p in of), len(of)] for of in pairs], float).reshape(-1, 2)
        tables["corrected texts", "words in common"] = Table(terms, agreement.ratios, int(terms[:, 1].sum()), "pairs")
    for type_ in project.types:
        has = [[int(any(s.type == type_.key for s in row.segments)) for row in rows] for rows in items]
        _nominal(tables, f"responses with {type_.label.lower()}", has, two)
    found = agreement.figures({str(i): table for i, table in enumerate(tables.values())})
    lines = []
    for (level, measure), figure in zip(tables, found.values(), strict=True):
        lines.append({"level": level, "measure": measure} | dataclasses.asdict(figure))
        if measure == "alpha" and not level.startswith("words") and not two:
            nothing = Figure(None, None, None, figure.n, figure.unit, TWO_ONLY)
            lines.append({"level": level, "measure": "kappa"} | dataclasses.asdict(nothing))
    return lines


def _nominal(tables: dict[tuple[str, str], Table], level: str, values: list[list[int]], two: bool) -> None:
    """Alpha of 0 and 1 given to each item, and kappa where the same two people gave all of them."""
    counts = np.asarray([[len(v) - sum(v), sum(v)] for v in values], float).reshape(-1, 2)
    tables[level, "alpha"] = Table(agreement.alpha_terms(counts), agreement.alphas, len(values), "items")
    if two:
        terms = agreement.confusion([v[0] for v in values], [v[1] for v in values], 2)
        tables[level, "kappa"] = Table(terms, agreement.kappas, len(values), "items")


def _types(
    tables: dict[tuple[str, str], Table], pairs: Sequence[Sequence[Pair]], keys: Sequence[str], two: bool
) -> None:
    """Types of segments that two people both marked; a unit is a matched pair of segments."""
    size = len(keys)
    terms = np.zeros((len(pairs), size * size))
    for i, of in enumerate(pairs):
        for p in of:
            for a, b in p.types:
                terms[i, keys.index(a) * size + keys.index(b)] += 1
    square = terms.reshape(-1, size, size)
    counts = square.sum(1) + square.sum(2)
    apart = 2 * (square.sum((1, 2)) - np.trace(square, axis1=1, axis2=2))  # as alpha_terms, of units of two values
    n = int(terms.sum())
    summed = np.concatenate([apart[:, None], counts], 1)
    tables["types of matched segments", "alpha"] = Table(summed, agreement.alphas, n, "matched segments")
    if two:
        tables["types of matched segments", "kappa"] = Table(terms, agreement.kappas, n, "matched segments")


def _words(items: Sequence[tuple[Finished, ...]], keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(int[people of an item, words]: 0 none, 1.. the type, -1 nobody; int[words]: whose word it is)."""
    most = max(map(len, items), default=0)
    columns: list[list[int]] = [[] for _ in range(most)]
    sizes = []
    numbers = {key: i + 1 for i, key in enumerate(keys)}
    for rows in items:
        count = len(overlaps.words(rows[0].response))
        sizes.append(count)
        for row, column in itertools.zip_longest(rows, columns):
            marks = [0 if row else -1] * count
            if row:
                changes = [s.change for s in row.segments]
                found = list(zip(overlaps.stretches(changes, row.response), row.segments, strict=True))
                for (start, end), segment in reversed(found):  # of two at one word the first counts
                    marks[start:end] = [numbers[segment.type]] * (end - start)
            column.extend(marks)
    return np.asarray(columns, int).reshape(most, sum(sizes)), np.repeat(np.arange(len(items)), sizes)


def _by_item(terms: np.ndarray, of: np.ndarray, items: int) -> np.ndarray:
    return np.stack([np.bincount(of, column, items) for column in terms.T], 1)


def _between(pairs: Sequence[Sequence[Pair]]) -> list[dict[str, Any]]:
    """For each two people: items in common, kappa of clean or hallucinated, overlap F1."""
    by_people: dict[tuple[str, str], list[Pair]] = {}
    for p in itertools.chain.from_iterable(pairs):
        by_people.setdefault((p.first.pseudonym, p.second.pseudonym), []).append(p)
    most = sorted(by_people.items(), key=lambda entry: (-len(entry[1]), entry[0]))[:MOST_PAIRS]
    found = []
    for (first, second), of in most:
        verdicts = [tuple(int(row.verdict == "corrected") for row in (p.first, p.second)) for p in of]
        table = agreement.confusion([a for a, _ in verdicts], [b for _, b in verdicts], 2)
        hits = np.asarray([[2 * len(p.types), p.segments] for p in of], float)
        figures = agreement.figures(
            {
                "kappa": Table(table, agreement.kappas, len(of), "items"),
                "overlap_f1": Table(hits, agreement.ratios, int(hits[:, 1].sum()), "segments"),
            }
        )
        same = sum(a == b for a, b in verdicts)
        found.append(
            {"annotators": [first, second], "items": len(of), "same_verdict": same}
            | {name: dataclasses.asdict(figure) for name, figure in figures.items()}
        )
    return found


def with_others(outcomes: Sequence[Outcome]) -> dict[int, dict[str, Any]]:
    """For each person who shares items: how many, the share with the other's verdict, F1 of segments that overlap."""
    sums: dict[int, np.ndarray] = {}
    for rows in shared(outcomes):
        for p in (pair(a, b) for a, b in itertools.combinations(rows, 2)):
            same = p.first.verdict == p.second.verdict
            for row in (p.first, p.second):
                more = np.asarray([1, same, 2 * len(p.types), p.segments], float)
                sums[row.annotator] = sums.get(row.annotator, 0) + more
    return {
        person: {
            "comparisons": int(n),
            "same_verdict": float(same / n),
            "overlap_f1": float(hits / segments) if segments else None,
        }
        for person, (n, same, hits, segments) in sums.items()
    }


def raw(outcomes: Sequence[Outcome]) -> str:
    """The table that the figures are computed from, as CSV: a line a word and person of every shared item."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["item", "state", "annotator", "verdict", "word", "start", "end", "segment", "type"])
    for one in outcomes:
        if one.state not in COMPLETE or len(one.rows) < 2:
            continue
        for row in one.rows:
            changes = [s.change for s in row.segments]
            marks = {
                w: i
                for i, (a, b) in reversed(list(enumerate(overlaps.stretches(changes, row.response))))
                for w in range(a, b)
            }
            for w, (start, end) in enumerate(overlaps.words(row.response)):
                i = marks.get(w)
                mark = ["", ""] if i is None else [i + 1, row.segments[i].type]
                table.writerow([row.item, one.state, row.pseudonym, row.verdict, w + 1, start, end, *mark])
    return out.getvalue()


def lines(values: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(level, measure, value with its interval, units) for a table on a terminal."""
    found = []
    for line in values["measures"]:
        figure = Figure(**{name: line[name] for name in ("value", "low", "high", "n", "unit", "undefined")})
        found.append((line["level"], line["measure"], agreement.spelled(figure), f"{figure.n} {figure.unit}"))
    return found
