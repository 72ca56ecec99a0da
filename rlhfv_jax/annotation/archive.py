"""A whole project as one .zip, out and in: settings, items, images, and everybody's annotations.

    project.json        name and settings
    items.jsonl         id, number, image (its hash), image_name, prompt, response, prefill, model, source, ...
    annotations.jsonl   item (its id), annotator, number (the annotator's), state, revision, cuts, segments, ...
    adjudications.jsonl item, reviewer, number (the reviewer's), result, reason, at
    images/HASH         the encoded images as they came

Imported into a new directory it makes a project whose own exports are the same bytes: people, items and annotations
keep their numbers and times. What stays behind are tokens, roles, leases and the history before the last revision;
`--backup` copies the store with these.
"""

import hashlib
import json
import sqlite3
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhfv_jax.annotation import project as projects
from rlhfv_jax.annotation import works
from rlhfv_jax.annotation.diff import Change, Cuts
from rlhfv_jax.annotation.pictures import Pictures
from rlhfv_jax.annotation.project import Project
from rlhfv_jax.annotation.rows import Decision, Place, Row, Work
from rlhfv_jax.data.records import json_object
from rlhfv_jax.errors import UserError

SETTINGS, ITEMS, ANNOTATIONS, IMAGES = "project.json", "items.jsonl", "annotations.jsonl", "images/"
DECISIONS = "adjudications.jsonl"
FORMAT = 1
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of every member: the same project gives the same bytes
LARGEST = 2**28  # bytes of one image or table in memory
STATES = {"draft": ("", "corrected", "clean"), "submitted": ("corrected", "clean"), "skipped": ("skipped",)}


def write(c: sqlite3.Connection, project: int, pictures: Pictures, path: Path) -> dict[str, int]:
    """Writes the archive at `path` as it is; returns counts. Raises UserError for an image that is damaged."""
    name, config = c.execute("SELECT name, config_json FROM project WHERE id = ?", (project,)).fetchone()
    head = {"format": FORMAT, "name": name, "settings": json.loads(config)}
    items = [_item(row) for row in c.execute(_ITEMS, (project,))]
    annotations = [_annotation(c, row) for row in c.execute(_ANNOTATIONS, (project,))]
    hashes = sorted({item["image"] for item in items})
    with zipfile.ZipFile(path, "w") as file:
        _add(file, SETTINGS, json.dumps(head, ensure_ascii=False, sort_keys=True, indent=2) + "\n")
        _add(file, ITEMS, _lines(items))
        _add(file, ANNOTATIONS, _lines(annotations))
        _add(file, DECISIONS, _lines([_decision(row) for row in c.execute(_DECISIONS, (project,))]))
        for sha256 in hashes:
            _add(file, IMAGES + sha256, pictures.original(sha256), zipfile.ZIP_STORED)
    return {"items": len(items), "annotations": len(annotations), "images": len(hashes)}


_ITEMS = """
    SELECT i.*, m.name AS image_name FROM item i JOIN image m ON m.sha256 = i.image_sha256
    WHERE i.project = ? ORDER BY i.id
"""
_ANNOTATIONS = """
    SELECT a.*, i.ext_id, p.name AS person FROM annotation a JOIN item i ON i.id = a.item
    JOIN annotator p ON p.id = a.annotator WHERE i.project = ? ORDER BY a.id
"""


def _item(row: sqlite3.Row) -> dict[str, Any]:
    same = ("prompt", "response", "prefill", "model", "n_annotators", "priority", "image_name")
    values = {name: row[name] for name in same} | {"id": row["ext_id"], "number": row["id"]}
    gold = json.loads(row["gold_json"]) if row["gold_json"] is not None else None
    return values | {"image": row["image_sha256"], "source": json.loads(row["source_json"]), "gold": gold}


