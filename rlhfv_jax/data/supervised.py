"""Answered questions for supervised fine-tuning and evaluation, from files.

JSONL has `question` and `answer`, or `turns` ([[question, answer], ...]), or LLaVA's `conversations`, and an image as
in preference data. Muffin's TSV has these as the JSON of its text column. A folder is a TFDS build of VQAv2.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhfv_jax.data.readers import conversation, json_id, json_image, tsv_rows
from rlhfv_jax.data.records import (
    AnsweredRecord,
    json_object,
    select,
    text_field,
    text_lines,
    turns_field,
    unique,
)
from rlhfv_jax.errors import UserError


def read(path: str | Path, origins: Sequence[str] = (), count: int = 0) -> list[AnsweredRecord]:
    """All records of a .jsonl or .tsv file or a TFDS folder, checked and selected; errors name file, row and field.

    Raises UserError.
    """
    path = Path(path)
    if path.is_dir():
        from rlhfv_jax.data.tfds import vqa_v2  # its import takes a second, and most data are files

        records = vqa_v2.read(path)
    else:
        readers = {".jsonl": _read_jsonl, ".tsv": _read_tsv}
        if not path.is_file():
            raise UserError(f"The data file {path} does not exist.")
        if path.suffix not in readers:
            raise UserError(f"Cannot read {path}: expected a .jsonl or .tsv file of answered questions, or a folder.")
        records = list(readers[path.suffix](path))
    if not records:
        raise UserError(f"The data file {path} has no rows.")
    unique(records)
    return select(records, origins, count, path)


def _read_jsonl(path: Path) -> Iterator[AnsweredRecord]:
    for row, line in text_lines(path):
        where = f"{path}, row {row}"
        values = json_object(line, where)
        image = json_image(values, path.parent, where)
        yield AnsweredRecord(
            json_id(values, row, where), image, _turns(values, where), str(values.get("origin", "")), where
        )


def _read_tsv(path: Path) -> Iterator[AnsweredRecord]:
    for identity, image, value, origin, where in tsv_rows(path):
        fields = {"conversations": value} if isinstance(value, list) else value
        if not isinstance(fields, dict):
            raise UserError(f"{where}, text: expected a JSON list or object, found {type(value).__name__}.")
        yield AnsweredRecord(identity, image, _turns(fields, f"{where}, text"), origin, where)


def _turns(values: Mapping[str, Any], where: str) -> tuple[tuple[str, str], ...]:
    if "conversations" in values:
        turns = tuple(conversation(values["conversations"], f"{where}, conversations"))
    elif "turns" in values:
        turns = turns_field(values["turns"], f"{where}, turns")
    else:
        turns = ((text_field(values, "question", where), text_field(values, "answer", where)),)
    if not turns or not all(text.strip() for turn in turns for text in turn):
        raise UserError(f"{where}: expected at least one turn, and no empty text in it.")
    return turns
