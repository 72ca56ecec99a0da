"""Reads both sides of a conversion again and compares them bit for bit, one layer at a time."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rlhfv_jax.conversion import to_orbax
from rlhfv_jax.conversion.sizes import Plan
from rlhfv_jax.conversion.torch_files import Tensors
from rlhfv_jax.errors import UserError
from rlhfv_jax.streaming import StoredArray


def to_orbax_side(tensors: Tensors, stored: Mapping[str, StoredArray], plan: Plan, where: Path) -> int:
    """Compares every stored layer with its tensor, cast to the stored dtype; their number."""
    compared = 0
    for entry in plan.entries:
        array = stored[entry.path]
        layers = array.entries() if entry.stack else iter([array.read()])
        for name, found in zip(entry.names(plan.sizes), layers, strict=True):
            _same(to_orbax.layer(tensors, entry, name, plan, array.dtype), found, name, where)
            compared += 1
    return compared


def to_torch_side(stored: Mapping[str, StoredArray], tensors: Tensors, plan: Plan, where: Path) -> int:
    """Compares every written tensor with its stored layer, cast to the written dtype; their number."""
    compared = 0
    for entry in plan.entries:
        array = stored[entry.path]
        layers = array.entries() if entry.stack else iter([array.read()])
        for name, values in zip(entry.names(plan.sizes), layers, strict=True):
            found = tensors.read(name)
            _same(entry.to_torch(values, plan.sizes).astype(found.dtype), found, name, where)
            compared += 1
    return compared


def _same(expected: np.ndarray, found: np.ndarray, name: str, where: Path) -> None:
    if expected.dtype != found.dtype or expected.tobytes() != found.tobytes():  # NaNs compare by their bits
        raise UserError(f"Verification failed: {name} in {where} is not what it was converted from.")
