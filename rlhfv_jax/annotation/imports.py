"""Items from files: answers of `generate`, JSONL, a folder with a CSV, preference pairs to annotate again.

What other tools export and our own archives bring finished work along (`label_studio`, `argilla`, `archive`). Every row
is checked before anything is written, and every bad one is named; rows whose id is known are left out, save for work on
them that is new.
"""

import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rlhfv_jax import textfiles
from rlhfv_jax.annotation import argilla, assignment, diff, gold, label_studio, tables, works
from rlhfv_jax.annotation.archive import Archive
from rlhfv_jax.annotation.pictures import Picture, Pictures
from rlhfv_jax.annotation.project import Project
from rlhfv_jax.annotation.rows import Options, Row, Work
from rlhfv_jax.annotation.store import Store
from rlhfv_jax.data import sources
from rlhfv_jax.data.records import json_value
from rlhfv_jax.errors import UserError

SHOWN_ERRORS = 1000
FORMS = ("auto", "label_studio", "argilla")  # of a .json file, where its content is to be told by name
TOOLS = {"label_studio": label_studio, "argilla": argilla}


@dataclass
class Report:
    """What an import found and did: rows read, items and annotations added, known ids left out, texts that changed
    form, bad rows."""

    rows: int = 0
    added: int = 0
    annotations: int = 0
    duplicates: int = 0
    normalized: int = 0
    dry_run: bool = False
    errors: list[dict[str, str]] = field(default_factory=list)


class _Good(NamedTuple):
    """A checked row; `item` is the store's where the id is known already."""

    row: Row
    picture: Picture | None
    texts: tuple[str, str, str | None]
    works: list[Work]
    item: int = 0
    gold_json: str | None = None


def run(store: Store, project: int, path: str | Path, options: Options) -> Report:
    """Imports a file or folder; raises UserError where the file as a whole cannot be read."""
    settings = assignment.project_of(store.read, project)
    share = settings.overlap if options.overlap is None else options.overlap
    pictures = Pictures(store.folder)
    report = Report(dry_run=options.dry_run)
    items = store.read.execute("SELECT ext_id, id, response FROM item WHERE project = ?", (project,))
    known = {row["ext_id"]: (row["id"], row["response"]) for row in items}
    seen: dict[str, str] = {}
    checked: dict[str, Picture] = {}
    good: list[_Good] = []
    for row in rows(Path(path), options, settings):
        report.rows += 1
        if isinstance(row, UserError):
            _note(report, row)
            continue
        try:
            if row.ext_id in seen:
                raise UserError(f"{row.where}, id: {row.ext_id!r} was used before, at {seen[row.ext_id]}.")
            if row.ext_id in known:
                report.duplicates += 1
                if row.works is not None:
                    good.append(_more_work(row, *known[row.ext_id]))
                continue
            seen[row.ext_id] = row.where
            texts = _texts(row, report)
            found = row.works(texts[1]) if row.works else []
            answer = row.place.gold_json if row.place else gold.checked(row.gold, texts[1], settings, row.where)
            good.append(_Good(row, _picture(row, pictures, checked, options.dry_run), texts, found, gold_json=answer))
        except UserError as error:
            _note(report, error)
    if (report.errors and not options.keep_going) or options.dry_run:
        report.added = 0 if report.errors and not options.keep_going else sum(not one.item for one in good)
        return report
    if good:
        os.sync()  # image files are on the disk before the rows that name them
        report.added, report.annotations = store.write(
            lambda c: _insert(c, project, good, options.n_annotators, share, settings.seed)
        )
    return report


def _more_work(row: Row, item: int, response: str) -> _Good:
    """Work on an item that is here already; its answer must be the same."""
    assert row.works is not None
    if not isinstance(row.response, str) or diff.normalized(row.response) != response:
        raise UserError(f"{row.where}, response: the item {row.ext_id!r} is here with another answer.")
    return _Good(row, None, ("", response, None), row.works(response), item)


def _note(report: Report, error: UserError) -> None:
    if len(report.errors) < SHOWN_ERRORS:
        report.errors.append({"detail": str(error)})


def _texts(row: Row, report: Report) -> tuple[str, str, str | None]:
    """Prompt, response and prefill in the form that a browser's text field keeps."""
    found: list[str | None] = []
    for name, value in (("prompt", row.prompt), ("response", row.response), ("prefill", row.prefill)):
        if name == "prefill" and value is None:
            found.append(None)
            continue
        if not isinstance(value, str):
            raise UserError(f"{row.where}, {name}: expected text, found {type(value).__name__}.")
        if not value.strip() and name != "prompt":
            raise UserError(f"{row.where}, {name}: the text is empty.")
        if len(value) > diff.MAX_CHARACTERS:
            raise UserError(f"{row.where}, {name}: longer than {diff.MAX_CHARACTERS} characters.")
        if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
            raise UserError(f"{row.where}, {name}: holds a character that is not text.")
        text = diff.normalized(value)
        report.normalized += text != value
        found.append(text)
    return found[0] or "", found[1] or "", found[2]


