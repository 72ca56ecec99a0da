"""Who works on what: items, leases with an end, progress. Functions of a connection; leases run in the writer."""

import functools
import hashlib
import json
import sqlite3
from typing import Any, NamedTuple

from rlhfv_jax.annotation import project as projects
from rlhfv_jax.annotation.faults import Forbidden, NotFound
from rlhfv_jax.annotation.people import Person
from rlhfv_jax.annotation.project import Project
from rlhfv_jax.annotation.store import now

DONE = ("submitted", "skipped")
MOST_OPEN = 20  # leases of one person


class Item(NamedTuple):
    """What is annotated; `prefill` is the text to start from where it is not the response itself."""

    id: int
    project: int
    ext_id: str
    image_sha256: str
    prompt: str
    response: str
    prefill: str | None
    model: str
    source: dict[str, Any]
    n_annotators: int

    def public(self, kind: str) -> dict[str, Any]:
        """What an annotator sees; whose answer it is stays hidden where models are compared."""
        shown = {
            "id": self.id,
            "ext_id": self.ext_id,
            "image": self.image_sha256,
            "prompt": self.prompt,
            "response": self.response,
            "prefill": self.prefill,
        }
        if kind == "mhumaneval":
            return shown | {"ext_id": f"#{self.id}"}
        return shown | {"model": self.model}


def item(c: sqlite3.Connection, identity: int) -> Item:
    """An item; raises NotFound."""
    row = c.execute(
        "SELECT id, project, ext_id, image_sha256, prompt, response, prefill, model, source_json AS source, "
        "n_annotators FROM item WHERE id = ?",
        (identity,),
    ).fetchone()
    if row is None:
        raise NotFound(f"There is no item {identity}.")
    return Item(**(dict(row) | {"source": json.loads(row["source"])}))


def add_project(c: sqlite3.Connection, name: str, settings: Project) -> int:
    """A new project's id."""
    config = json.dumps(projects.to_dict(settings))
    cursor = c.execute(
        "INSERT INTO project(name, kind, config_json, created) VALUES (?, ?, ?, ?)",
        (name, settings.kind, config, now()),
    )
    return int(cursor.lastrowid or 0)


def all_projects(c: sqlite3.Connection) -> list[tuple[int, str, Project]]:
    """(id, name, settings) of every project."""
    rows = c.execute("SELECT id, name, config_json FROM project ORDER BY id")
    return [(row["id"], row["name"], projects.from_dict(json.loads(row["config_json"]), row["name"])) for row in rows]


def project_of(c: sqlite3.Connection, identity: int) -> Project:
    """A project's settings; raises NotFound."""
    row = c.execute("SELECT name, config_json FROM project WHERE id = ?", (identity,)).fetchone()
    if row is None:
        raise NotFound(f"There is no project {identity}.")
    return projects.from_dict(json.loads(row["config_json"]), row["name"])


@functools.lru_cache(maxsize=2**17)
def shuffled(seed: int, person: int | str, identity: int | str) -> bytes:
    """A place in an annotator's own order, the same every time."""
    return hashlib.sha256(f"{seed}/{person}/{identity}".encode()).digest()


def draw_overlap(c: sqlite3.Connection, project: int, after: int, share: float, seed: int) -> int:
    """Gives a share of the items with ids above `after` to two annotators, drawn by the seed; how many. In the writer.

    Gold items and those that several people do anyway are not drawn from.
    """
    rows = c.execute(
        "SELECT id, ext_id FROM item WHERE project = ? AND id > ? AND n_annotators = 1 AND gold_json IS NULL",
        (project, after),
    ).fetchall()
    ordered = sorted(rows, key=lambda row: shuffled(seed, "overlap", row["ext_id"]))
    drawn = ordered[: round(share * len(rows))]
    c.executemany("UPDATE item SET n_annotators = 2 WHERE id = ?", [(row["id"],) for row in drawn])
    return len(drawn)


GOLD = """
    SELECT i.id FROM item i WHERE i.project = :project AND i.gold_json IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM annotation a WHERE a.item = i.id AND a.annotator = :person)
    AND NOT EXISTS (SELECT 1 FROM lease l WHERE l.item = i.id AND l.annotator = :person AND l.expires > :now)
"""
# Items with a place: `filled` and its index keep those out that are done, so that a late search is no longer one.
FREE = """
    SELECT i.id FROM item i WHERE i.project = :project AND i.gold_json IS NULL AND i.filled < i.n_annotators
    AND NOT EXISTS (SELECT 1 FROM annotation a WHERE a.item = i.id AND a.annotator = :person)
    AND i.filled + (SELECT COUNT(*) FROM lease l WHERE l.item = i.id AND l.annotator <> :person AND l.expires > :now)
      < i.n_annotators
"""


