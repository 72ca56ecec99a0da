"""Orbax → PyTorch: a Hugging Face directory with config.json, tokenizer, safetensors shards and their index.

The shards are written here, without torch: a safetensors file is the length of a JSON header, the header, and the
tensors' bytes in its order, so that one layer at a time suffices.
"""

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from rlhfv_jax.conversion.sizes import Plan
from rlhfv_jax.streaming import StoredArray, finished_directory

DTYPES = {np.dtype(np.float32): "F32", np.dtype(ml_dtypes.bfloat16): "BF16", np.dtype(np.float16): "F16"}


class Tensor(NamedTuple):
    """A tensor to be written, as a safetensors header describes it."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write(
    stored: Mapping[str, StoredArray],
    plan: Plan,
    destination: Path,
    dtype: np.dtype,
    files: Mapping[str, bytes],
    shard_bytes: int,
    check: Callable[[Path], Any],
) -> Any:
    """Writes the directory, with `files` beside the weights, a file of them at most `shard_bytes` bytes.

    Nothing stands at `destination` until all of it does and passes `check`; returns what `check` says of the directory.
    """
    shards = split(listed(plan, dtype), shard_bytes)
    with finished_directory(destination) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        values = tensors(stored, plan, dtype)
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            name = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
            write_safetensors(folder / name, shard, values)
            weight_map |= {tensor.name: name for tensor in shard}
        if len(shards) > 1:
            total = sum(tensor.nbytes for shard in shards for tensor in shard)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        return check(folder)


def listed(plan: Plan, dtype: np.dtype) -> list[Tensor]:
    """Every tensor of the directory, in the order of `tensors`."""
    named = [(name, entry) for entry in plan.entries for name in entry.names(plan.sizes)]
    weights = [Tensor(name, entry.torch_shape(plan.sizes), dtype) for name, entry in named]
    return weights + [Tensor(name, table.shape, table.dtype) for name, table in plan.layout.buffers(plan.config)]


def split(tensors: Sequence[Tensor], shard_bytes: int) -> list[list[Tensor]]:
    """The tensors in their order, cut into shards of at most `shard_bytes` (or one tensor)."""
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    return shards


def tensors(stored: Mapping[str, StoredArray], plan: Plan, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """Name and values of every PyTorch tensor, read layer by layer."""
    for entry in plan.entries:
        array = stored[entry.path]
        layers = array.entries() if entry.stack else iter([array.read()])
        for name, values in zip(entry.names(plan.sizes), layers, strict=True):
            yield name, np.ascontiguousarray(entry.to_torch(values, plan.sizes), dtype)
    yield from plan.layout.buffers(plan.config)


def write_safetensors(path: Path, shard: Sequence[Tensor], values: Iterator[tuple[str, np.ndarray]]) -> None:
    """One file, its tensors taken from `values` as they come."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in shard:
        offsets = [end, end + tensor.nbytes]
        header[tensor.name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        end += tensor.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format asks for alignment
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for tensor in shard:
            name, array = next(values)
            assert (name, array.shape, array.dtype) == tensor, (name, tensor)
            file.write(array.view(np.uint8).data)
