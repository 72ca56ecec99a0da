"""Where two people differ, a reviewer decides: the queue, a case with both sides, the decision."""

import json
import sqlite3
from typing import Any

from rlhfv_jax.annotation import assignment, checks, collected, saving
from rlhfv_jax.annotation.assignment import Item
from rlhfv_jax.annotation.collected import Finished, Outcome
from rlhfv_jax.annotation.faults import Conflict, Invalid, NotFound
from rlhfv_jax.annotation.people import Person
from rlhfv_jax.annotation.project import Project
from rlhfv_jax.annotation.store import now

STATES = ("needs_adjudication", "agreed", "adjudicated")
SHOWN = 200


def queue(c: sqlite3.Connection, identity: int) -> dict[str, Any]:
    """{"counts": items of several people by state, "items": the first that need adjudication, the oldest first}."""
    every = collected.outcomes(c, identity, several=True)
    waiting = sorted((one for one in every if one.why and one.state == "needs_adjudication"), key=_age)
    return {
        "counts": {state: sum(one.state == state for one in every) for state in ("open", *STATES)},
        "items": [
            {"item": one.rows[0].item, "ext_id": one.rows[0].ext_id, "why": one.why, "people": len(one.rows)}
            | {"text": one.rows[0].response[:160], "at": _age(one)[0]}
            for one in waiting[:SHOWN]
        ],
    }


def _age(one: Outcome) -> tuple[float, int]:
    return max(row.updated for row in one.rows), one.rows[0].item


def case(c: sqlite3.Connection, item: Item, project: Project) -> dict[str, Any]:
    """Both sides of an item that everybody asked has finished, in an order that tells no names; raises NotFound."""
    one = _complete(c, item)
    rows = _sides(one, item, project)
    decided = c.execute("SELECT * FROM adjudication WHERE item = ?", (item.id,)).fetchone()
    return {
        "item": item.public(project.kind) | {"project": item.project},
        "state": one.state,
        "why": one.why,
        "sides": [_plain(row) for row in rows],
        "revisions": [row.rev for row in rows],
        "decision": json.loads(decided["result_json"]) | {"reason": decided["reason"]} if decided else None,
    }


def _complete(c: sqlite3.Connection, item: Item) -> Outcome:
    found = collected.outcomes(c, item.project, item.id)
    if not found or found[0].state not in STATES:
        raise NotFound("There is nothing to adjudicate: not everybody who was asked has finished this item.")
    return found[0]


def _sides(one: Outcome, item: Item, project: Project) -> list[Finished]:
    return sorted(one.rows, key=lambda row: assignment.shuffled(project.seed, f"side {item.id}", row.annotator))


def _plain(row: Finished) -> dict[str, Any]:
    segments = [segment.to_dict() for segment in row.segments]
    corrected = row.corrected if row.verdict == "corrected" else row.response
    return {"verdict": row.verdict, "skip_reason": row.skip_reason, "corrected": corrected, "segments": segments}


def decide(
    c: sqlite3.Connection, person: Person, item: Item, project: Project, body: dict[str, Any], result: dict[str, Any]
) -> dict[str, Any]:
    """Stores a decision in the place of an earlier one, which is kept within it; {"rev"}. In the writer's transaction.

    Raises Conflict where somebody changed a side or decided meanwhile.
    """
    old = c.execute("SELECT * FROM adjudication WHERE item = ?", (item.id,)).fetchone()
    before: dict[str, Any] = json.loads(old["result_json"]) if old else {"rev": 0, "earlier": []}
    base, op_id = checks.operation(body)
    if before.get("op_id") == op_id:
        return {"rev": before["rev"]}
    rows = _sides(_complete(c, item), item, project)
    if base != before["rev"] or body.get("revisions") != [row.rev for row in rows]:
        raise Conflict("Somebody changed this item meanwhile; look at it again.", rev=before["rev"])
    earlier: list[Any] = before.pop("earlier")
    if old:
        earlier = [*earlier, before | {"reviewer": old["reviewer"], "reason": old["reason"], "at": old["at"]}]
    sides = {row.pseudonym: row.rev for row in rows}
    stored = {"rev": before["rev"] + 1, "op_id": op_id, "of": sides, "earlier": earlier}
    text = json.dumps(result | stored, ensure_ascii=False)
    reason = reason_of(body)
    c.execute(
        "INSERT OR REPLACE INTO adjudication(item, reviewer, result_json, reason, at) VALUES (?, ?, ?, ?, ?)",
        (item.id, person.id, text, reason, now()),
    )
    return {"rev": stored["rev"]}


def reason_of(body: dict[str, Any]) -> str:
    """The reviewer's words; raises Invalid."""
    reason = body.get("reason", "")
    if (
        not isinstance(reason, str)
        or len(reason) > 1000
        or "\0" in reason
        or any("\ud800" <= s <= "\udfff" for s in reason)
    ):
        raise Invalid("reason: expected text of at most 1000 characters.", [("reason", "expected text")])
    return reason.strip()


def result_of(body: dict[str, Any], item: Item, project: Project) -> dict[str, Any]:
    """The decision of a request as an annotation: a skip with its reason, or a checked submission; raises Invalid."""
    if body.get("verdict") == "skipped":
        skip = body.get("skip")
        reason = checks.skip_reason(skip if isinstance(skip, dict) else {})
        return {"verdict": "skipped", "skip_reason": reason, "corrected": item.response, "segments": [], "cuts": {}}
    wanted = checks.save_request(body | {"confirm": True, "state": "submitted"}, item.response)
    if project.kind != "correction":
        wanted = checks.replaced(wanted, corrected=item.response)
    segments = saving.segments_of(wanted, item, project)
    checks.submission(wanted, segments, item.response, project, [])
    return {
        "verdict": wanted.verdict or "corrected",
        "skip_reason": "",
        "corrected": wanted.corrected,
        "segments": [segment.to_dict() for segment in segments],
        "cuts": {"splits": wanted.cuts.splits, "merges": wanted.cuts.merges},
    }
