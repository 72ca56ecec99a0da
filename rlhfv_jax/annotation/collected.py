"""Finished work as one list, where each item stands, and what counts of it, for statistics and exports alike."""

import itertools
import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlhfv_jax.annotation import overlaps
from rlhfv_jax.annotation.checks import Typed
from rlhfv_jax.annotation.diff import Change
from rlhfv_jax.errors import UserError

STATES = ("open", "single", "agreed", "needs_adjudication", "adjudicated", "gold")
ENOUGH = 0.5  # overlap F1 of two people's segments below which somebody has to decide


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
    n_annotators: int = 1
    gold: str | None = None  # the item's gold annotation, as it is stored
    origin: str = "submission"  # or adjudication, or gold
    reason: str = ""  # an adjudication's

    @property
    def pseudonym(self) -> str:
        """The annotator without a name."""
        return "gold" if self.origin == "gold" else f"annotator-{self.annotator}"


def finished(c: sqlite3.Connection, project: int, item: int | None = None, several: bool = False) -> list[Finished]:
    """Submitted and skipped annotations by item, those of one item by time. Raises UserError for a damaged segment.

    `item` picks one, `several` those that more than one person does, gold ones left out.
    """
    which = " AND i.id = :item" if item is not None else ""
    which += " AND i.n_annotators > 1 AND i.gold_json IS NULL" if several else ""
    values = {"project": project, "item": item}
    segments: dict[int, list[Typed]] = {}
    for row in c.execute(
        "SELECT s.* FROM segment s JOIN annotation a ON a.id = s.annotation JOIN item i ON i.id = a.item "
        f"WHERE i.project = :project AND a.verdict = 'corrected' AND a.state = 'submitted'{which} "
        "ORDER BY s.annotation, s.ord",
        values,
    ):
        change = Change(row["src0"], row["src1"], row["dst0"], row["dst1"])
        segments.setdefault(row["annotation"], []).append(
            Typed(change, row["src_text"], row["dst_text"], row["op"], row["type"])
        )
    found = []
    for row in c.execute(
        "SELECT a.id AS annotation, a.item, i.ext_id, i.image_sha256, m.name AS image_name, i.prompt, i.response, "
        "i.model, i.source_json AS source, a.annotator, "
        "a.rev, a.verdict, a.skip_reason, a.corrected, a.active_ms, a.opened, a.updated, i.n_annotators, "
        "i.gold_json AS gold "
        "FROM annotation a JOIN item i ON i.id = a.item JOIN image m ON m.sha256 = i.image_sha256 "
        f"WHERE i.project = :project AND a.state IN ('submitted', 'skipped'){which} ORDER BY i.id, a.updated, a.id",
        values,
    ):
        fields = dict(row)
        typed = tuple(segments.get(fields.pop("annotation"), ()))
        one = Finished(**(fields | {"source": json.loads(fields["source"]), "segments": typed}))
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


class Outcome(NamedTuple):
    """Where an item stands: a state of STATES, why it needs adjudication (verdict, segments or types), the annotation
    that counts (None while none does), and everybody's in order of time."""

    state: str
    why: str
    counts: Finished | None
    rows: tuple[Finished, ...]

    def every(self) -> list[Finished]:
        """The submissions and skips, and what counts where that is none of them."""
        extra = [self.counts] if self.counts is not None and self.counts.origin != "submission" else []
        return [*self.rows, *extra]


def outcomes(c: sqlite3.Connection, project: int, item: int | None = None, several: bool = False) -> list[Outcome]:
    """Of every item that somebody finished, gold ones too; `item` and `several` as `finished`."""
    rows = finished(c, project, item, several)
    decided = {
        row["item"]: row
        for row in c.execute(
            "SELECT d.* FROM adjudication d JOIN item i ON i.id = d.item WHERE i.project = ?", (project,)
        )
    }
    found = []
    for number, of in itertools.groupby(rows, key=lambda row: row.item):
        one = tuple(of)
        adjudicated = _adjudicated(one[0], decided[number]) if number in decided else None
        found.append(outcome(one, adjudicated))
    return found


def outcome(rows: tuple[Finished, ...], adjudicated: Finished | None = None) -> Outcome:
    """Where an item with these submissions and skips (in order of time, at least one) stands."""
    first = rows[0]
    if first.gold is not None:
        return Outcome("gold", "", gold_answer(first), rows)
    if adjudicated is not None:
        return Outcome("adjudicated", conflict(rows), adjudicated, rows)
    if first.n_annotators == 1:
        return Outcome("single", "", one_each(rows)[0], rows)
    if len(rows) < first.n_annotators:
        return Outcome("open", "", None, rows)
    why = conflict(rows)
    return Outcome("needs_adjudication", why, None, rows) if why else Outcome("agreed", "", first, rows)


def conflict(rows: Sequence[Finished]) -> str:
    """What people differ in that somebody has to settle: verdict, segments (overlap F1 below ENOUGH), types; or ""."""
    if len({row.verdict for row in rows}) > 1:
        return "verdict"
    if rows[0].verdict != "corrected":
        return ""
    found = ""
    changes = [[s.change for s in row.segments] for row in rows]
    for i, j in itertools.combinations(range(len(rows)), 2):
        pairs = overlaps.pairs(changes[i], changes[j], rows[0].response)
        if overlaps.f1(len(pairs), len(changes[i]), len(changes[j])) < ENOUGH:
            return "segments"
        if any(rows[i].segments[a].type != rows[j].segments[b].type for a, b in pairs):
            found = "types"
    return found


def _adjudicated(like: Finished, row: sqlite3.Row) -> Finished:
    """A reviewer's decision as an annotation."""
    values = json.loads(row["result_json"])
    more = {"annotator": row["reviewer"], "reason": row["reason"], "opened": row["at"], "updated": row["at"]}
    return _from_values(like, values, origin="adjudication", rev=values["rev"], **more)


def gold_answer(like: Finished) -> Finished:
    """The gold annotation of an item, in the place of somebody's."""
    return _from_values(like, json.loads(like.gold or "{}"), origin="gold", annotator=0, rev=1)


def _from_values(like: Finished, values: Mapping[str, Any], **more: Any) -> Finished:
    segments = tuple(
        Typed(Change(s["src0"], s["src1"], s["dst0"], s["dst1"]), s["src_text"], s["dst_text"], s["op"], s["type"])
        for s in values["segments"]
    )
    texts = {"verdict": values["verdict"], "skip_reason": values["skip_reason"], "corrected": values["corrected"]}
    one = like._replace(**texts, segments=segments, active_ms=0, **more)
    _check(one)
    return one


def one_each(rows: Sequence[Finished]) -> list[Finished]:
    """The earliest finished annotation of every item, skips only where there is nothing else."""
    best: dict[int, Finished] = {}
    for row in rows:
        if row.item not in best or (best[row.item].verdict == "skipped" and row.verdict != "skipped"):
            best[row.item] = row
    return list(best.values())
