"""Items from files: answers of `generate`, JSONL, a folder with a CSV, preference pairs to annotate again.

Every row is checked before anything is written, and every bad one is named; rows whose id is known are left out.
"""

import csv
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rlhfv_jax.annotation import assignment, diff, gold
from rlhfv_jax.annotation.pictures import Picture, Pictures
from rlhfv_jax.annotation.store import Store
from rlhfv_jax.data import readers, sources
from rlhfv_jax.data.records import json_object, text_lines
from rlhfv_jax.errors import UserError

SHOWN_ERRORS = 1000


class Row(NamedTuple):
    """A row of any file, before it is checked; `image` gives the encoded bytes when called."""

    where: str
    ext_id: str
    image: Callable[[], bytes]
    prompt: Any
    response: Any
    prefill: Any
    model: str
    source: dict[str, Any]
    name: str
    gold: Any = None


@dataclass
class Report:
    """What an import found and did: rows read, items added, known ids left out, texts that changed form, bad rows."""

    rows: int = 0
    added: int = 0
    duplicates: int = 0
    normalized: int = 0
    dry_run: bool = False
    errors: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Options:
    """How to read: `questions` holds the images of answers, `images` is the folder that image paths start from.

    `confined` refuses image paths outside `images`, for files that came over the network. `prefill` starts from a
    pair's chosen answer. `keep_going` takes the good rows of a file with bad ones. `overlap` is the share of the items
    that is drawn for a second annotator; None: the project's.
    """

    questions: str = ""
    images: str = ""
    confined: bool = False
    prefill: bool = False
    n_annotators: int = 1
    keep_going: bool = False
    dry_run: bool = False
    overlap: float | None = None


def run(store: Store, project: int, path: str | Path, options: Options) -> Report:
    """Imports a file or folder; raises UserError where the file as a whole cannot be read."""
    settings = assignment.project_of(store.read, project)
    share = settings.overlap if options.overlap is None else options.overlap
    pictures = Pictures(store.folder)
    report = Report(dry_run=options.dry_run)
    known = {r["ext_id"] for r in store.read.execute("SELECT ext_id FROM item WHERE project = ?", (project,))}
    seen: dict[str, str] = {}
    checked: dict[str, Picture] = {}
    good: list[tuple[Row, Picture, tuple[str, str, str | None], str | None]] = []
    for row in rows(Path(path), options):
        report.rows += 1
        if isinstance(row, UserError):
            _note(report, row)
            continue
        try:
            if row.ext_id in known:
                report.duplicates += 1
                continue
            if row.ext_id in seen:
                raise UserError(f"{row.where}, id: {row.ext_id!r} was used before, at {seen[row.ext_id]}.")
            seen[row.ext_id] = row.where
            texts = _texts(row, report)
            known_answer = gold.checked(row.gold, texts[1], settings, row.where)
            good.append((row, _picture(row, pictures, checked, options.dry_run), texts, known_answer))
        except UserError as error:
            _note(report, error)
    if (report.errors and not options.keep_going) or options.dry_run:
        report.added = 0 if report.errors and not options.keep_going else len(good)
        return report
    if good:
        os.sync()  # image files are on the disk before the rows that name them
        report.added = store.write(lambda c: _insert(c, project, good, options.n_annotators, share, settings.seed))
    return report


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
    key = f"{row.name}" if row.name else row.where
    if key not in checked:
        data = row.image()
        try:
            checked[key] = pictures.check(data)
        except UserError as error:
            raise UserError(f"{row.where}, image: {error}.") from error
        if not dry_run:
            pictures.add(checked[key], data)
    return checked[key]


def _insert(c: sqlite3.Connection, project: int, good: list, n_annotators: int, overlap: float, seed: int) -> int:
    (last,) = c.execute("SELECT COALESCE(MAX(id), 0) FROM item").fetchone()
    pictures = {picture.sha256: (*picture, row.name) for row, picture, *_ in good}
    c.executemany("INSERT OR IGNORE INTO image VALUES (?, ?, ?, ?, ?)", pictures.values())
    start = c.total_changes
    c.executemany(
        "INSERT OR IGNORE INTO item(project, ext_id, image_sha256, prompt, response, prefill, model, source_json, "
        "n_annotators, gold_json) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                *(project, row.ext_id, picture.sha256, *texts, row.model),
                *(json.dumps(row.source, ensure_ascii=False, sort_keys=True), n_annotators, known_answer),
            )
            for row, picture, texts, known_answer in good
        ],
    )
    added = c.total_changes - start
    assignment.draw_overlap(c, project, last, overlap, seed)
    return added


def rows(path: Path, options: Options) -> Iterator[Row | UserError]:
    """The rows of a file by its form; a bad row comes as the error that names it."""
    if path.is_dir():
        tables = sorted(path.glob("*.csv"))
        if len(tables) != 1:
            raise UserError(f"{path}: expected a folder with one .csv file, found {len(tables)}.")
        path = tables[0]
    if not path.is_file():
        raise UserError(f"The file {path} does not exist.")
    if path.suffix in (".jsonl", ".csv"):
        yield from _tables(path, options)
    elif path.suffix in (".parquet", ".tsv", ".json"):
        yield from _pairs(path, options)
    else:
        raise UserError(f"Cannot read {path}: expected .jsonl, .csv, .parquet, .tsv, .json, or a folder with a .csv.")


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


