"""A file of answers, in the questions' order, that a killed run leaves whole and a second run completes.

Beside `A.jsonl` stands `A.jsonl.manifest.json`, what the answers depend on; a file of anything else is refused. Answers
that come before their turn, or stand after one that a second run asks again, are in `A.jsonl.kept` until the run has
finished: no answer that came is ever asked for twice. `A.jsonl.lock` is held by the run that writes.
"""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rlhfv_jax.errors import UserError

Line = dict[str, Any]


class AnswerFile:
    """The answers to `ids`; a context manager.

    `facts` is what the answers depend on (digests, settings, model), JSON values by name. `missing` are the ids still
    to be answered: never answered, or failed before. Raises UserError where the file holds answers to other facts, is
    damaged anywhere but in its last line, or is being written by another run.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], ids: Sequence[str]):
        self._path, self._ids = path, list(ids)
        self._manifest, self._kept = (path.with_name(path.name + end) for end in (".manifest.json", ".kept"))
        self._waiting: dict[str, Line] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(path.with_name(path.name + ".lock"), path)
        _claim(path, self._manifest, json.loads(json.dumps(facts)))
        stored = {str(line["question_id"]): line for line in _lines(self._kept) + _lines(path) if "error" not in line}
        if strangers := stored.keys() - set(ids):
            raise UserError(f"{path} answers {min(strangers)!r}, which is no question of this run; name another file.")
        self.missing = [identity for identity in self._ids if identity not in stored]
        _replace(self._kept, stored.values())
        _replace(path, [])
        self._file, self._early = path.open("a", encoding="utf-8"), self._kept.open("a", encoding="utf-8")
        self._next = 0
        self._waiting = stored
        self._advance()

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._file.close()
        self._early.close()
        if kind is None and self._next == len(self._ids):
            self._kept.unlink(missing_ok=True)
        os.unlink(self._lock.name)  # while it is held: who opens it from here on opens another file
        self._lock.close()

    def add(self, line: Line) -> None:
        """Takes the answer, or the failure, of one question; it is written when all before it are."""
        identity = str(line["question_id"])
        self._waiting[identity] = line
        if identity != self._ids[self._next]:
            self._early.write(_text(line))
            _sync(self._early)
        self._advance()

    def _advance(self) -> None:
        before = self._next
        while self._next < len(self._ids) and self._ids[self._next] in self._waiting:
            self._file.write(_text(self._waiting.pop(self._ids[self._next])))
            self._next += 1
        if self._next > before:
            _sync(self._file)


def _text(line: Line) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def _sync(file: IO[str]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _locked(lock: Path, path: Path) -> IO[bytes]:
    """The open lock file, held until it is closed or the process dies."""
    file = lock.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            return file
    except BlockingIOError:
        pass
    file.close()
    raise UserError(f"Another run is writing {path}; wait for it, or name another file.")


def _claim(path: Path, manifest: Path, facts: Mapping[str, Any]) -> None:
    if not manifest.exists():
        if path.exists() and path.stat().st_size:
            raise UserError(f"{path} exists without its {manifest.name}; choose another file for the answers.")
        temporary = manifest.with_name(manifest.name + ".tmp")
        temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        os.replace(temporary, manifest)
        return
    try:
        stored = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{manifest} is damaged ({error}); remove it together with {path}.") from error
    if not isinstance(stored, dict):
        raise UserError(f"{manifest} is damaged (no JSON object); remove it together with {path}.")
    if other := sorted(name for name in stored.keys() | facts if stored.get(name) != facts.get(name)):
        name = other[0]
        was, now = stored.get(name), facts.get(name)
        if isinstance(was, dict) and isinstance(now, dict):
            name = min(key for key in was.keys() | now if was.get(key, ...) != now.get(key, ...))
            was, now = was.get(name), now.get(name)
        raise UserError(
            f"{path} holds answers of another run: {name} was {was!r} and is {now!r}; "
            "choose another file, or remove it with its manifest."
        )


def _lines(path: Path) -> list[Line]:
    """The complete lines; a last one torn by a kill is left out."""
    if not path.exists():
        return []
    found = []
    for row, line in enumerate(path.read_bytes().split(b"\n")[:-1]):
        try:
            found.append(json.loads(line))
            found[-1]["question_id"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, row {row}: expected a JSON object with question_id; remove the file.") from error
    return found


def _replace(path: Path, lines: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(map(_text, lines)), encoding="utf-8")
    os.replace(temporary, path)
