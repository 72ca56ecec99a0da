"""A judge's replies on disk: one JSON line each, written before anything else happens, so that none is paid twice.

A line has `key` (what was asked, see `key_of`), `id` (the item), `ask` (0, or the number of the repeated ask), `model`
(asked for), `served` (as the server names itself), `content`, `finish_reason`, `usage` and `time` (UTC).
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from rlhfv_jax.endpoint import Reply, Request
from rlhfv_jax.errors import UserError

FIELDS = {"key": str, "content": str, "model": str}


def key_of(model: str, request: Request, ask: int) -> str:
    """sha256 of the model, the messages, the settings and the number of the ask: what makes a reply reusable."""
    asked = {"model": model, "messages": list(request.messages), "settings": dict(request.settings), "ask": ask}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Replies:
    """The replies of one file, by key; a context manager. One process at a time writes to a file.

    A last line that a kill tore is taken out when the file is opened. Raises UserError on any other line that is no
    reply, and where another process has the file open.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise UserError(f"{path} is in use by another evaluation; wait for it, or give another file.") from error
        self._file.seek(0)
        stored = self._file.read()
        whole = stored.rfind(b"\n") + 1
        if whole < len(stored):
            self._file.truncate(whole)
        self._by_key = {line["key"]: line for line in _parse(stored[:whole], path)}

    def __enter__(self) -> "Replies":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def get(self, key: str) -> Mapping[str, Any] | None:
        """The stored line of a key."""
        return self._by_key.get(key)

    def add(self, key: str, model: str, request: Request, ask: int, reply: Reply) -> None:
        """Stores a reply; it is on disk when this returns."""
        line = {
            "key": key,
            "id": request.id,
            "ask": ask,
            "model": model,
            "served": reply.model,
            "content": reply.text,
            "finish_reason": reply.finish_reason,
            "usage": dict(reply.usage),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._by_key[key] = line


def _parse(stored: bytes, path: Path) -> list[dict[str, Any]]:
    lines = []
    for number, text in enumerate(stored.splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: this is no JSON ({error}); take the line out.") from error
        for name, kind in FIELDS.items():
            if not isinstance(line, dict) or not isinstance(line.get(name), kind):
                raise UserError(f"{path}, line {number}: a judge's reply needs the field {name!r}, a {kind.__name__}.")
        lines.append(line)
    return lines
