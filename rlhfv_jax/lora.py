"""LoRA (Hu et al. 2021): kernels W become W + (alpha / rank) A B, and only A and B train.

An adapter is two leaves beside its kernel: `lora_a` [L, *inputs, r] and `lora_b` [L, r, *outputs] (no L where layers
are not stacked). The models' `Linear` adds x A B where it finds them, so that parameters without adapters are the base,
and the base is the reference: the same arrays, no copy. The scale alpha / rank enters with `scaled`, once a step.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhfv_jax import trees
from rlhfv_jax.errors import UserError

NAMES = ("lora_a", "lora_b")


@dataclass(frozen=True)
class Lora:
    """Which kernels get adapters of which rank; rank 0 means none: the parameters themselves train."""

    rank: int
    alpha: float
    targets: str  # a regular expression, searched for in the kernels' paths

    @property
    def scale(self) -> float:
        """alpha / rank, what the product of the adapters is multiplied by."""
        return self.alpha / self.rank if self.rank else 0.0


def init(params: Any, lora: Lora, key: jax.Array) -> Any:
    """Fresh adapters of the kernels that `lora.targets` finds, as a tree of their own; with B = 0 they change nothing.

    A is uniform in ±1/sqrt(fan_in), as in PEFT. Raises UserError where no kernel matches.
    """
    flat = dict(trees.paths(params))
    kernels = [path for path in flat if path.endswith("/kernel")]
    chosen = [path for path in kernels if re.search(lora.targets, path)]
    if not chosen:
        raise UserError(f"lora.targets={lora.targets!r} matches no kernel; there are {', '.join(kernels)}.")
    adapters: dict[str, Any] = {}
    for path, one in zip(chosen, jax.random.split(key, len(chosen)), strict=True):
        layers, inputs = trees.kernel_axes(path, len(flat[path].shape))
        before, after = flat[path].shape[: layers + inputs], flat[path].shape[layers + inputs :]
        bound = float(np.prod(before[layers:])) ** -0.5
        root = path.removesuffix("kernel")
        adapters[f"{root}lora_a"] = jax.random.uniform(one, (*before, lora.rank), minval=-bound, maxval=bound)
        adapters[f"{root}lora_b"] = jnp.zeros((*before[:layers], lora.rank, *after))
    return trees.nest(adapters)


def attach(base: Any, adapters: Any) -> Any:
    """One tree of both."""
    return trees.nest(dict(trees.paths(base)) | dict(trees.paths(adapters)))


def adapters_of(params: Any) -> Any:
    """The adapters alone: all that a LoRA run's checkpoint holds of its parameters."""
    return trees.nest({path: leaf for path, leaf in trees.paths(params) if path.endswith(NAMES)})


def base_of(params: Any) -> Any:
    """The parameters without adapters."""
    return trees.nest({path: leaf for path, leaf in trees.paths(params) if not path.endswith(NAMES)})


def scaled(params: Any, scale: float) -> Any:
    """The parameters as the model reads them: every B times alpha / rank."""
    return trees.map_with_path(lambda path, leaf: scale * leaf if path.endswith("/lora_b") else leaf, params)


def at_scale(loss_fn: Callable[[Any, Any], Any], scale: float) -> Callable[[Any, Any], Any]:
    """The same loss over parameters with unscaled adapters."""
    return lambda params, batch: loss_fn(scaled(params, scale), batch)


def product(a: Any, b: Any, stacked: bool) -> Any:
    """A B in the kernel's own shape, for JAX and NumPy arrays; `stacked`: their first axis is that of the layers."""
    layers, rank = a.shape[: int(stacked)], a.shape[-1]
    flat_a, flat_b = a.reshape(*layers, -1, rank), b.reshape(*layers, rank, -1)
    whole = flat_a @ flat_b if isinstance(a, np.ndarray) else jnp.matmul(flat_a, flat_b, precision="highest")
    return whole.reshape(*a.shape[:-1], *b.shape[int(stacked) + 1 :])


def merge(params: Any, scale: float) -> Any:
    """The parameters with every adapter's product added to its kernel, and no adapters."""
    flat = dict(trees.paths(params))

    def merged(path: str, leaf: Any) -> Any:
        root = path.removesuffix("kernel")
        if f"{root}lora_a" not in flat:
            return leaf
        whole = product(flat[f"{root}lora_a"], flat[f"{root}lora_b"], "layers/" in path)
        return (leaf + scale * whole).astype(leaf.dtype)

    return trees.map_with_path(merged, base_of(params))
