"""How the weights that train and their moments lie between two steps: three ways to spend memory on the same AdamW.

    name      weights                                moments                              bytes a parameter
    fp32      float32                                float32                              4 + 8
    split     bfloat16 and the int16 it leaves out   float32                              4 + 8
    split_sr  bfloat16 and the int16 it leaves out   bfloat16, the second one rounded     4 + 4
                                                     stochastically

An update is computed in float32 in all three. A split weight is the float32 weight, bit for bit (`bits.split_float32`);
its upper half is what the model computes with, so that no copy is cast from it, and gathers and gradients have two
bytes a parameter. bfloat16 second moments rounded to nearest would only grow: 0.999 of one is the same number again.
Checkpoints hold float32 weights whatever the plan.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlhfv_jax import bits, trees
from rlhfv_jax.structs import TrainState

NAMES = ("fp32", "split", "split_sr")


class Split(NamedTuple):
    """The optimizer state of the split plans."""

    low: Any  # int16, like the trainable parameters
    inner: Any  # the optimizer's own state


def store(plan: str, weights: Any, inner: Any, step: jax.Array) -> tuple[Any, Any]:
    """Trainable float32 weights and the optimizer's float32 state as a TrainState holds them after `step` updates."""
    if plan == "fp32":
        return weights, inner
    halves = jax.tree.map(bits.split_float32, weights)
    high, low = jax.tree.transpose(jax.tree.structure(weights), jax.tree.structure((0, 0)), halves)
    return high, Split(low, _compressed(inner, step) if plan == "split_sr" else inner)


def load(plan: str, weights: Any, opt_state: Any) -> tuple[Any, Any]:
    """The inverse of `store`: float32 weights and optimizer state."""
    if plan == "fp32":
        return weights, opt_state
    joined = jax.tree.map(bits.join_float32, weights, opt_state.low)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, opt_state.inner)
    return joined, wide


def _compressed(inner: Any, step: jax.Array) -> Any:
    order = {path: index for index, (path, _) in enumerate(trees.paths(inner))}

    def narrow(path: str, leaf: Any) -> Any:
        if "/mu/" in path:
            return leaf.astype(jnp.bfloat16)
        if "/nu/" in path:  # a seed of its own for every array of every step
            return bits.stochastic_bfloat16(leaf, bits.mixed(step.astype(jnp.uint32)) + jnp.uint32(order[path]))
        return leaf

    return trees.map_with_path(narrow, inner)


def to_checkpoint(state: TrainState, mask: Any) -> TrainState:
    """A split state as checkpoints hold it, its weights joined array by array into the host's memory.

    So a device needs room for one joined array, not for all of them.
    """
    high, frozen = trees.split(state.params, mask)

    def join(high: jax.Array, low: jax.Array) -> jax.Array:
        return jax.device_put(_join(high, low), high.sharding.with_memory_kind("pinned_host"))

    return TrainState(
        state.step, trees.join(jax.tree.map(join, high, state.opt_state.low), frozen), state.opt_state.inner
    )


def from_checkpoint(state: TrainState, mask: Any) -> TrainState:
    """The inverse of `to_checkpoint`, on the devices; deletes the float32 weights one by one."""
    weights, frozen = trees.split(state.params, mask)

    def take_apart(weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        halves = jax.jit(bits.split_float32, out_shardings=(weight.sharding,) * 2)(weight)
        jax.block_until_ready(halves)
        weight.delete()
        return halves

    halves = jax.tree.map(take_apart, weights)
    high, low = jax.tree.transpose(jax.tree.structure(weights), jax.tree.structure((0, 0)), halves)
    return TrainState(state.step, trees.join(high, frozen), Split(low, state.opt_state))


_join = jax.jit(bits.join_float32)
