"""Preference records to files: the published parquet schema and JSONL, each with its segments beside it."""

import base64
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlhfv_jax.data.records import SIDES, PreferenceRecord, segments_path
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
# What Hugging Face's `datasets` reads to know that the struct is an image.
_FEATURES = {
    field.name: {"_type": "Image"} if field.name == "image" else {"dtype": str(field.type), "_type": "Value"}
    for field in PARQUET_SCHEMA
}
PARQUET_SCHEMA = PARQUET_SCHEMA.with_metadata({"huggingface": json.dumps({"info": {"features": _FEATURES}})})
ROW_GROUP = 256


def write_parquet(
    records: Sequence[PreferenceRecord],
    path: str | Path,
    ds_name: str = "rlhf-v",
    splits: Mapping[str, Mapping[str, str]] | None = None,
    image_names: Mapping[str, str] | None = None,
) -> None:
    """Writes the published schema; numeric ids become `idx`, other ids are an error. Segments go to the sidecar.

    `splits` holds by id what goes to `origin_split` as JSON (the answer's model, the kind of prompt), `image_names`
    by id what the image was called. The same records give the same bytes.
    """
    path = Path(path)
    splits, image_names = splits or {}, image_names or {}
    for record in records:
        if (
            not (record.id.isascii() and record.id.isdecimal() and str(int(record.id)) == record.id)
            or int(record.id) >= 2**63
        ):
            raise UserError(f"Cannot write {path}: the parquet schema needs a whole number as id, found {record.id!r}.")
    rows = [
        {
            "ds_name": ds_name,
            "image": {"bytes": record.image, "path": image_names.get(record.id)},
            "text": json.dumps(_texts(record)),
            "origin_dataset": record.origin,
            "origin_split": json.dumps(splits.get(record.id, {})),
            "idx": int(record.id),
            "image_path": image_names.get(record.id, ""),
        }
        for record in records
    ]
    table = pa.Table.from_pylist(rows, PARQUET_SCHEMA)
    _write(path, records, lambda temporary: pq.write_table(table, temporary, row_group_size=ROW_GROUP))


def write_jsonl(records: Sequence[PreferenceRecord], path: str | Path) -> None:
    """Writes one self-contained line per record, the image as base64. Segments go to the sidecar."""
    path = Path(path)
    lines = [
        {"id": record.id}
        | _texts(record)
        | {"origin": record.origin, "image_base64": base64.b64encode(record.image).decode()}
        for record in records
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    _write(path, records, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _texts(record: PreferenceRecord) -> dict[str, Any]:
    """Question, chosen, rejected, and what only some records have; sums and averages are left to the reader."""
    texts: dict[str, Any] = {"question": record.question, "chosen": record.chosen, "rejected": record.rejected}
    if record.history:
        texts["history"] = record.history
    if record.logps:
        chosen, rejected = record.logps
        means = [sum(side) / max(len(side), 1) for side in record.logps]
        texts["logps"] = [sum(chosen), means[0], chosen, sum(rejected), means[1], rejected]
    return texts


def _write(path: Path, records: Sequence[PreferenceRecord], write: Callable[[Path], Any]) -> None:
    """Writes the file and its segments under temporary names, then renames both; a failure leaves the old ones."""
    sidecar = segments_path(path)
    temporary, temporary_sidecar = (file.with_name(file.name + ".tmp") for file in (path, sidecar))
    lines = [
        {"id": record.id}
        | {
            side: [dataclasses.asdict(segment) for segment in segments]
            for side, segments in zip(SIDES, record.segments, strict=True)
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
        for file in (temporary, temporary_sidecar):
            _sync(file)
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


def _sync(path: Path) -> None:
    """Waits until the file is on the disk, so that its new name never stands for half of it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
