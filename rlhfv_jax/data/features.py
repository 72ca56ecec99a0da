"""What a frozen vision tower says of images, in one memory-mapped Arrow file, found by the images' own bytes.

One row an image: its sha256, and its features [Q, E] as bytes; dtype, shape and what the features depend on are in the
file's metadata.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  teaches numpy what bfloat16 is
import numpy as np
import pyarrow as pa

from rlhfv_jax.errors import UserError

FACTS, SHAPE, DTYPE = b"rlhfv_jax.facts", b"rlhfv_jax.shape", b"rlhfv_jax.dtype"  # of the file's metadata


def image_digest(image: bytes) -> str:
    """sha256 of an image's file."""
    return hashlib.sha256(image).hexdigest()


def write(path: Path, facts: Mapping[str, Any], batches: Iterable[tuple[list[str], np.ndarray]]) -> None:
    """Writes digests with their features [n, Q, E] as they come; the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    schema, writer = None, None
    with pa.OSFile(str(temporary), "wb") as sink:
        for digests, features in batches:
            if schema is None or writer is None:
                metadata = {FACTS: json.dumps(facts, sort_keys=True)}
                metadata |= {SHAPE: json.dumps(features.shape[1:]), DTYPE: features.dtype.name}
                schema = pa.schema({"image": pa.string(), "features": pa.binary(features[0].nbytes)}, metadata)
                writer = pa.ipc.new_file(sink, schema)
            rows = pa.array([row.tobytes() for row in features], schema.field("features").type)
            writer.write_batch(pa.record_batch([pa.array(digests), rows], schema=schema))
        assert writer is not None, "no batches"
        writer.close()
    temporary.replace(path)


class FeatureFile:
    """Features by image; opened where it is first used, so that worker processes map the file instead of copying it."""

    def __init__(self, path: Path):
        self.path = path

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __contains__(self, image: bytes) -> bool:
        return image_digest(image) in self._rows

    def __getitem__(self, image: bytes) -> np.ndarray:
        """[Q, E], of the image with these bytes."""
        return self._rows[image_digest(image)]

    @property
    def facts(self) -> dict[str, Any]:
        """What the features depend on."""
        return json.loads(self._table.schema.metadata[FACTS])

    @functools.cached_property
    def _table(self) -> pa.Table:
        """Raises UserError where the file is not one of features, or cut short."""
        try:
            table = pa.ipc.open_file(pa.memory_map(str(self.path))).read_all()
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"The image features {self.path} cannot be read ({error}); delete the file.") from error
        if FACTS not in (table.schema.metadata or {}):
            raise UserError(f"{self.path} is no file of image features: it does not say which model they are of.")
        return table

    @functools.cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        metadata = self._table.schema.metadata
        shape, dtype = json.loads(metadata[SHAPE]), np.dtype(metadata[DTYPE].decode())
        rows: dict[str, np.ndarray] = {}
        for batch in self._table.to_batches():
            values = np.frombuffer(batch["features"].buffers()[1], dtype).reshape(-1, *shape)
            rows.update(zip(batch["image"].to_pylist(), values, strict=False))
        return rows
