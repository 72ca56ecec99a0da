"""PyTorch → Orbax: every tensor through the table, one layer of one parameter in memory at a time."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhfv_jax import streaming, trees
from rlhfv_jax.conversion.sizes import Plan
from rlhfv_jax.conversion.table import Entry
from rlhfv_jax.conversion.torch_files import Tensors
from rlhfv_jax.models import vlm
from rlhfv_jax.streaming import Block, StreamedArray


def check_targets(plan: Plan) -> None:
    """Asserts that the table sets every parameter of the model exactly once, in its shape."""
    paths = [entry.path for entry in plan.entries]
    assert len(paths) == len(set(paths)), "a parameter is set twice"
    ours = {entry.path: jax.ShapeDtypeStruct(entry.our_shape(plan.sizes), jnp.float32) for entry in plan.entries}
    lines = trees.diff(vlm.abstract_params(plan.config), trees.nest(ours))
    assert not lines, lines


def streamed(tensors: Tensors, plan: Plan, dtype: np.dtype) -> dict[str, StreamedArray]:
    """Every parameter by path, read from the tensors only while it is written."""

    def array(entry: Entry) -> StreamedArray:
        def blocks() -> Iterator[Block]:
            for index, name in enumerate(entry.names(plan.sizes)):
                yield (index if entry.stack else None), layer(tensors, entry, name, plan, dtype)

        return StreamedArray(entry.our_shape(plan.sizes), dtype, entry.stack is not None, blocks)

    return {entry.path: array(entry) for entry in plan.entries}


def layer(tensors: Tensors, entry: Entry, name: str, plan: Plan, dtype: np.dtype) -> np.ndarray:
    """One tensor as our layer, in `dtype`; the transposition is carried out here, into fresh memory."""
    return np.ascontiguousarray(entry.to_ours(tensors.read(name), plan.sizes), dtype)


def write(
    tensors: Tensors,
    plan: Plan,
    destination: Path,
    dtype: np.dtype,
    meta: Mapping[str, Any],
    check: Callable[[Path], Any],
) -> Any:
    """Writes `destination`/checkpoints/0; nothing stands at `destination` until all of it does and passes `check`.

    Returns what `check` says of the written directory.
    """
    check_targets(plan)
    with streaming.finished_directory(destination) as folder:
        streaming.write(folder, streamed(tensors, plan, dtype), meta)
        return check(folder)