def _tables(path: Path, options: Options) -> Iterator[Row | UserError]:
    questions = _questions(Path(options.questions), options) if options.questions else {}
    folder = Path(options.images) if options.images else path.parent
    for number, where, values in _records(path):
        if isinstance(values, UserError):
            yield values
            continue
        try:
            yield _row(values, number, where, folder, questions, options)
        except UserError as error:
            yield error


def _records(path: Path) -> Iterator[tuple[int, str, dict[str, Any] | UserError]]:
    """(row, where, fields) of JSONL or CSV; lines count from 1 as an editor shows them."""
    if path.suffix == ".csv":
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                for number, values in enumerate(csv.DictReader(file)):
                    filled = {name: value for name, value in values.items() if name and value not in (None, "")}
                    yield number, f"{path}, line {number + 2}", filled
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"Cannot read {path} as CSV ({error}).") from error
        return
    for number, line in text_lines(path):
        where = f"{path}, line {number + 1}"
        try:
            yield number, where, json_object(line, where)
        except UserError as error:
            yield number, where, error


def _row(
    values: Mapping[str, Any],
    number: int,
    where: str,
    folder: Path,
    questions: Mapping[str, tuple[dict[str, Any], Path, str]],
    options: Options,
) -> Row:
    """A row of JSONL or CSV: an answer of `generate`, an item, or a preference pair."""
    if "question_id" in values and "text" in values:
        identity, response, prompt = str(values["question_id"]), values["text"], values.get("prompt")
        model = str(values.get("model_id") or "")
        source: dict[str, Any] = {"question_id": identity}
        asked, base, named = questions.get(identity, (dict(values), folder, where))
        if questions and identity not in questions:
            raise UserError(f"{where}, question_id: {identity!r} does not occur in {options.questions}.")
        if not questions and "image" not in values and "image_base64" not in values:
            raise UserError(f"{where}: the answer has no image; give the file of the questions too (--questions).")
        prompt = next((asked[n] for n in ("question", "text", "prompt") if questions and n in asked), prompt)
        source |= {n: asked[n] for n in ("benchmark", "image_id", "category") if n in asked}
        ext_id = f"{identity}/{model}" if model else identity
        made = _made(where, ext_id, asked, base, named, prompt, response, None, model, source, options)
        return made._replace(gold=values.get("gold"))
    pair = "chosen" in values and "rejected" in values
    response = values.get("rejected" if pair else "response")
    if response is None:
        raise UserError(
            f"{where}: expected response (or question_id and text, or chosen and rejected), found {', '.join(values)}."
        )
    prompt = values.get("prompt", values.get("question"))
    source = values.get("source", {})
    source = dict(source) if isinstance(source, Mapping) else {"origin": str(source)}
    if isinstance(values.get("benchmark"), str):
        source["benchmark"] = values["benchmark"]
    prefill = values["chosen"] if pair and options.prefill else values.get("prefill")
    ext_id = readers.json_id(values, number, where)
    model = str(values.get("model") or "")
    made = _made(where, ext_id, values, folder, where, prompt, response, prefill, model, source, options)
    return made._replace(gold=values.get("gold"))


def _made(
    where: str,
    ext_id: str,
    holder: Mapping[str, Any],
    base: Path,
    named: str,
    prompt: Any,
    response: Any,
    prefill: Any,
    model: str,
    source: dict[str, Any],
    options: Options,
) -> Row:
    name = holder.get("image") if isinstance(holder.get("image"), str) and "image_base64" not in holder else ""
    if name and options.confined:
        if not options.images:
            raise UserError(
                f"{where}, image: an uploaded file holds its images as image_base64, or the server names a folder "
                "for them (--images)."
            )
        inside = (base / str(name)).resolve()
        if not inside.is_relative_to(Path(options.images).resolve()):
            raise UserError(f"{where}, image: {name!r} lies outside the folder for images.")
    if not name and "image_base64" not in holder:
        raise UserError(f"{named}: expected a field image (a path) or image_base64, found {', '.join(holder)}.")
    key = str(base / str(name)) if name else ""
    return Row(
        where, ext_id, lambda: readers.json_image(holder, base, named), prompt, response, prefill, model, source, key
    )


def _questions(path: Path, options: Options) -> dict[str, tuple[dict[str, Any], Path, str]]:
    """question_id -> (the question's fields, the folder that its image path starts from, where it stands)."""
    folder = Path(options.images) if options.images else path.parent
    found: dict[str, tuple[dict[str, Any], Path, str]] = {}
    for row, line in text_lines(path):
        where = f"{path}, line {row + 1}"
        values = json_object(line, where)
        if "question_id" not in values:
            raise UserError(f"{where}, question_id: the field is missing.")
        found[str(values["question_id"])] = (values, folder, where)
    return found
