"""Preference records from files, and back. This is the public face; each format's reader stands in `readers`.

    .parquet        the published schema: ds_name, image {bytes, path}, text (a JSON string), origin_dataset,
                    origin_split, idx, image_path
    .jsonl, .json   question, chosen, rejected, and image (a path relative to the file) or image_base64; or a ranking
    .tsv            Muffin's
    a folder        a TFDS build, as `data.tfds.rlhfv` writes it

Segments travel beside a file as `<name>.segments.jsonl`, one line per record: {"id", "chosen": [{"start", "end",
"type"}], "rejected": [...]}, character offsets into the two answers.
"""

from collections.abc import Sequence
from pathlib import Path

from rlhfv_jax.data.readers import read_json, read_jsonl, read_parquet, read_tsv
from rlhfv_jax.data.records import (
    PreferenceRecord,
    Segment,
    digest,
    read_segments,
    segments_path,
    select,
    unique,
    with_segments,
)
from rlhfv_jax.data.writers import PARQUET_SCHEMA, write_jsonl, write_parquet
from rlhfv_jax.errors import UserError

__all__ = [
    "PARQUET_SCHEMA",
    "PreferenceRecord",
    "Segment",
    "digest",
    "read",
    "segments_path",
    "write_jsonl",
    "write_parquet",
]

READERS = {".parquet": read_parquet, ".jsonl": read_jsonl, ".json": read_json, ".tsv": read_tsv}


def read(path: str | Path, origins: Sequence[str] = (), count: int = 0) -> list[PreferenceRecord]:
    """All records of a file or TFDS folder, checked, then `select`ed. Raises UserError naming file, row and field."""
    path = Path(path)
    if path.is_dir():
        from rlhfv_jax.data.tfds import rlhfv  # its import takes a second, and most data are files

        records = rlhfv.read(path)
    else:
        records = _read_file(path)
    unique(records)
    return select(records, origins, count, path)


def _read_file(path: Path) -> list[PreferenceRecord]:
    if not path.is_file():
        raise UserError(f"The data file {path} does not exist.")
    if path.suffix not in READERS:
        raise UserError(f"Cannot read {path}: expected preference pairs as {', '.join(READERS)} or a folder.")
    segments = read_segments(segments_path(path))
    records = [with_segments(record, segments.pop(record.id, None)) for record in READERS[path.suffix](path)]
    if not records:
        raise UserError(f"The data file {path} has no rows.")
    if segments:
        raise UserError(f"{segments_path(path)}: id {next(iter(segments))!r} does not occur in {path}.")
    return records
