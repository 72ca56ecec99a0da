"""Items from lines: answers of `generate`, JSONL and CSV of items or of preference pairs."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhfv_jax.annotation.rows import Options, Row
from rlhfv_jax.data import readers
from rlhfv_jax.data.records import json_object, text_lines
from rlhfv_jax.errors import UserError


def rows(path: Path, options: Options) -> Iterator[Row | UserError]:
    """The rows of a .jsonl or .csv; a bad one comes as the error that names it."""
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