def _picture(row: Row, pictures: Pictures, checked: dict[str, Picture], dry_run: bool) -> Picture:
    key = row.key or row.name or row.where
    if key not in checked:
        data = row.image()
        try:
            checked[key] = pictures.check(data)
        except UserError as error:
            raise UserError(f"{row.where}, image: {error}.") from error
        if not dry_run:
            pictures.add(checked[key], data)
    return checked[key]


def _insert(
    c: sqlite3.Connection, project: int, good: list[_Good], n_annotators: int, overlap: float, seed: int
) -> tuple[int, int]:
    """Counts of items and annotations that are new. Items keep their numbers where all of these are free."""
    pictures = {one.picture.sha256: (*one.picture, one.row.name) for one in good if one.picture}
    c.executemany("INSERT OR IGNORE INTO image VALUES (?, ?, ?, ?, ?)", pictures.values())
    new = [one for one in good if one.picture]
    numbers = [one.row.place.number if one.row.place else 0 for one in new]
    free = all(numbers) and not any(c.execute("SELECT 1 FROM item WHERE id = ?", (n,)).fetchone() for n in numbers)
    (last,) = c.execute("SELECT COALESCE(MAX(id), 0) FROM item").fetchone()
    added = annotations = 0
    people: dict[tuple[str, int], int] = {}
    for one, number in zip(new, numbers, strict=True):
        cursor = c.execute(
            "INSERT OR IGNORE INTO item(id, project, ext_id, image_sha256, prompt, response, prefill, model, "
            "source_json, n_annotators, priority, gold_json) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (number if free else None, project, *_item(one, n_annotators)),
        )
        added += cursor.rowcount
        item = int(cursor.lastrowid or 0) if cursor.rowcount else 0
        annotations += sum(works.insert(c, item, work, people) for work in one.works if item)
        if item and one.row.place and one.row.place.decision:
            works.decide(c, item, one.row.place.decision, people)
    for one in good:
        if one.item:
            new_work = [work for work in one.works if not works.is_known(c, one.item, work)]
            annotations += sum(works.insert(c, one.item, work, people) for work in new_work)
    if not any(numbers):  # an archive's items have their places
        assignment.draw_overlap(c, project, last, overlap, seed)
    return added, annotations


def _item(one: _Good, n_annotators: int) -> tuple[Any, ...]:
    row, place = one.row, one.row.place
    source = json.dumps(row.source, ensure_ascii=False, sort_keys=True)
    more = (place.n_annotators, place.priority) if place else (n_annotators, 0.0)
    picture = one.picture.sha256 if one.picture else ""
    return (row.ext_id, picture, *one.texts, row.model, source, *more, one.gold_json)


def rows(path: Path, options: Options, project: Project) -> Iterator[Row | UserError]:
    """The rows of a file by its form; a bad row comes as the error that names it."""
    if path.is_dir():
        found = sorted(path.glob("*.csv"))
        if len(found) != 1:
            raise UserError(f"{path}: expected a folder with one .csv file, found {len(found)}.")
        path = found[0]
    if not path.is_file():
        raise UserError(f"The file {path} does not exist.")
    if path.suffix == ".zip":
        with Archive(path) as archive:
            yield from archive.rows(project)
    elif path.suffix in (".jsonl", ".csv"):
        yield from tables.rows(path, options)
    elif path.suffix == ".json" and (tool := _tool(path, options.form)):
        yield from tool[0].rows(tool[1], path, options, project)
    elif path.suffix in (".parquet", ".tsv", ".json"):
        yield from _pairs(path, options)
    else:
        raise UserError(
            f"Cannot read {path}: expected .jsonl, .csv, .parquet, .tsv, .json, .zip, or a folder with a .csv."
        )


def archived(path: Path) -> tuple[str, Project] | None:
    """The name and settings of the project in an archive; None for any other file."""
    if path.suffix != ".zip" or not path.is_file():
        return None
    with Archive(path) as archive:
        return archive.settings()


def _tool(path: Path, form: str) -> tuple[Any, list[Any]] | None:
    """(the module of the tool that a JSON file is from, its rows); None for preference pairs."""
    values = json_value(textfiles.read(path), str(path))
    if not isinstance(values, list):
        values = [values]
    for name, module in TOOLS.items():
        if form == name or (form == "auto" and any(isinstance(v, dict) and module.looks_alike(v) for v in values[:1])):
            return module, values
    return None


def _pairs(path: Path, options: Options) -> Iterator[Row | UserError]:
    """Preference pairs: the rejected answer is the one to correct."""
    try:
        for record in sources.READERS[path.suffix](path):
            yield Row(
                where=record.where,
                ext_id=record.id,
                image=lambda record=record: record.image,  # type: ignore[misc]
                prompt=record.question,
                response=record.rejected,
                prefill=record.chosen if options.prefill else None,
                model="",
                source={"origin": record.origin} if record.origin else {},
                name="",
            )
    except UserError as error:
        yield error
