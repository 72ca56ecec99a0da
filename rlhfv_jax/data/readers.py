"""One reader for each file format of preference data, from path to records in the file's order."""

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlhfv_jax import textfiles
from rlhfv_jax.data.records import (
    PreferenceRecord,
    json_object,
    json_value,
    preference_record,
    text_lines,
)
from rlhfv_jax.errors import UserError

TSV_COLUMNS = ("ds_name", "image", "text", "origin_dataset", "origin_split", "idx", "image_path")
ANSWERS = ("question", "chosen", "rejected")


def read_parquet(path: Path) -> Iterator[PreferenceRecord]:
    """The published schema: `text` is a JSON string of question, chosen, rejected and optional logps.

    Columns question, chosen and rejected may stand in place of `text` (RLAIF-V's files), a column `logps` (a JSON
    string) beside it.

    Raises UserError naming file, row and field.
    """
    for row, values in enumerate(_parquet_rows(path)):
        where = f"{path}, row {row}"
        fields = json_object(values["text"], f"{where}, text") if "text" in values else dict(values)
        if isinstance(stored := values.get("logps"), str):
            fields["logps"] = json_value(stored, f"{where}, logps")
        image = values["image"] or {}
        if not isinstance(image, dict) or not isinstance(image.get("bytes"), bytes) or not image["bytes"]:
            raise UserError(f"{where}, image: expected a struct with encoded bytes, found none.")
        if values["idx"] is None:
            raise UserError(f"{where}, idx: expected a number that identifies the pair, found null.")
        yield preference_record(str(values["idx"]), image["bytes"], fields, values.get("origin_dataset") or "", where)


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        answers = ANSWERS if "text" not in names and set(ANSWERS) & set(names) else ("text",)
        if missing := [name for name in ("image", *answers, "idx") if name not in names]:
            raise UserError(f"{path}: column {missing[0]!r} is missing; found {', '.join(names)}.")
        for batch in file.iter_batches(batch_size=256):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable parquet file ({error}).") from error


def read_jsonl(path: Path) -> Iterator[PreferenceRecord]:
    """One JSON object a line: question, chosen, rejected, or a ranking (see `_ranking`)."""
    for row, line in text_lines(path):
        where = f"{path}, row {row}"
        yield _json_record(json_object(line, where), row, path.parent, where)


def read_json(path: Path) -> Iterator[PreferenceRecord]:
    """One JSON list of the objects that JSONL has on its lines; LLaVA-RLHF's form.

    Raises UserError naming file, row and field.
    """
    values = json_value(textfiles.read(path), str(path))
    if not isinstance(values, list):
        raise UserError(f"{path}: expected a JSON list of records, found {type(values).__name__}.")
    for row, value in enumerate(values):
        where = f"{path}, row {row}"
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected a JSON object, found {type(value).__name__}.")
        yield _json_record(value, row, path.parent, where)


def _json_record(values: dict[str, Any], row: int, folder: Path, where: str) -> PreferenceRecord:
    identity = json_id(values, row, where)
    image = json_image(values, folder, where)
    fields = _ranking(values, where) if "output_1" in values else values
    return preference_record(identity, image, fields, str(values.get("origin", "")), where)


def json_id(values: Mapping[str, Any], row: int, where: str) -> str:
    """The field `id` as text; the row number without one. Raises UserError for anything but text or a number."""
    identity = values.get("id", row)
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise UserError(f"{where}, id: expected text or a number, found {type(identity).__name__}.")
    return str(identity)


def json_image(values: Mapping[str, Any], folder: Path, where: str) -> bytes:
    """The encoded image of `image_base64`, or of the file that `image` names, relative to the folder.

    Raises UserError for an image that is missing, empty or unreadable.
    """
    if isinstance(encoded := values.get("image_base64"), str):
        try:
            image = base64.b64decode(encoded, validate=True)
        except ValueError as error:
            raise UserError(f"{where}, image_base64: not base64 ({error}).") from error
        if not image:
            raise UserError(f"{where}, image_base64: the image is empty.")
        return image
    if not isinstance(name := values.get("image"), str):
        raise UserError(f"{where}: expected a field image (a path) or image_base64, found {', '.join(values)}.")
    try:
        return (folder / name).read_bytes()
    except (OSError, ValueError) as error:  # a ValueError where the path holds a NUL
        raise UserError(
            f"{where}, image: cannot read {folder / name} ({getattr(error, 'strerror', error)})."
        ) from error


