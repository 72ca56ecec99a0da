"""Preference records from files, and back: the published parquet schema and JSONL.

Parquet columns: ds_name, image {bytes, path}, text (a JSON string with question, chosen, rejected), origin_dataset,
origin_split, idx, image_path. JSONL fields: question, chosen, rejected, and image (a path relative to the file) or
image_base64; optional id and origin. Segments travel beside either as `<name>.segments.jsonl`, one line per record:
{"id", "chosen": [{"start", "end", "type"}], "rejected": [...]}, character offsets into the two answers.
"""

import base64
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlhfv_jax.errors import UserError

PARQUET_SCHEMA = pa.schema(
    [
        ("ds_name", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("text", pa.string()),
        ("origin_dataset", pa.string()),
        ("origin_split", pa.string()),
        ("idx", pa.int64()),
        ("image_path", pa.string()),
    ]
)


@dataclass(frozen=True)
class Segment:
    """A corrected stretch of an answer: characters [start, end) and a hallucination type (may be empty)."""

    start: int
    end: int
    type: str = ""


@dataclass(frozen=True)
class PreferenceRecord:
    """One pair: an image, a question, the corrected answer and the original one.

    `segments` are the annotator's own spans (chosen, rejected), None where the file has none; `where` names file and
    row for messages.
    """

    id: str
    image: bytes
    question: str
    chosen: str
    rejected: str
    segments: tuple[tuple[Segment, ...], tuple[Segment, ...]] | None = None
    origin: str = ""
    where: str = ""


def read(path: str | Path) -> list[PreferenceRecord]:
    """All records of a .parquet or .jsonl file, checked. Raises UserError naming file, row and field."""
    path = Path(path)
    readers = {".parquet": _read_parquet, ".jsonl": _read_jsonl}
    if path.suffix not in readers:
        raise UserError(f"Cannot read {path}: expected a .parquet or .jsonl file of preference pairs.")
    if not path.is_file():
        raise UserError(f"The data file {path} does not exist.")
    segments = read_segments(segments_path(path))
    records: list[PreferenceRecord] = []
    seen: dict[str, str] = {}
    for record in readers[path.suffix](path):
        if record.id in seen:
            raise UserError(f"{record.where}, id: {record.id!r} was used before, at {seen[record.id]}; ids are unique.")
        seen[record.id] = record.where
        records.append(_with_segments(record, segments.pop(record.id, None)))
    if not records:
        raise UserError(f"The data file {path} has no rows.")
    if segments:
        raise UserError(f"{segments_path(path)}: id {next(iter(segments))!r} does not occur in {path}.")
    return records


def segments_path(path: Path) -> Path:
    """`pairs.parquet` -> `pairs.segments.jsonl`."""
    return path.with_name(path.stem + ".segments.jsonl")


def _read_parquet(path: Path) -> Iterator[PreferenceRecord]:
    for row, values in enumerate(_parquet_rows(path)):
        where = f"{path}, row {row}"
        text = _json_object(values["text"], f"{where}, text")
        image = values["image"] or {}
        if not isinstance(image, dict) or not isinstance(image.get("bytes"), bytes) or not image["bytes"]:
            raise UserError(f"{where}, image: expected a struct with encoded bytes, found none.")
        if values["idx"] is None:
            raise UserError(f"{where}, idx: expected a number that identifies the pair, found null.")
        yield _record(str(values["idx"]), image["bytes"], text, values.get("origin_dataset") or "", where)


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        file = pq.ParquetFile(path)
        missing = [name for name in ("image", "text", "idx") if name not in file.schema_arrow.names]
        if missing:
            raise UserError(f"{path}: column {missing[0]!r} is missing; found {', '.join(file.schema_arrow.names)}.")
        for batch in file.iter_batches(batch_size=256):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable parquet file ({error}).") from error


def _read_jsonl(path: Path) -> Iterator[PreferenceRecord]:
    for row, line in jsonl_lines(path):
        where = f"{path}, row {row}"
        values = _json_object(line, where)
        identity = values.get("id", row)
        if isinstance(identity, bool) or not isinstance(identity, str | int):
            raise UserError(f"{where}, id: expected text or a number, found {type(identity).__name__}.")
        image = _jsonl_image(values, path.parent, where)
        yield _record(str(identity), image, values, str(values.get("origin", "")), where)


def jsonl_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Row numbers (from 0) and texts of the lines that are not blank."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {path} as UTF-8 text ({error}).") from error
    for row, line in enumerate(lines):
        if line.strip():
            yield row, line


def _jsonl_image(values: dict[str, Any], folder: Path, where: str) -> bytes:
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


def _json_object(text: Any, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(value).__name__}.")
    return value


def _record(identity: str, image: bytes, fields: dict[str, Any], origin: str, where: str) -> PreferenceRecord:
    texts: dict[str, str] = {}
    for name in ("question", "chosen", "rejected"):
        if name not in fields:
            raise UserError(f"{where}, {name}: the field is missing; found {', '.join(fields)}.")
        if not isinstance(fields[name], str):
            raise UserError(f"{where}, {name}: expected text, found {type(fields[name]).__name__}.")
        if not fields[name].strip():
            raise UserError(f"{where}, {name}: the text is empty.")
        try:
            fields[name].encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{where}, {name}: the text holds half a surrogate pair.") from error
        texts[name] = fields[name]
    if texts["chosen"] == texts["rejected"]:
        raise UserError(f"{where}, chosen and rejected: the two answers are equal, so the pair prefers nothing.")
    return PreferenceRecord(
        identity, image, texts["question"], texts["chosen"], texts["rejected"], origin=origin, where=where
    )


