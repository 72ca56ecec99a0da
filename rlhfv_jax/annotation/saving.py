"""Saving, submitting, skipping, reopening, and the history of it: append-only events, one revision after another.

Every function runs in the writer's transaction. An operation sent twice (`op_id`) is done once and answered alike; a
save that starts from another revision than the stored one is a Conflict, with the stored copy.
"""

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from rlhfv_jax.annotation import assignment, checks
from rlhfv_jax.annotation.assignment import Item
from rlhfv_jax.annotation.checks import Save, Typed
from rlhfv_jax.annotation.faults import Conflict, Forbidden, Invalid, NotFound
from rlhfv_jax.annotation.people import Person
from rlhfv_jax.annotation.project import Project
from rlhfv_jax.annotation.store import now


def segments_of(save: Save, item: Item, project: Project) -> list[Typed]:
    """The canonical segments of a request; raises Invalid."""
    find = checks.corrections if project.kind == "correction" else checks.labels
    return find(save, item.response, project)


def save(
    c: sqlite3.Connection, person: Person, item: Item, project: Project, request: Save, segments: Sequence[Typed]
) -> dict[str, Any]:
    """Stores a draft or a submission; returns rev, state and segments."""
    if reply := _repeated(c, person, item, request.op_id):
        return reply
    row = _current(c, person, item, request.base_rev, ("draft", ""))
    verdict = request.verdict
    if request.state == "submitted":
        recent = [
            r["verdict"]
            for r in c.execute(
                "SELECT verdict FROM annotation WHERE annotator = ? AND state = 'submitted' "
                "ORDER BY updated DESC LIMIT 5",
                (person.id,),
            )
        ]
        checks.submission(request, segments, item.response, project, recent)
        verdict = request.verdict or "corrected"
    payload = {
        "state": request.state,
        "verdict": verdict,
        "skip_reason": "",
        "corrected": request.corrected,
        "cuts": {"splits": request.cuts.splits, "merges": request.cuts.merges},
        "segments": [segment.to_dict() for segment in segments],
        "active_ms": max(request.active_ms, row["active_ms"] if row else 0),
    }
    return _store(c, person, item, project, row, payload, segments, request.op_id, request.state)


def skip(
    c: sqlite3.Connection, person: Person, item: Item, project: Project, base: int, op_id: str, reason: str
) -> dict[str, Any]:
    """Puts an item aside with a reason; what was typed stays."""
    if reply := _repeated(c, person, item, op_id):
        return reply
    row = _current(c, person, item, base, ("draft", ""))
    payload = copy(c, row) if row else {"corrected": item.prefill or item.response, "cuts": {}, "segments": []}
    payload |= {"state": "skipped", "verdict": "skipped", "skip_reason": reason}
    return _store(c, person, item, project, row, payload, None, op_id, "skipped")


def reopen(
    c: sqlite3.Connection, person: Person, item: Item, project: Project, base: int, op_id: str
) -> dict[str, Any]:
    """Makes a finished item a draft again."""
    if reply := _repeated(c, person, item, op_id):
        return reply
    row = _current(c, person, item, base, assignment.DONE)
    if c.execute("SELECT 1 FROM adjudication WHERE item = ?", (item.id,)).fetchone():
        raise Forbidden("A reviewer has decided about this item; it stays as it is.")
    if row is None:
        raise NotFound("There is nothing to reopen.")
    payload = copy(c, row) | {"state": "draft", "verdict": "", "skip_reason": ""}
    return _store(c, person, item, project, row, payload, None, op_id, "reopened")


def find(c: sqlite3.Connection, person: int, item: int) -> sqlite3.Row | None:
    """A person's annotation of an item."""
    return c.execute("SELECT * FROM annotation WHERE item = ? AND annotator = ?", (item, person)).fetchone()


def copy(c: sqlite3.Connection, row: sqlite3.Row) -> dict[str, Any]:
    """A stored annotation as plain values."""
    segments = c.execute(
        "SELECT src0, src1, dst0, dst1, src_text, dst_text, op, type FROM segment WHERE annotation = ? ORDER BY ord",
        (row["id"],),
    )
    return {
        "rev": row["rev"],
        "state": row["state"],
        "verdict": row["verdict"],
        "skip_reason": row["skip_reason"],
        "corrected": row["corrected"],
        "cuts": json.loads(row["cuts_json"]),
        "active_ms": row["active_ms"],
        "updated": row["updated"],
        "segments": [dict(segment) for segment in segments],
    }


