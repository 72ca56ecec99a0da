"""Gold items: their answers are known, everybody gets some of them unannounced, and work is scored by them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlhfv_jax.annotation import checks, diff, overlaps
from rlhfv_jax.annotation.collected import Finished, Outcome
from rlhfv_jax.annotation.faults import Fault
from rlhfv_jax.annotation.project import Project
from rlhfv_jax.errors import UserError


def checked(value: Any, response: str, project: Project, where: str) -> str | None:
    """A row's `gold` as it is stored, None where there is none; raises UserError.

    It is {"verdict": "clean"}, or {"corrected": text, "segments": [{src0, src1, dst0, dst1, type}], "cuts"?} of a
    correction (types of the segments that the comparison of the two texts finds), or {"segments": [{src0, src1, type}]}
    of a labeled answer.
    """
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise UserError(f"{where}, gold: is not valid JSON ({error}).") from error
    if not isinstance(value, Mapping):
        raise UserError(f"{where}, gold: expected an object, found {type(value).__name__}.")
    verdict = value.get("verdict", "corrected")
    if verdict not in ("corrected", "clean"):
        raise UserError(f"{where}, gold.verdict: expected corrected or clean, found {verdict!r}.")
    corrects = project.kind == "correction"
    body = {"base_rev": 0, "op_id": "gold-annotation", "state": "submitted", "verdict": verdict, "confirm": True}
    body |= {name: value[name] for name in ("segments", "cuts") if name in value}
    body["corrected"] = value.get("corrected", response) if corrects else response
    try:
        save = checks.save_request(body, response)
        segments = (checks.corrections if corrects else checks.labels)(save, response, project)
        checks.submission(save, segments, response, project, [])
    except Fault as fault:
        path = f".{fault.fields[0][0]}" if fault.fields else ""
        raise UserError(f"{where}, gold{path}: {fault.detail}") from fault
    stored = {"verdict": verdict, "skip_reason": "", "corrected": diff.normalized(body["corrected"])}
    return json.dumps(stored | {"segments": [s.to_dict() for s in segments]}, ensure_ascii=False, sort_keys=True)


def scores(outcomes: Sequence[Outcome]) -> dict[int, dict[str, Any]]:
    """For each person who did gold items: how many, the share of right verdicts, mean overlap F1 with gold, the share
    of right types among the segments that overlap. A skip is a wrong verdict of F1 0."""
    done: dict[int, list[tuple[bool, float, int, int]]] = {}
    for one in outcomes:
        if one.state == "gold" and one.counts is not None:
            for row in one.rows:
                done.setdefault(row.annotator, []).append(_score(row, one.counts))
    found = {}
    for person, of in done.items():
        matched = sum(n for *_, n in of)
        found[person] = {
            "items": len(of),
            "verdict": sum(right for right, *_ in of) / len(of),
            "f1": sum(f1 for _, f1, *_ in of) / len(of),
            "types": sum(right for *_, right, _ in of) / matched if matched else None,
        }
    return found


def _score(row: Finished, gold: Finished) -> tuple[bool, float, int, int]:
    """(right verdict, overlap F1, right types, matched segments)."""
    if row.verdict == "skipped":
        return False, 0.0, 0, 0
    sides = [overlaps.stretches([s.change for s in one.segments], one.response) for one in (row, gold)]
    pairs = overlaps.matched(*sides)
    types = sum(row.segments[i].type == gold.segments[j].type for i, j in pairs)
    return row.verdict == gold.verdict, overlaps.f1(len(pairs), *map(len, sides)), types, len(pairs)