def _annotation(c: sqlite3.Connection, row: sqlite3.Row) -> dict[str, Any]:
    same = ("state", "verdict", "skip_reason", "corrected", "active_ms", "opened", "updated")
    segments = c.execute(
        "SELECT src0, src1, dst0, dst1, type FROM segment WHERE annotation = ? ORDER BY ord", (row["id"],)
    )
    return {name: row[name] for name in same} | {
        "item": row["ext_id"],
        "annotator": row["person"],
        "number": row["annotator"],
        "revision": row["rev"],
        "cuts": {"splits": [], "merges": []} | json.loads(row["cuts_json"]),
        "segments": [list(segment) for segment in segments],
    }


_DECISIONS = """
    SELECT d.*, i.ext_id, p.name AS person FROM adjudication d JOIN item i ON i.id = d.item
    JOIN annotator p ON p.id = d.reviewer WHERE i.project = ? ORDER BY d.item
"""


def _decision(row: sqlite3.Row) -> dict[str, Any]:
    values = {"item": row["ext_id"], "reviewer": row["person"], "number": row["reviewer"], "reason": row["reason"]}
    return values | {"result": json.loads(row["result_json"]), "at": row["at"]}


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)


def _add(file: zipfile.ZipFile, name: str, data: str | bytes, packing: int = zipfile.ZIP_DEFLATED) -> None:
    member = zipfile.ZipInfo(name, _EPOCH)
    member.compress_type, member.external_attr = packing, 0o600 << 16
    file.writestr(member, data)


class Archive:
    """An archive to read, opened as a context; raises UserError for a file that is none."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> "Archive":
        try:
            self._file = zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path} is not a readable archive of a project ({error}).") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _read(self, name: str) -> bytes:
        try:
            if self._file.getinfo(name).file_size > LARGEST:
                raise UserError(f"{self.path}, {name}: larger than {LARGEST >> 20} MiB.")
            return self._file.read(name)
        except KeyError as error:
            raise UserError(f"{self.path} is not a project's archive: {name} is missing.") from error
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError) as error:
            raise UserError(f"{self.path}, {name}: cannot be read ({error}).") from error

    def _objects(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        try:
            lines = self._read(name).decode().split("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}, {name}: not UTF-8 text ({error}).") from error
        found = []
        for i, line in enumerate(lines):
            if line.strip():
                where = f"{self.path}, {name} line {i + 1}"
                found.append((where, json_object(line, where)))
        return found

    def settings(self) -> tuple[str, Project]:
        """The project's name and settings."""
        where = f"{self.path}, {SETTINGS}"
        head = json_object(self._read(SETTINGS), where)
        if head.get("format") != FORMAT:
            raise UserError(f"{where}, format: expected {FORMAT}, found {head.get('format')!r}; update the program.")
        if not isinstance(head.get("name"), str) or not isinstance(head.get("settings"), dict):
            raise UserError(f"{where}: expected a name and settings.")
        return head["name"], projects.from_dict(head["settings"], where)

    def rows(self, project: Project) -> Iterator[Row | UserError]:
        """The items in their order, each with its annotations; a bad one comes as the error that names it."""
        annotations: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for where, value in self._objects(ANNOTATIONS):
            annotations.setdefault(str(value.get("item")), []).append((where, value))
        decisions = {str(value.get("item")): (where, value) for where, value in self._objects(DECISIONS)}
        for where, value in self._objects(ITEMS):
            identity = str(value.get("id"))
            try:
                yield self._row(where, value, annotations.pop(identity, []), decisions.get(identity), project)
            except UserError as error:
                yield error
        for of in annotations.values():
            yield UserError(f"{of[0][0]}, item: {of[0][1].get('item')!r} does not occur in {ITEMS}.")

    def _row(
        self,
        where: str,
        value: dict[str, Any],
        of: list[tuple[str, dict[str, Any]]],
        decided: tuple[str, dict[str, Any]] | None,
        project: Project,
    ) -> Row:
        values = Fields(value, where)
        sha256, gold = values.text("image"), value.get("gold")
        place = Place(
            number=values.whole("number"),
            n_annotators=values.whole("n_annotators"),
            priority=values.number("priority"),
            gold_json=None if gold is None else json.dumps(gold, ensure_ascii=False, sort_keys=True),
            decision=_decided(Fields(decided[1], decided[0])) if decided else None,
        )

        def image() -> bytes:
            data = self._read(IMAGES + sha256)
            if hashlib.sha256(data).hexdigest() != sha256:
                raise UserError(f"{where}, image: {IMAGES}{sha256} is damaged: its content is not what its name says.")
            return data

        return Row(
            where=where,
            ext_id=values.text("id"),
            image=image,
            prompt=value.get("prompt"),
            response=value.get("response"),
            prefill=value.get("prefill"),
            model=values.text("model"),
            source=values.object("source"),
            name=values.text("image_name"),
            works=lambda response: [_work(Fields(one, at), response, project) for at, one in of],
            place=place,
            key=sha256,
        )


