"""Finished work as one list, for statistics and exports alike."""

import json
import sqlite3
from typing import Any, NamedTuple

from rlhfv_jax.annotation.checks import Typed
from rlhfv_jax.annotation.diff import Change
from rlhfv_jax.errors import UserError


class Finished(NamedTuple):
    """One person's submission or skip of one item; `segments` are what stands in the store, checked against texts."""

    item: int
    ext_id: str
    image_sha256: str
    image_name: str
    prompt: str
    response: str
    model: str
    source: dict[str, Any]
    annotator: int
    rev: int
    verdict: str
    skip_reason: str
    corrected: str
    active_ms: int
    opened: float
    updated: float
    segments: tuple[Typed, ...]

    @property
    def pseudonym(self) -> str:
        """The annotator without a name."""
        return f"annotator-{self.annotator}"


def finished(c: sqlite3.Connection, project: int) -> list[Finished]:
    """Submitted and skipped annotations by item, those of one item by time. Raises UserError for a damaged segment."""
    segments: dict[int, list[Typed]] = {}
    for row in c.execute(
        "SELECT s.* FROM segment s JOIN annotation a ON a.id = s.annotation JOIN item i ON i.id = a.item "
        "WHERE i.project = ? AND a.verdict = 'corrected' AND a.state = 'submitted' ORDER BY s.annotation, s.ord",
        (project,),
    ):
        change = Change(row["src0"], row["src1"], row["dst0"], row["dst1"])
        segments.setdefault(row["annotation"], []).append(
            Typed(change, row["src_text"], row["dst_text"], row["op"], row["type"])
        )
    found = []
    for row in c.execute(
        "SELECT a.id AS annotation, a.item, i.ext_id, i.image_sha256, m.name AS image_name, i.prompt, i.response, "
        "i.model, i.source_json AS source, a.annotator, "
        "a.rev, a.verdict, a.skip_reason, a.corrected, a.active_ms, a.opened, a.updated "
        "FROM annotation a JOIN item i ON i.id = a.item JOIN image m ON m.sha256 = i.image_sha256 "
        "WHERE i.project = ? AND a.state IN ('submitted', 'skipped') ORDER BY i.id, a.updated, a.id",
        (project,),
    ):
        values = dict(row)
        typed = tuple(segments.get(values.pop("annotation"), ()))
        one = Finished(**(values | {"source": json.loads(values["source"]), "segments": typed}))
        _check(one)
        found.append(one)
    return found


def _check(one: Finished) -> None:
    """What is exported is what was typed: every stored text stands where its offsets say."""
    for segment in one.segments:
        at = segment.change
        target = one.response if segment.op == "span" else one.corrected
        if one.response[at.src0 : at.src1] != segment.src_text or target[at.dst0 : at.dst1] != segment.dst_text:
            raise UserError(
                f"Item {one.ext_id!r}, {one.pseudonym}: a stored segment is not what stands at its offsets "
                f"{tuple(at)}; the store is damaged, restore a backup."
            )


def one_each(rows: list[Finished]) -> list[Finished]:
    """The earliest finished annotation of every item, skips only where there is nothing else."""
    best: dict[int, Finished] = {}
    for row in rows:
        if row.item not in best or (best[row.item].verdict == "skipped" and row.verdict != "skipped"):
            best[row.item] = row
    return list(best.values())