def next_item(c: sqlite3.Connection, person: Person, identity: int, settings: Project, after: int = 0) -> int | None:
    """Leases the next item: first what the person has open, `after` left out, then what is free; None at the end.

    Runs in the writer's transaction, so one place never goes to two people.
    """
    mine = [
        row["id"]
        for row in c.execute(
            "SELECT i.id FROM item i JOIN lease l ON l.item = i.id AND l.annotator = ? LEFT JOIN annotation a "
            "ON a.item = i.id AND a.annotator = l.annotator WHERE i.project = ? "
            "AND (l.expires > ? OR a.state = 'draft') ORDER BY i.id",
            (person.id, identity, now()),
        )
    ]
    waiting = [i for i in mine if i > after] or [i for i in mine if i != after]
    if waiting and (not after or len(mine) >= MOST_OPEN):
        lease(c, person, waiting[0], settings)
        return int(waiting[0])
    values = {"project": identity, "person": person.id, "now": now()}
    if gold := _gold_turn(c, person, settings, values):
        lease(c, person, gold, settings)
        return gold
    if settings.kind == "mhumaneval":
        c.create_function("shuffled", 1, lambda i: shuffled(settings.seed, person.id, i), deterministic=True)
        row = c.execute(f"{FREE} ORDER BY i.priority DESC, shuffled(i.id) LIMIT 1", values).fetchone()
    else:
        row = c.execute(f"{FREE} ORDER BY i.priority DESC, i.id LIMIT 1", values).fetchone()
    found = row["id"] if row else (waiting[0] if waiting else None)
    if found is not None:
        lease(c, person, found, settings)
    return found


def _gold_turn(c: sqlite3.Connection, person: Person, settings: Project, values: dict[str, Any]) -> int | None:
    """A gold item where it is time for one: with the chance `settings.gold`, drawn for each of a person's places, in an
    order of the person's own, so that neither place nor neighbors tell."""
    if not settings.gold:
        return None
    (place,) = c.execute(
        "SELECT (SELECT COUNT(*) FROM annotation WHERE annotator = :person) + (SELECT COUNT(*) FROM lease l "
        "WHERE l.annotator = :person AND NOT EXISTS (SELECT 1 FROM annotation a WHERE a.item = l.item "
        "AND a.annotator = l.annotator))",
        values,
    ).fetchone()
    if int.from_bytes(shuffled(settings.seed, f"{person.id}/gold", place)[:4], "big") >= settings.gold * 2**32:
        return None
    rows = [row["id"] for row in c.execute(GOLD, values)]
    return min(rows, key=lambda i: shuffled(settings.seed, f"{person.id}/gold", f"item {i}"), default=None)


def lease(c: sqlite3.Connection, person: Person, identity: int, settings: Project) -> None:
    """Takes an item, or keeps it for longer."""
    expires = now() + 60 * settings.lease_minutes
    c.execute(
        "INSERT INTO lease VALUES (?, ?, ?) ON CONFLICT(item, annotator) DO UPDATE SET expires = excluded.expires",
        (identity, person.id, expires),
    )


def release(c: sqlite3.Connection, person: Person, identity: int) -> None:
    """Gives an item back; a draft stays."""
    c.execute("DELETE FROM lease WHERE item = ? AND annotator = ?", (identity, person.id))


def demand_access(c: sqlite3.Connection, person: Person, identity: int) -> None:
    """Raises Forbidden unless the person was given the item, or may see everybody's."""
    if person.role != "annotator":
        return
    row = c.execute(
        "SELECT 1 FROM lease WHERE item = :i AND annotator = :p UNION ALL "
        "SELECT 1 FROM annotation WHERE item = :i AND annotator = :p LIMIT 1",
        {"i": identity, "p": person.id},
    ).fetchone()
    if row is None:
        raise Forbidden("This item was not given to you.")


def blind(c: sqlite3.Connection, identity: int) -> bool:
    """Whether several people do the item and not all have finished: until then nobody sees anybody else's work."""
    row = c.execute(
        "SELECT 1 FROM item WHERE id = ? AND n_annotators > 1 AND n_annotators > filled", (identity,)
    ).fetchone()
    return row is not None


def leases(c: sqlite3.Connection, identity: int) -> list[dict[str, Any]]:
    """Who holds what, until when."""
    rows = c.execute(
        "SELECT l.item, i.ext_id, p.name, l.annotator, l.expires FROM lease l JOIN item i ON i.id = l.item "
        "JOIN annotator p ON p.id = l.annotator WHERE i.project = ? ORDER BY l.expires",
        (identity,),
    )
    return [dict(row) | {"seconds_left": round(row["expires"] - now())} for row in rows]


def progress(c: sqlite3.Connection, person: Person, identity: int) -> dict[str, int]:
    """Counts: of the project, and of the person, today's apart (a day of the server's clock in UTC)."""
    today = now() // 86400 * 86400
    mine = c.execute(
        "SELECT COUNT(*) FILTER (WHERE a.state = 'submitted'), COUNT(*) FILTER (WHERE a.state = 'skipped'), "
        "COUNT(*) FILTER (WHERE a.state = 'draft'), COUNT(*) FILTER (WHERE a.state <> 'draft' AND a.updated >= ?) "
        "FROM annotation a JOIN item i ON i.id = a.item WHERE a.annotator = ? AND i.project = ?",
        (today, person.id, identity),
    ).fetchone()
    # A gold item has as many places as people have done it, so that a count that stands still gives none away.
    items, places, filled = c.execute(
        "SELECT COUNT(*), COALESCE(SUM(n_annotators) FILTER (WHERE gold_json IS NULL), 0) + (SELECT COUNT(*) FROM "
        "annotation a JOIN item j ON j.id = a.item WHERE j.project = :p AND j.gold_json IS NOT NULL AND a.state "
        "IN ('submitted', 'skipped')), (SELECT COUNT(*) FROM annotation a JOIN item j "
        "ON j.id = a.item WHERE j.project = :p AND a.state IN ('submitted', 'skipped')) FROM item "
        "WHERE project = :p",
        {"p": identity},
    ).fetchone()
    names = ("submitted", "skipped", "drafts", "today")
    return dict(zip(names, mine, strict=True)) | {"items": items, "places": places, "filled": filled}