def _decided(values: "Fields") -> Decision:
    return Decision(
        reviewer=values.text("reviewer"),
        number=values.whole("number"),
        result=values.object("result"),
        reason=values.text("reason"),
        at=values.number("at"),
    )


def _work(values: "Fields", response: str, project: Project) -> Work:
    state, verdict, corrected = values.text("state"), values.text("verdict"), values.text("corrected")
    if verdict not in STATES.get(state, ()):
        raise UserError(f"{values.where}: state {state!r} and verdict {verdict!r} do not go together.")
    segments = [(Change(*row[:4]), row[4]) for row in values.rows("segments", (int, int, int, int, str))]
    if any(not kind for _, kind in segments) and state == "submitted":
        raise UserError(f"{values.where}, segments: one has no type.")
    cuts = Fields(values.object("cuts"), f"{values.where}, cuts")
    return Work(
        person=values.text("annotator"),
        number=values.whole("number"),
        verdict=verdict,
        corrected=corrected,
        segments=works.exact(response, corrected, segments, project, values.where, whole=state == "submitted"),
        cuts=Cuts(tuple(cuts.rows("splits", (int, int))), tuple(cuts.rows("merges", (int, int)))),
        state=state,
        skip_reason=values.text("skip_reason"),
        rev=values.whole("revision"),
        active_ms=values.whole("active_ms"),
        opened=values.number("opened"),
        updated=values.number("updated"),
    )


class Fields:
    """An object's fields by type; raises UserError that names the field."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = values, where

    def _wrong(self, name: str, wanted: str) -> UserError:
        return UserError(f"{self.where}, {name}: expected {wanted}, found {str(self.values.get(name))[:60]!r}.")

    def text(self, name: str) -> str:
        """A text; raises UserError naming the place."""
        if not isinstance(self.values.get(name), str):
            raise self._wrong(name, "text")
        return str(self.values[name])

    def whole(self, name: str) -> int:
        """A whole number; raises UserError naming the place."""
        if type(self.values.get(name)) is not int or not 0 <= self.values[name] < 2**53:
            raise self._wrong(name, "a whole number")
        return int(self.values[name])

    def number(self, name: str) -> float:
        """A number; raises UserError naming the place."""
        if type(self.values.get(name)) not in (int, float):
            raise self._wrong(name, "a number")
        return float(self.values[name])

    def object(self, name: str) -> dict[str, Any]:
        """A JSON object; raises UserError naming the place."""
        if not isinstance(self.values.get(name), dict):
            raise self._wrong(name, "an object")
        return dict(self.values[name])

    def rows(self, name: str, types: tuple[type, ...]) -> list[tuple]:
        """A list of lists of these types; empty where the field is missing."""
        found = self.values.get(name, [])
        if not isinstance(found, list) or any(
            not isinstance(row, list) or [type(value) for value in row] != list(types) for row in found
        ):
            raise self._wrong(name, f"lists of {len(types)} values")
        return [tuple(row) for row in found]
