"""Reference log-probs: computed once by the policy's own forward pass, kept on disk, found by what they depend on.

A cache is one parquet file with a row per pair: id, sha256 of the image's bytes, and for chosen and rejected the tokens
(T, unpadded), labels, weights and log-probs (T-1). The file carries everything the log-probs depend on besides its rows
(parameters, tokenizer, template, image transform, dtype, model); on loading, these facts and each row's tokens, labels
and image are compared, and what differs is named. Rows are found by record id, so no shuffle can misalign them. Weights
are there to be read: log-probs do not depend on them, so γ may change.
"""

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

from rlhfv_jax import provenance, sharding
from rlhfv_jax.data.encoding import EncodedPair
from rlhfv_jax.data.features import FACTS, image_digest
from rlhfv_jax.data.images import Augmentation
from rlhfv_jax.data.pipeline import PairSource, Shares, ordered_batches
from rlhfv_jax.data.records import SIDES
from rlhfv_jax.errors import UserError
from rlhfv_jax.metrics import Reporter
from rlhfv_jax.structs import IGNORE


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
    results, rows = [], []
    with Reporter("reference log-probs", len(source), unit="pairs", shown=jax.process_index() == 0) as reporter:
        shares = Shares(sharding.shares_here(mesh), sharding.ways(mesh))
        for batch in ordered_batches(source, batch_size, augment, seed, shares):
            placed = sharding.put(batch, mesh)
            # Every process keeps the log-probs of all rows: it trains on another share of them at every step.
            row, valid, seen = sharding.fetch((placed.row, placed.valid, forward(params, placed)), mesh)
            found, logps = source.of_rows(batch._replace(row=row, valid=valid), seen)
            rows.append(found)
            results.append(logps)
            reporter.update(min(len(source), sum(map(len, results))))
    return np.concatenate(results)[np.argsort(np.concatenate(rows))]


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


def save(path: Path, facts: Mapping[str, Any], pairs: Sequence[EncodedPair], logps: np.ndarray) -> None:
    """Writes the cache file, whole or not at all."""
    images = [image_digest(pair.record.image) for pair in pairs]
    columns: dict[str, Any] = {"id": [pair.record.id for pair in pairs], "image": images}
    for side, name in enumerate(SIDES):
        lengths = [len(pair.rows[side].tokens) for pair in pairs]
        columns[f"{name}_tokens"] = [pair.rows[side].tokens for pair in pairs]
        columns[f"{name}_labels"] = [pair.rows[side].labels for pair in pairs]
        columns[f"{name}_weights"] = [pair.weights[side] for pair in pairs]
        columns[f"{name}_logps"] = [logps[i, side, : length - 1] for i, length in enumerate(lengths)]
    table = pa.table(columns).replace_schema_metadata({FACTS: json.dumps(facts, sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    pq.write_table(table, temporary)
    os.replace(temporary, path)


def load(path: Path, facts: Mapping[str, Any], pairs: Sequence[EncodedPair], length: int) -> np.ndarray:
    """float32[pairs, 2, length-1] in the order of `pairs`, zero-padded; raises UserError on any disagreement."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"The reference cache {path} cannot be read ({error}); delete it to compute it anew."
        ) from error
    metadata = table.schema.metadata or {}
    if FACTS not in metadata:
        raise UserError(f"{path} is no reference cache: it does not say which model its log-probs are of.")
    provenance.check(f"The reference cache {path}", json.loads(metadata[FACTS]), facts)
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    rows = {identity: i for i, identity in enumerate(columns["id"])}
    logps = np.zeros((len(pairs), 2, length - 1), np.float32)
    for i, pair in enumerate(pairs):
        if pair.record.id not in rows:
            raise UserError(
                f"The reference cache {path} has no row for the pair {pair.record.id} ({pair.record.where})."
            )
        row = rows[pair.record.id]
        if columns["image"][row] != image_digest(pair.record.image):
            raise UserError(f"The reference cache {path} has another image for the pair {pair.record.id}.")
        for side, name in enumerate(SIDES):
            for what, values in (("tokens", pair.rows[side].tokens), ("labels", pair.rows[side].labels)):
                if columns[f"{name}_{what}"][row] != values.tolist():
                    raise UserError(
                        f"The reference cache {path} has other {name} {what} for the pair {pair.record.id}."
                    )
            found = columns[f"{name}_logps"][row]
            logps[i, side, : len(found)] = found
    return logps