def _ranking(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """LLaVA-RLHF's form: a conversation, two outputs for its last turn, and which of them is preferred (1 or 2)."""
    preferred = values.get("preference")
    if isinstance(preferred, bool) or preferred not in (1, 2):
        raise UserError(f"{where}, preference: expected 1 or 2, found {preferred!r}.")
    outputs = []
    for name in ("output_1", "output_2"):
        output = values.get(name)
        if not isinstance(output, dict) or "value" not in output:
            raise UserError(f"{where}, {name}: expected an object with a value, found {str(output)[:80]}.")
        outputs.append(output["value"])
    turns = conversation(values.get("conversations"), f"{where}, conversations")
    chosen, rejected = outputs if preferred == 1 else outputs[::-1]
    return {"history": turns[:-1], "question": turns[-1][0], "chosen": chosen, "rejected": rejected}


def conversation(value: Any, where: str) -> list[tuple[str, str]]:
    """LLaVA's [{"from": "human", "value"}, {"from": "gpt", "value"}, ...] as turns.

    The mark <image> at either end of the first question is dropped: the template knows where an image stands.

    Raises UserError for turns that are not in pairs.
    """
    if not isinstance(value, list) or not value or len(value) % 2 or not all(isinstance(v, dict) for v in value):
        raise UserError(f"{where}: expected a list of human and gpt turns in pairs, found {str(value)[:80]}.")
    for i, turn in enumerate(value):
        speaker = ("human", "gpt")[i % 2]
        if turn.get("from") != speaker or not isinstance(turn.get("value"), str):
            raise UserError(f"{where}, turn {i}: expected a text from {speaker}, found {str(turn)[:80]}.")
    texts = [turn["value"] for turn in value]
    texts[0] = texts[0].removeprefix("<image>\n").removesuffix("\n<image>")
    return list(zip(texts[::2], texts[1::2], strict=True))


def read_tsv(path: Path) -> Iterator[PreferenceRecord]:
    """Muffin's TSV: the text is a JSON list [question, chosen, rejected, optional logps], or an object of these.

    Raises UserError naming file, row and field.
    """
    for identity, image, value, origin, where in tsv_rows(path):
        if isinstance(value, list):
            if len(value) not in (3, 4):
                raise UserError(
                    f"{where}, text: expected question, chosen, rejected and optional logps, found {len(value)} items."
                )
            value = dict(zip((*ANSWERS, "logps"), value, strict=False))
        if not isinstance(value, dict):
            raise UserError(f"{where}, text: expected a JSON list or object, found {type(value).__name__}.")
        yield preference_record(identity, image, value, origin, where)


def tsv_rows(path: Path) -> Iterator[tuple[str, bytes, Any, str, str]]:
    """(id, image, the text's JSON value, origin, where) of every row of one of Muffin's TSV files.

    Columns, without a header: ds_name, image (base64), text (base64 of JSON), origin_dataset, origin_split, idx,
    image_path. A `.lineidx` file beside it is not needed.

    Raises UserError naming file and row.
    """
    for row, line in text_lines(path):
        where = f"{path}, row {row}"
        cells = line.rstrip("\r").split("\t")
        if len(cells) != len(TSV_COLUMNS):
            raise UserError(
                f"{where}: expected {len(TSV_COLUMNS)} columns ({', '.join(TSV_COLUMNS)}), found {len(cells)}."
            )
        values = dict(zip(TSV_COLUMNS, cells, strict=True))
        image = _base64(values["image"], f"{where}, image")
        value = json_value(_base64(values["text"], f"{where}, text"), f"{where}, text")
        if not values["idx"].strip():
            raise UserError(f"{where}, idx: expected a number or name that identifies the row, found none.")
        yield values["idx"], image, value, values["origin_dataset"], where


def _base64(text: str, where: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise UserError(f"{where}: not base64 ({error}).") from error
    if not data:
        raise UserError(f"{where}: the field is empty.")
    return data
