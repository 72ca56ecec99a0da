"""Image features of a frozen tower: computed once by the policy's own, kept on disk, found by what they depend on.

The rules are those of `refcache`: a file says which tower, image transform and dtype its features are of; on loading
this is compared, and what differs is named. An image is found by its own bytes, so no shuffle can misalign it.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rlhfv_jax import provenance, sharding
from rlhfv_jax.data import features, pipeline
from rlhfv_jax.data.features import FeatureFile
from rlhfv_jax.errors import UserError
from rlhfv_jax.metrics import Reporter


def load(path: Path, facts: Mapping[str, Any], records: Sequence[Any]) -> FeatureFile:
    """The file's features; raises UserError where they are of something else or lack an image of the records."""
    found = FeatureFile(path)
    provenance.check(f"The file of image features {path}", found.facts, facts)
    for record in records:
        if record.image not in found:
            raise UserError(f"The file of image features {path} has nothing for the image of {record.where}.")
    return found


def compute(
    path: Path,
    facts: Mapping[str, Any],
    records: Sequence[Any],
    encode: Callable[[jax.Array], jax.Array],
    image_size: int,
    batch_size: int,
    mesh: Mesh,
) -> None:
    """Writes `encode(uint8[B, S, S, 3]) -> [B, Q, E]` of every image that the records have, each once."""
    distinct = {features.image_digest(record.image): record for record in records}
    digests = list(distinct)
    shares = pipeline.Shares(sharding.shares_here(mesh), sharding.ways(mesh))

    def batches() -> Iterator[tuple[list[str], np.ndarray]]:
        with Reporter("image features", len(digests), unit="images", shown=jax.process_index() == 0) as reporter:
            for first in range(0, len(digests), batch_size):
                part = digests[first : first + batch_size]
                pixels = [pipeline.pixels(distinct[digest], image_size) for digest in part]
                pixels += pixels[-1:] * (batch_size - len(part))
                mine = np.stack([pixels[place] for place in shares.places(batch_size)])
                seen = sharding.fetch(encode(sharding.put(mine, mesh)), mesh)
                yield part, seen[: len(part)]
                reporter.update(first + len(part))

    if jax.process_index() == 0:
        features.write(path, facts, batches())
    else:
        collections.deque(batches(), maxlen=0)  # what it computes, process 0 writes
