"""Checkpoints of LoRA runs: adapters, and a record of the base they belong to.

`meta["lora"]` holds rank, alpha, targets, the base's path and the digest of its stored bytes. Whoever reads such a
checkpoint here gets the merged parameters; a base that is gone or has changed is an error.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rlhfv_jax import checkpoint, lora, sharding, trees
from rlhfv_jax.errors import UserError
from rlhfv_jax.streaming import StoredArray, StoredArrays


def record(base: str | Path, settings: lora.Lora) -> dict[str, Any]:
    """What a LoRA run's checkpoints say of themselves; reads the base once, for its digest."""
    where = checkpoint.find(base)
    return {
        "rank": settings.rank,
        "alpha": settings.alpha,
        "targets": settings.targets,
        "base": str(where),
        "base_digest": digest(where),
    }


def digest(path: str | Path) -> str:
    """sha256 over the stored arrays of a checkpoint, and over its base's where it has one; a layer in memory at a time.

    Paths, shapes, dtypes and bytes count; how Orbax cut them into files does not.
    """
    sha = hashlib.sha256()
    meta = checkpoint.read_meta(path)
    if "lora" in meta:
        sha.update(f"{meta['lora']['base_digest']} {meta['lora']['alpha']}".encode())
    stored = StoredArrays(path)
    for name in sorted(stored):
        array = stored[name]
        sha.update(f"{name} {array.dtype.name}{list(array.shape)}".encode())
        for part in array.entries() if len(array.shape) > 2 else [array.read()]:
            sha.update(np.ascontiguousarray(part).tobytes())
    return sha.hexdigest()


def check_base(meta: Mapping[str, Any], path: str | Path) -> Path:
    """The base of the LoRA checkpoint at `path`; raises UserError where it is gone or is not what it was."""
    base = Path(meta["lora"]["base"])
    if not checkpoint.exists(base):
        raise UserError(f"The LoRA checkpoint {path} needs its base {base}, which is not there; put it back.")
    if (found := digest(base)) != meta["lora"]["base_digest"]:
        raise UserError(
            f"The base {base} of the LoRA checkpoint {path} has changed (digest {found[:12]}, trained on "
            f"{meta['lora']['base_digest'][:12]}); adapters fit only the base they were trained on."
        )
    return base


@dataclass(frozen=True)
class MergedArray(StoredArray):
    """A kernel of the base plus its adapter's product, in the base's dtype, computed as it is read."""

    base: StoredArray
    delta: tuple[np.ndarray, np.ndarray]  # A, and B times alpha / rank
    stacked: bool

    def read(self) -> np.ndarray:
        return self._plus(self.base.read(), *self.delta, self.stacked)

    def entries(self) -> Iterator[np.ndarray]:
        if not self.stacked:
            yield from self.read()
            return
        for layer, a, b in zip(self.base.entries(), *self.delta, strict=True):
            yield self._plus(layer, a, b, False)

    def _plus(self, kernel: np.ndarray, a: np.ndarray, b: np.ndarray, stacked: bool) -> np.ndarray:
        return (kernel.astype(np.float32) + lora.product(a, b, stacked)).astype(self.dtype)


def open_arrays(path: str | Path) -> Mapping[str, StoredArray]:
    """The stored parameters of any checkpoint by path, those of a LoRA run merged with its base."""
    meta = checkpoint.read_meta(path)
    own = StoredArrays(path)
    if "lora" not in meta:
        return own
    arrays = dict(open_arrays(check_base(meta, path)))
    scale = np.float32(meta["lora"]["alpha"] / meta["lora"]["rank"])
    for name in own:
        if name.endswith("lora_a"):
            root = name.removesuffix("lora_a")
            base, stacked = arrays[f"{root}kernel"], "layers/" in root
            delta = own[name].read(), own[f"{root}lora_b"].read() * scale
            arrays[f"{root}kernel"] = MergedArray(base.shape, base.dtype, base.spec, base.context, base, delta, stacked)
    return arrays


def restore_params(path: str | Path, abstract: Any, mesh: Mesh, dtype: Any) -> Any:
    """As `checkpoint.restore_params`, for any checkpoint: parameters cast to `dtype`, a LoRA run's merged.

    Raises UserError where its shapes are not those of `abstract`.
    """
    if "lora" not in checkpoint.read_meta(path):
        return checkpoint.restore_params(path, abstract, mesh, dtype)
    arrays = open_arrays(path)
    found = trees.nest({name: jax.ShapeDtypeStruct(array.shape, dtype) for name, array in arrays.items()})
    if lines := trees.diff(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), abstract), found):
        raise UserError(f"The checkpoint {path} does not fit this run: {'; '.join(lines[:5])}.")

    def place(name: str, where: jax.sharding.NamedSharding) -> jax.Array:
        array = arrays[name].read().astype(dtype)
        return jax.make_array_from_callback(array.shape, where, lambda index: array[index])

    return trees.map_with_path(place, sharding.shardings(abstract, mesh))