def read_segments(path: Path) -> dict[str, dict[str, Any]]:
    """The sidecar's lines by id; empty where the file does not exist."""
    if not path.exists():
        return {}
    sidecar: dict[str, dict[str, Any]] = {}
    for row, line in jsonl_lines(path):
        value = _json_object(line, f"{path}, row {row}")
        if "id" not in value:
            raise UserError(f"{path}, row {row}, id: the field is missing.")
        if str(value["id"]) in sidecar:
            raise UserError(f"{path}, row {row}, id: {str(value['id'])!r} was used before.")
        sidecar[str(value["id"])] = value | {"where": f"{path}, row {row}"}
    return sidecar


def _with_segments(record: PreferenceRecord, sidecar: dict[str, Any] | None) -> PreferenceRecord:
    if sidecar is None:
        return record
    sides = []
    for side, answer in (("chosen", record.chosen), ("rejected", record.rejected)):
        where = f"{sidecar['where']}, {side}"
        found = sidecar.get(side)
        if not isinstance(found, list) or not all(map(_is_segment, found)):
            raise UserError(f"{where}: expected a list of objects with start, end and type, found {found!r}.")
        segments = tuple(Segment(s["start"], s["end"], str(s.get("type") or "")) for s in found)
        for segment in segments:
            if not 0 <= segment.start <= segment.end <= len(answer):
                raise UserError(
                    f"{where}: [{segment.start}, {segment.end}) leaves the answer's {len(answer)} characters."
                )
        sides.append(segments)
    return dataclasses.replace(record, segments=(sides[0], sides[1]))


def _is_segment(value: Any) -> bool:
    return isinstance(value, dict) and all(type(value.get(name)) is int for name in ("start", "end"))


def write_parquet(records: Sequence[PreferenceRecord], path: str | Path, ds_name: str = "rlhf-v") -> None:
    """Writes the published schema; numeric ids become `idx`, other ids are an error. Segments go to the sidecar."""
    path = Path(path)
    for record in records:
        if (
            not (record.id.isascii() and record.id.isdecimal() and str(int(record.id)) == record.id)
            or int(record.id) >= 2**63
        ):
            raise UserError(f"Cannot write {path}: the parquet schema needs a whole number as id, found {record.id!r}.")
    rows = [
        {
            "ds_name": ds_name,
            "image": {"bytes": record.image, "path": None},
            "text": json.dumps({"question": record.question, "chosen": record.chosen, "rejected": record.rejected}),
            "origin_dataset": record.origin,
            "origin_split": "{}",
            "idx": int(record.id),
            "image_path": "",
        }
        for record in records
    ]
    table = pa.Table.from_pylist(rows, PARQUET_SCHEMA)
    _write(path, records, lambda temporary: pq.write_table(table, temporary))


def write_jsonl(records: Sequence[PreferenceRecord], path: str | Path) -> None:
    """Writes one self-contained line per record, the image as base64. Segments go to the sidecar."""
    path = Path(path)
    lines = [
        {
            "id": record.id,
            "question": record.question,
            "chosen": record.chosen,
            "rejected": record.rejected,
            "origin": record.origin,
            "image_base64": base64.b64encode(record.image).decode(),
        }
        for record in records
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    _write(path, records, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _write(path: Path, records: Sequence[PreferenceRecord], write: Callable[[Path], Any]) -> None:
    """Writes the file and its segments under temporary names, then renames both; a failure leaves the old ones."""
    sidecar = segments_path(path)
    temporary, temporary_sidecar = (file.with_name(file.name + ".tmp") for file in (path, sidecar))
    lines = [
        {"id": record.id}
        | {
            side: [dataclasses.asdict(segment) for segment in segments]
            for side, segments in zip(("chosen", "rejected"), record.segments, strict=True)
        }
        for record in records
        if record.segments is not None
    ]
    segments_text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    sibling = path.with_suffix(".jsonl" if path.suffix == ".parquet" else ".parquet")
    if sibling.exists() and sidecar.exists() and sidecar.read_text(encoding="utf-8") != segments_text:
        raise UserError(
            f"Cannot write {path}: {sidecar.name} holds the segments of {sibling.name}; choose another name."
        )
    try:
        write(temporary)
        temporary_sidecar.write_text(segments_text, encoding="utf-8")
        if lines:
            os.replace(temporary_sidecar, sidecar)
        else:
            sidecar.unlink(missing_ok=True)  # an older file's segments do not belong to these records
        os.replace(temporary, path)
    except UnicodeEncodeError as error:
        raise UserError(f"Cannot write {path}: a text holds half a surrogate pair.") from error
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
        temporary_sidecar.unlink(missing_ok=True)


def digest(records: Sequence[PreferenceRecord]) -> str:
    """sha256 of everything that training reads, in order; the same for the same rows in any file format."""
    sha = hashlib.sha256()
    for record in records:
        segments = record.segments and [[s.__dict__ for s in side] for side in record.segments]
        fields = [record.id, record.question, record.chosen, record.rejected, segments]
        sha.update(json.dumps(fields).encode())
        sha.update(hashlib.sha256(record.image).digest())
    return sha.hexdigest()
