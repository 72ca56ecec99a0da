"""Reference log-probs: computed once by the policy's own forward pass, kept on disk, found by what they depend on.

The cache is one parquet file with a row per pair: id, and for chosen and rejected the tokens (T, unpadded) and the
log-probs (T-1). Its name is the digest of everything the numbers depend on (parameters, tokenizer, template, image
size, dtype, model, records), so a stale file cannot be taken for a fresh one; the tokens are compared row by row again
on loading. Rows are found by record id, so no shuffle can misalign them.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jax.sharding import Mesh

from rlhfv_jax import sharding
from rlhfv_jax.data.encoding import EncodedPair
from rlhfv_jax.data.images import Augmentation
from rlhfv_jax.data.pipeline import PairSource, ordered_batches
from rlhfv_jax.data.records import SIDES
from rlhfv_jax.errors import UserError
from rlhfv_jax.metrics import Reporter
from rlhfv_jax.structs import IGNORE


def key(facts: Mapping[str, Any]) -> str:
    """sha256 of the facts that the log-probs depend on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def compute(
    forward: Callable[[Any, Any], jax.Array],
    params: Any,
    source: PairSource,
    batch_size: int,
    mesh: Mesh,
    augment: Augmentation | None = None,
    seed: int = 0,
) -> np.ndarray:
    """float32[pairs, 2, T-1]: `forward(params, batch)` over the whole source, in batches sharded over the mesh.

    `augment` shows the reference one random view of each image, drawn from the seed.
    """
    results = []
    with Reporter("reference log-probs", len(source), unit="pairs") as reporter:
        for batch in ordered_batches(source, batch_size, augment, seed):
            logps = np.asarray(forward(params, sharding.put(batch, mesh)))
            results.append(logps[batch.valid])
            reporter.update(min(len(source), sum(map(len, results))))
    return np.concatenate(results)


def stored(pairs: Sequence[EncodedPair], length: int) -> np.ndarray:
    """float32[pairs, 2, length-1], the log-probs that the records carry; raises UserError where they do not fit.

    Nothing but their number ties them to the tokens, so a length that differs by one is refused.
    """
    logps = np.zeros((len(pairs), 2, length - 1), np.float32)
    for i, pair in enumerate(pairs):
        if pair.record.logps is None:
            raise UserError(f"{pair.record.where}: the pair has no stored log-probs, as data.reference=stored wants.")
        for side, name in enumerate(SIDES):
            values, targets = pair.record.logps[side], len(pair.rows[side].labels)
            if len(values) != targets:
                raise UserError(
                    f"{pair.record.where}, logps: {len(values)} stored log-probs for the {name} answer, whose row has "
                    f"{targets} tokens after the first; they are of another tokenizer, template or length."
                )
            logps[i, side, :targets] = np.where(pair.rows[side].labels == IGNORE, 0.0, values)
    return logps


def save(path: Path, cache_key: str, pairs: Sequence[EncodedPair], logps: np.ndarray) -> None:
    """Writes the cache file, whole or not at all."""
    columns: dict[str, Any] = {"id": [pair.record.id for pair in pairs]}
    for side, name in enumerate(SIDES):
        lengths = [len(pair.rows[side].tokens) for pair in pairs]
        columns[f"{name}_tokens"] = [pair.rows[side].tokens for pair in pairs]
        columns[f"{name}_logps"] = [logps[i, side, : length - 1] for i, length in enumerate(lengths)]
    table = pa.table(columns).replace_schema_metadata({"rlhfv_jax.key": cache_key})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    pq.write_table(table, temporary)
    os.replace(temporary, path)


def load(path: Path, cache_key: str, pairs: Sequence[EncodedPair], length: int) -> np.ndarray:
    """float32[pairs, 2, length-1] in the order of `pairs`, zero-padded; raises UserError on any disagreement."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"The reference cache {path} cannot be read ({error}); delete it to compute it anew."
        ) from error
    found = (table.schema.metadata or {}).get(b"rlhfv_jax.key", b"").decode()
    if found != cache_key:
        raise UserError(
            f"The reference cache {path} was made for something else (key {found[:12]}, needed {cache_key[:12]}: "
            "parameters, tokenizer, template, image size, dtype or data differ); delete it to compute it anew."
        )
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    rows = {identity: i for i, identity in enumerate(columns["id"])}
    logps = np.zeros((len(pairs), 2, length - 1), np.float32)
    for i, pair in enumerate(pairs):
        if pair.record.id not in rows:
            raise UserError(
                f"The reference cache {path} has no row for the pair {pair.record.id} ({pair.record.where})."
            )
        row = rows[pair.record.id]
        for side, name in enumerate(SIDES):
            if columns[f"{name}_tokens"][row] != pair.rows[side].tokens.tolist():
                raise UserError(f"The reference cache {path} has other {name} tokens for the pair {pair.record.id}.")
            values = columns[f"{name}_logps"][row]
            logps[i, side, : len(values)] = values
    return logps
