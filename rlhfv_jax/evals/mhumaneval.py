"""MHumanEval: hallucination by type, from the segments that people marked in 146 answers.

The 96 answers of MMHal-Bench and 50 of Object HalBench. A rate is the share of answers with a segment of the type;
"all" counts answers with a segment of any type, others included. The same labels give MMHal-Bench's Resp. (over its
96) and the number of hallucinated segments of the paper's Fig. 2.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhfv_jax.errors import UserError
from rlhfv_jax.evals.answers import identifier
from rlhfv_jax.evals.scores import Metric, Scores
from rlhfv_jax.evals.statistics import ratio

NAME = "mhumaneval"
ITEMS = 146
TYPES = ("object", "position", "number", "other")
OTHERS = ("attribute", "action", "misc", "miscellaneous", "color", "scene")  # types of corrections that have none here
SOURCES = {"mmhal": 96, "objhal": 50}


@dataclass(frozen=True)
class Label:
    """What annotators marked in one answer."""

    id: str
    types: tuple[str, ...]  # of its segments, in order; empty: no hallucination
    source: str = ""  # mmhal or objhal, "" where the file does not say


def labels(rows: Iterable[Mapping[str, Any]], where: str, annotator: str = "", model: str = "") -> list[Label]:
    """The labels of a file: the annotation application's `spans.jsonl` as it is, or
    `{response_id, segments: [{start, end, text, type}], source?, annotator?}` a line.

    An answer without a hallucination has an empty list; one that is not in the file, or was skipped, is not in the
    score. Offsets count characters and are checked where the row has its `response`. Raises UserError on a segment of
    unknown type or of other text than it says, on answers of several models unless `model` picks one, and on an answer
    labeled twice unless `annotator` picks one of the labels.
    """
    found: dict[str, Label] = {}
    models: set[str] = set()
    for number, row in enumerate(rows, 1):
        at = f"{where}, row {number}"
        if row.get("verdict") == "skipped" or (model and str(row.get("model", model)) != model):
            continue
        if annotator and str(row.get("annotator", annotator)) != annotator:
            continue
        models.add(str(row.get("model", "")))
        if len(models) > 1:
            raise UserError(f"{at}: labels of answers of {' and '.join(sorted(models))}; choose one with --model=NAME.")
        label = _label(row, at)
        if label.id in found:
            raise UserError(f"{at}: answer {label.id} was labeled before; choose one with --annotator=NAME.")
        found[label.id] = label
    return list(found.values())


def _label(row: Mapping[str, Any], at: str) -> Label:
    """A row of either form; the application's has its answer's `id` and `spans`, and a `benchmark` of any spelling."""
    ours = "spans" in row
    name = "id" if ours else "response_id"
    if name not in row:
        raise UserError(f"{at}: the field {name!r} is missing.")
    segments = row.get("spans" if ours else "segments")
    if not isinstance(segments, list):
        raise UserError(f"{at}: 'segments' is missing; an answer without a hallucination has an empty list.")
    source = str(row.get("source", ""))
    if ours:
        written = str(row.get("benchmark", "")).lower()
        source = next((known for known in SOURCES if written.startswith(known[:3])), "")
    if source and source not in SOURCES:
        raise UserError(f"{at}: the source {source!r} is none of {', '.join(SOURCES)}.")
    return Label(identifier(row, name, at), tuple(_type(one, row, at) for one in segments), source)


def _type(segment: Any, row: Mapping[str, Any], at: str) -> str:
    if not isinstance(segment, dict):
        raise UserError(f"{at}: expected each segment as an object with a type, found {segment!r}.")
    given = str(segment.get("type", ""))
    kind = given.lower().removesuffix("s")
    kind = "other" if kind in OTHERS else kind
    if kind not in TYPES:
        raise UserError(f"{at}: the segment type {given!r} is none of {', '.join(TYPES)}.")
    text, response = segment.get("text"), row.get("response")
    if isinstance(response, str) and {"start", "end"} <= set(segment):
        start, end = segment["start"], segment["end"]
        if not all(type(place) is int for place in (start, end)):
            raise UserError(f"{at}: expected start and end as numbers of characters, found {start!r} and {end!r}.")
        if not 0 <= start < end <= len(response) or (text is not None and response[start:end] != text):
            raise UserError(f"{at}: characters {start} to {end} of the response are not {text!r}.")
    return kind


def measures(label: Label) -> dict[str, float]:
    """What one answer adds to each mean; a rate in percent, `segments` per answer."""
    rates = {kind: 100.0 * (kind in label.types) for kind in TYPES}
    return {**rates, "all": 100.0 * bool(label.types), "segments": float(len(label.types))}


def score(found: Sequence[Label]) -> Scores:
    """Rates by type in percent, `segments` in number, and `mmhal_resp` over the answers of MMHal-Bench.

    Raises:
      UserError: there is no label.
    """
    if not found:
        raise UserError(f"{NAME}: there is no labeled answer.")
    rows = [measures(label) for label in found]
    metrics = {name: ratio([row[name] for row in rows]) for name in rows[0] if name != "segments"}
    around = ratio([row["segments"] for row in rows], scale=len(rows))
    metrics["segments"] = Metric(sum(row["segments"] for row in rows), around.low, around.high, len(rows))
    if mmhal := [row["all"] for row, label in zip(rows, found, strict=True) if label.source == "mmhal"]:
        metrics["mmhal_resp"] = ratio(mmhal)
    settings = {"labels": len(found), "expected": ITEMS, "complete": len(found) == ITEMS}
    items = [{"question_id": label.id, "source": label.source, "types": list(label.types)} for label in found]
    return Scores(NAME, metrics, settings, "people", items)
