"""Who may come in: people, their tokens (only hashes are stored), their sessions."""

import hashlib
import secrets
import sqlite3
from typing import NamedTuple

from rlhfv_jax.annotation.faults import Forbidden, Unauthorized
from rlhfv_jax.annotation.store import Store, now
from rlhfv_jax.errors import UserError

ROLES = ("annotator", "reviewer", "admin")
SESSION_SECONDS = 14 * 24 * 3600


class Person(NamedTuple):
    """Somebody who is signed in."""

    id: int
    name: str
    role: str

    def demand(self, *roles: str) -> None:
        """Raises Forbidden unless the person has one of the roles."""
        if self.role not in roles:
            raise Forbidden(f"This needs the role {' or '.join(roles)}.")


def sha(secret: str) -> str:
    """What is stored of a token or a session."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def add(store: Store, name: str, role: str = "annotator") -> str:
    """A new person's token, which is shown this once; raises UserError where the name is taken or unfit."""
    name = name.strip()
    if not 0 < len(name) <= 80 or not name.isprintable():
        raise UserError(f"A person's name has 1 to 80 printable characters, found {name[:90]!r}.")
    if role not in ROLES:
        raise UserError(f"There is no role {role!r}; choose one of {', '.join(ROLES)}.")
    token = secrets.token_urlsafe(32)

    def work(c: sqlite3.Connection) -> str:
        try:
            c.execute(
                "INSERT INTO annotator(name, role, token_sha256, created) VALUES (?, ?, ?, ?)",
                (name, role, sha(token), now()),
            )
        except sqlite3.IntegrityError as error:
            raise UserError(f"There is already somebody called {name!r}; choose another name.") from error
        return token

    return store.write(work)


def ensured(c: sqlite3.Connection, name: str, number: int = 0, role: str = "annotator") -> int:
    """The number of the person of this name, added where there is nobody; they sign in once given a new token.

    A newcomer gets `number` where it is free. Raises UserError for an unfit name.
    """
    name = name.strip()
    if not 0 < len(name) <= 80 or not name.isprintable():
        raise UserError(f"A person's name has 1 to 80 printable characters, found {name[:90]!r}.")
    if row := c.execute("SELECT id FROM annotator WHERE name = ?", (name,)).fetchone():
        return int(row["id"])
    taken = c.execute("SELECT 1 FROM annotator WHERE id = ?", (number,)).fetchone()
    cursor = c.execute(
        "INSERT INTO annotator(id, name, role, token_sha256, created) VALUES (?, ?, ?, ?, ?)",
        (None if taken or not number else number, name, role, sha(secrets.token_urlsafe(32)), now()),
    )
    return int(cursor.lastrowid or 0)


def new_token(store: Store, name: str) -> str:
    """A fresh token in place of the old one; whoever used the old one is signed out.

    Raises UserError for an unknown name.
    """
    token = secrets.token_urlsafe(32)

    def work(c: sqlite3.Connection) -> str:
        row = c.execute("SELECT id FROM annotator WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise UserError(f"There is nobody called {name!r}.")
        c.execute("UPDATE annotator SET token_sha256 = ?, disabled = 0 WHERE id = ?", (sha(token), row["id"]))
        c.execute("DELETE FROM session WHERE annotator = ?", (row["id"],))
        return token

    return store.write(work)


def disable(c: sqlite3.Connection, person: int, disabled: bool) -> None:
    """Shuts a person out at once, or lets them in again."""
    c.execute("UPDATE annotator SET disabled = ? WHERE id = ?", (int(disabled), person))
    if disabled:
        c.execute("DELETE FROM session WHERE annotator = ?", (person,))
        c.execute("DELETE FROM lease WHERE annotator = ?", (person,))


def listed(c: sqlite3.Connection) -> list[dict]:
    """Everybody, with what they have done."""
    rows = c.execute(
        "SELECT p.id, p.name, p.role, p.disabled, (SELECT COUNT(*) FROM annotation a WHERE a.annotator = p.id "
        "AND a.state = 'submitted') AS submitted FROM annotator p ORDER BY p.id"
    )
    return [dict(row) for row in rows]


def sign_in(store: Store, token: str) -> tuple[str, Person]:
    """(session secret, person) for a valid token; raises Unauthorized."""
    row = store.read.execute(
        "SELECT id, name, role FROM annotator WHERE token_sha256 = ? AND disabled = 0", (sha(token),)
    ).fetchone()
    if row is None:
        raise Unauthorized("This token is not known here, or was withdrawn.")
    secret = secrets.token_urlsafe(32)

    def work(c: sqlite3.Connection) -> None:
        c.execute("DELETE FROM session WHERE expires < ?", (now(),))
        c.execute("INSERT INTO session VALUES (?, ?, ?)", (sha(secret), row["id"], now() + SESSION_SECONDS))

    store.write(work)
    return secret, Person(*row)


def sign_out(store: Store, secret: str) -> None:
    """Ends a session."""
    store.write(lambda c: c.execute("DELETE FROM session WHERE sha256 = ?", (sha(secret),)) and None)


def who(c: sqlite3.Connection, secret: str) -> Person:
    """The person of a session; raises Unauthorized."""
    row = c.execute(
        "SELECT p.id, p.name, p.role FROM session s JOIN annotator p ON p.id = s.annotator "
        "WHERE s.sha256 = ? AND s.expires > ? AND p.disabled = 0",
        (sha(secret), now()),
    ).fetchone()
    if row is None:
        raise Unauthorized("Please sign in.")
    return Person(*row)
