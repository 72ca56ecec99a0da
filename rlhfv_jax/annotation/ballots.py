"""Blind votes on a comparison: everybody's own order of the answers, and names only after the vote."""

import hashlib
import json
import secrets
import sqlite3
from pathlib import Path
from typing import Any

from rlhfv_jax.annotation import exports
from rlhfv_jax.annotation.faults import Conflict, Forbidden, Invalid, NotFound
from rlhfv_jax.annotation.people import Person
from rlhfv_jax.annotation.store import Store, now
from rlhfv_jax.comparing import page, sets, votes
from rlhfv_jax.comparing.sets import TIE, Comparison, Item
from rlhfv_jax.comparing.votes import Vote
from rlhfv_jax.errors import UserError

# Made when the first comparison is served. `seed` shuffles; it stays in the store.
_TABLES = (
    "CREATE TABLE IF NOT EXISTS comparison(digest TEXT PRIMARY KEY, seed TEXT NOT NULL, names_json TEXT NOT NULL, "
    "created REAL NOT NULL) STRICT",
    "CREATE TABLE IF NOT EXISTS vote(comparison TEXT NOT NULL REFERENCES comparison(digest), question TEXT NOT NULL, "
    "voter INTEGER NOT NULL REFERENCES annotator(id), choice TEXT NOT NULL, shown_json TEXT NOT NULL, "
    "at REAL NOT NULL, PRIMARY KEY(comparison, question, voter)) STRICT, WITHOUT ROWID",
)


class Ballots:
    """A comparison over an open store, as each person may see it.

    Where it is `blind`, an item's answers come in an order of the person's own, without names or marks, until the
    person has voted on it; items with fewer than two answers are left out.
    """

    def __init__(self, store: Store, comparison: Comparison, blind: bool):
        self.comparison, self.blind, self.digest = comparison, blind, comparison.digest
        self.items = [item for item in comparison.items if not blind or _voted_on(item)]
        self._seed = store.write(self._claim)

    def _claim(self, c: sqlite3.Connection) -> str:
        """The comparison's seed, which a restart with the same answers finds again."""
        for table in _TABLES:
            c.execute(table)
        row = (self.digest, secrets.token_hex(16), json.dumps(self.comparison.names), now())
        c.execute("INSERT INTO comparison VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", row)
        (seed,) = c.execute("SELECT seed FROM comparison WHERE digest = ?", (self.digest,)).fetchone()
        return seed

    def summary(self, c: sqlite3.Connection, person: Person) -> dict[str, Any]:
        """Sizes, and how many items the person voted on."""
        voted = len(self._choices(c, person)) if self.blind else 0
        return {
            "items": len(self.items),
            "models": len(self.comparison.names),
            "blind": self.blind,
            "voted": voted,
        }

    def shown(self, c: sqlite3.Connection, person: Person) -> dict[str, Any]:
        """Everything that the view needs and this person may know."""
        choices = self._choices(c, person) if self.blind else {}
        return {
            "title": "Blind vote" if self.blind else "Comparison",
            "names": None if self.blind else self.comparison.names,
            "models": len(self.comparison.names),
            "blind": self.blind,
            "types": page.types(self.comparison),
            "notes": sets.notes(self.comparison, self.blind),
            "items": [self._item(i, person, choices.get(item.id)) for i, item in enumerate(self.items)],
        }

    def vote(self, c: sqlite3.Connection, person: Person, number: int, choice: int | str) -> dict[str, Any]:
        """Keeps a vote and returns the item with its names. A vote stands: whoever knows the names is not blind."""
        if not self.blind:
            raise Forbidden("This comparison is not blind, so it takes no votes.")
        item = self.item(number)
        order = self._order(item, person)
        if choice != TIE and not (type(choice) is int and 0 <= choice < len(order)):
            raise Invalid(f"choice: expected 0 to {len(order) - 1} or {TIE!r}.", [("choice", "no such answer")])
        shown = [self.comparison.names[k] for k in order]
        name = TIE if choice == TIE else shown[int(choice)]
        before = self._choices(c, person).get(item.id)
        if before not in (None, name):
            raise Conflict("You voted on this question before; a vote stands once the names were shown.")
        if before is None:
            row = (self.digest, item.id, person.id, name, json.dumps(shown), now())
            c.execute("INSERT INTO vote VALUES (?, ?, ?, ?, ?, ?)", row)
        return self._item(number, person, name)

    def results(self, c: sqlite3.Connection, person: Person) -> dict[str, Any]:
        """Everybody's win rates, for who has voted on every question."""
        if not self.blind or len(self._choices(c, person)) < len(self.items):
            raise Forbidden("Results are shown to those who have voted on every question.")
        return votes.rates([vote for vote, _ in _stored(c, self.digest)])

    def item(self, number: int) -> Item:
        """An item by its place; raises NotFound."""
        if not 0 <= number < len(self.items):
            raise NotFound("There is no such question in the comparison.")
        return self.items[number]

    def _choices(self, c: sqlite3.Connection, person: Person) -> dict[str, str]:
        of = (self.digest, person.id)
        rows = c.execute("SELECT question, choice FROM vote WHERE comparison = ? AND voter = ?", of)
        return {row["question"]: row["choice"] for row in rows}

    def _order(self, item: Item, person: Person) -> list[int]:
        """The models that answered, sorted by a keyed hash: for each person and question an order of its own."""

        def key(k: int) -> bytes:
            return hashlib.sha256(json.dumps([self._seed, person.id, item.id, k]).encode()).digest()

        return sorted((k for k, answer in enumerate(item.answers) if answer), key=key)

    def _item(self, number: int, person: Person, choice: str | None) -> dict[str, Any]:
        item, names = self.items[number], self.comparison.names
        found: dict[str, Any] = {"number": number, "id": item.id, "prompt": item.prompt}
        found["image"] = number if item.question.image is not None else None
        answers = page.answers(item)
        if not self.blind:
            named = [a and a | {"name": name} for name, a in zip(names, answers, strict=True)]
            return found | {"answers": named}
        order = self._order(item, person)
        if choice is None:
            return found | {"answers": [(answers[k] or {}) | {"spans": None} for k in order]}
        told = [(answers[k] or {}) | {"name": names[k]} for k in order]
        return found | {"answers": told, "choice": TIE if choice == TIE else [names[k] for k in order].index(choice)}


def _voted_on(item: Item) -> bool:
    return sum(answer is not None for answer in item.answers) > 1


def _stored(c: sqlite3.Connection, digest: str = "") -> list[tuple[Vote, float]]:
    """The stored votes with their times; a voter is a pseudonym."""
    if c.execute("SELECT 1 FROM sqlite_master WHERE name = 'vote'").fetchone() is None:
        return []
    rows = c.execute(
        "SELECT v.* FROM vote v JOIN comparison o ON o.digest = v.comparison WHERE ? IN ('', v.comparison) "
        "ORDER BY o.created, v.comparison, v.voter, v.at, v.question",
        (digest,),
    )
    return [(_vote(row), row["at"]) for row in rows]


def _vote(row: sqlite3.Row) -> Vote:
    shown = tuple(json.loads(row["shown_json"]))
    return Vote(row["comparison"], row["question"], f"annotator-{row['voter']}", row["choice"], shown)


def export(c: sqlite3.Connection, path: Path) -> int:
    """Writes every vote, one JSON object a line, and returns their number; raises UserError where there is none."""
    found = _stored(c)
    if not found:
        raise UserError("Nobody has voted yet, so there are no votes to export.")
    lines = [vote.to_dict() | {"at": at} for vote, at in found]
    exports.write(path, exports.json_lines(lines))
    return len(found)
