"""The jitted programs: DDPO and SFT updates, their evaluation, the reference pass. Each compiles once a shape."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jax.sharding import Mesh

from rlhfv_jax import losses, optim, sharding, trees
from rlhfv_jax.models import vlm
from rlhfv_jax.structs import PackedBatch, PairBatch, SftBatch, TrainState

Batch = PairBatch | PackedBatch | SftBatch
LossFn = Callable[[Any, Any], tuple[jax.Array, losses.Metrics]]  # (params, batch) -> loss, metrics
Step = Callable[[TrainState, Any], tuple[TrainState, losses.Metrics]]


def batch_log_probs(model: vlm.Muffin, params: Any, batch: Batch) -> jax.Array:
    """float32[B, G, T-1], the log-prob of every target of the G rows (2 for pairs); each image is encoded once.

    Of a packed batch float32[B, 2, K], as its weights.
    """
    if isinstance(batch, PackedBatch):
        return vlm.packed_log_probs(model, params, batch)

    def rows(x: jax.Array) -> jax.Array:
        return rearrange(x, "b g ... -> (b g) ...")

    logps = vlm.log_probs(model, params, batch.image, rows(batch.tokens), rows(batch.labels), rows(batch.lengths))
    return rearrange(logps, "(b g) t -> b g t", g=batch.tokens.shape[1])


def attended(batch: Batch) -> jax.Array:
    """int32[], the tokens of the valid rows, prompts and image tokens included: what throughput is measured in."""
    return jnp.sum(batch.lengths * batch.valid[:, None])


def preference_loss(model: vlm.Muffin, preference: losses.Preference) -> LossFn:
    """The loss function of Dense DPO and its family over pairs, in either layout; β and its like are constants."""

    def loss_fn(params: Any, batch: PairBatch | PackedBatch) -> tuple[jax.Array, losses.Metrics]:
        logps = batch_log_probs(model, params, batch)
        loss, metrics = losses.preference(logps, batch.ref_logps, batch.weights, batch.valid, preference)
        return loss, metrics | {"tokens": attended(batch)}

    return loss_fn


def sft_loss(model: vlm.Muffin) -> LossFn:
    """The loss function of supervised fine-tuning over an SftBatch."""

    def loss_fn(params: Any, batch: SftBatch) -> tuple[jax.Array, losses.Metrics]:
        loss, metrics = losses.sft(batch_log_probs(model, params, batch), batch.weights, batch.valid)
        return loss, metrics | {"tokens": attended(batch)}

    return loss_fn


@dataclass(frozen=True)
class Updater:
    """An optimizer over the trainable part of the parameters: frozen ones get neither gradients nor state."""

    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    mask: Any  # tree of bools like params

    def init(self, params: Any) -> TrainState:
        trainable, _ = trees.split(params, self.mask)
        return TrainState(jnp.zeros((), jnp.int32), params, self.optimizer.init(trainable))

    def check(self, state: TrainState, mesh: Mesh) -> None:
        """Asserts of a placed state that exactly the trainable parameters have moments, laid out as the parameters.

        What trains is thus read off the arrays that lie on the devices, not off the names that were asked for.
        """
        where = {path: leaf.sharding for path, leaf in trees.paths(state.params)}
        shapes = {path: leaf.ndim for path, leaf in trees.paths(state.params)}
        for path, wanted in trees.paths(sharding.shardings(state.params, mesh)):
            assert where[path].is_equivalent_to(wanted, shapes[path]), f"{path} lies as {where[path]}, not {wanted}"
        trains = {path for path, keep in trees.paths(self.mask) if keep}
        moments = {path.partition("/mu/")[2]: leaf for path, leaf in trees.paths(state.opt_state) if "/mu/" in path}
        assert set(moments) == trains, f"moments and trainable parameters differ: {sorted(set(moments) ^ trains)[:5]}"
        for path, leaf in moments.items():
            assert leaf.sharding.is_equivalent_to(where[path], leaf.ndim), f"the moments of {path} lie elsewhere"

    def step(self, loss_fn: LossFn, mesh: Mesh, state: TrainState) -> Step:
        """The jitted update; it donates the state it is given. `state` may be abstract: only its shapes are read.

        Adds to the metrics: grad_norm (before clipping) and lr.
        """

        def update(state: TrainState, batch: Batch) -> tuple[TrainState, losses.Metrics]:
            trainable, frozen = trees.split(state.params, self.mask)
            gradient = jax.grad(lambda p: loss_fn(trees.join(p, frozen), batch), has_aux=True)
            grads, metrics = gradient(trainable)
            metrics |= {"grad_norm": optim.global_norm(grads), "lr": jnp.asarray(self.schedule(state.step))}
            updates, opt_state = self.optimizer.update(grads, state.opt_state, trainable)
            params = trees.join(optax.apply_updates(trainable, updates), frozen)
            return TrainState(state.step + 1, params, opt_state), metrics

        where = sharding.shardings(state, mesh)
        return jax.jit(
            update,
            in_shardings=(where, sharding.batch_sharding(mesh)),
            out_shardings=(where, None),
            donate_argnums=0,
        )


COUNTS = ("tokens", "scored_tokens")  # of a batch; their means over batches say nothing


class Totals(NamedTuple):
    """Weighted sums of a batch's metrics; those of several batches add up on the device."""

    weight: Any  # float32[]
    sums: losses.Metrics


def evaluation(loss_fn: LossFn) -> Callable[[Any, Any], Totals]:
    """Jitted (params, batch) -> totals without gradients.

    A batch weighs as much as it has scored tokens, where the loss is a mean over tokens, else valid pairs.
    """

    def totals(params: Any, batch: Batch) -> Totals:
        _, metrics = loss_fn(params, batch)
        weight = metrics.get("scored_tokens", jnp.sum(batch.valid.astype(jnp.float32)))
        return Totals(weight, {name: weight * value for name, value in metrics.items() if name not in COUNTS})

    return jax.jit(totals)


def reference(model: vlm.Muffin) -> Callable[[Any, Any], jax.Array]:
    """Jitted (params, batch) -> float32[B, 2, T-1], packed [B, 2, K]: the very forward pass that the loss runs."""
    return jax.jit(lambda params, batch: batch_log_probs(model, params, batch))