def history(c: sqlite3.Connection, person: int, item: int) -> list[dict[str, Any]]:
    """Every revision of a person's annotation, the newest first."""
    rows = c.execute(
        "SELECT e.rev, e.kind, e.at, e.payload_json FROM event e JOIN annotation a ON a.id = e.annotation "
        "WHERE a.item = ? AND a.annotator = ? ORDER BY e.rev DESC",
        (item, person),
    )
    return [{"rev": r["rev"], "kind": r["kind"], "at": r["at"]} | json.loads(r["payload_json"]) for r in rows]


def mine(c: sqlite3.Connection, person: int, project: int, state: str, limit: int, offset: int) -> list[dict[str, Any]]:
    """A person's items, the latest first, with the start of their texts."""
    rows = c.execute(
        "SELECT i.id, i.ext_id, substr(i.prompt, 1, 120) AS prompt, substr(a.corrected, 1, 160) AS text, a.state, "
        "a.verdict, a.skip_reason, a.rev, a.updated, "
        "(SELECT COUNT(*) FROM segment s WHERE s.annotation = a.id) AS segments "
        "FROM annotation a JOIN item i ON i.id = a.item WHERE a.annotator = ? AND i.project = ? "
        "AND (? = '' OR a.state = ?) ORDER BY a.updated DESC, a.id DESC LIMIT ? OFFSET ?",
        (person, project, state, state, limit, offset),
    )
    return [dict(row) for row in rows]


def _repeated(c: sqlite3.Connection, person: Person, item: Item, op_id: str) -> dict[str, Any] | None:
    row = c.execute(
        "SELECT e.rev, e.payload_json, a.item, a.annotator FROM event e JOIN annotation a ON a.id = e.annotation "
        "WHERE e.op_id = ?",
        (op_id,),
    ).fetchone()
    if row is None:
        return None
    if (row["item"], row["annotator"]) != (item.id, person.id):
        raise Invalid("This operation's id was used for something else.", [("op_id", "was used before")])
    payload = json.loads(row["payload_json"])
    return {"rev": row["rev"], "state": payload["state"], "segments": payload["segments"]}


def _current(c: sqlite3.Connection, person: Person, item: Item, base: int, states: Sequence[str]) -> sqlite3.Row | None:
    """The stored annotation, which must be the one that the request starts from and in one of the states."""
    row = find(c, person.id, item.id)
    if row is None:
        held = c.execute("SELECT 1 FROM lease WHERE item = ? AND annotator = ?", (item.id, person.id)).fetchone()
        if held is None:
            raise Forbidden("This item was not given to you, or its time ran out and somebody else may have it.")
    if base != (row["rev"] if row else 0) or (row and row["state"] not in states):
        stored = copy(c, row) if row else None
        raise Conflict("The stored copy is another.", rev=row["rev"] if row else 0, server_copy=stored)
    return row


def _store(
    c: sqlite3.Connection,
    person: Person,
    item: Item,
    project: Project,
    row: sqlite3.Row | None,
    payload: dict[str, Any],
    segments: Sequence[Typed] | None,
    op_id: str,
    kind: str,
) -> dict[str, Any]:
    """The next revision and its event; `segments` None leaves the stored ones."""
    rev = (row["rev"] if row else 0) + 1
    values = (
        *(rev, payload["state"], payload["corrected"], json.dumps(payload["cuts"]), payload["verdict"]),
        *(payload["skip_reason"], payload.get("active_ms", 0), now()),
    )
    if row:
        identity = row["id"]
        c.execute(
            "UPDATE annotation SET rev = ?, state = ?, corrected = ?, cuts_json = ?, verdict = ?, skip_reason = ?, "
            "active_ms = ?, updated = ? WHERE id = ?",
            (*values, identity),
        )
    else:
        identity = c.execute(
            "INSERT INTO annotation(rev, state, corrected, cuts_json, verdict, skip_reason, active_ms, updated, item, "
            "annotator, opened) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*values, item.id, person.id, now()),
        ).lastrowid
    if segments is not None:
        if row:
            c.execute("DELETE FROM segment WHERE annotation = ?", (identity,))
        c.executemany(
            "INSERT INTO segment VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(identity, i, *s.change, s.src_text, s.dst_text, s.op, s.type) for i, s in enumerate(segments)],
        )
    payload = {name: value for name, value in payload.items() if name not in ("rev", "updated")}
    c.execute(
        "INSERT INTO event(annotation, rev, kind, payload_json, at, op_id) VALUES (?, ?, ?, ?, ?, ?)",
        (identity, rev, kind, json.dumps(payload, ensure_ascii=False), now(), op_id),
    )
    if payload["state"] == "draft":
        assignment.lease(c, person, item.id, project)
    else:
        assignment.release(c, person, item.id)
    return {"rev": rev, "state": payload["state"], "segments": payload["segments"]}
