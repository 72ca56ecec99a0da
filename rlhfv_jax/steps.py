"""The jitted programs: DDPO and SFT updates, their evaluation, the reference pass. Each compiles once a shape."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jax.sharding import Mesh

from rlhfv_jax import losses, memory, optim, sharding, trees
from rlhfv_jax.models import vlm
from rlhfv_jax.structs import BATCH, PackedBatch, PairBatch, SftBatch, TrainState

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


COUNTS = ("tokens", "scored_tokens")  # of a batch: they add up, where other metrics are means


def _weight(metrics: losses.Metrics, batch: Batch) -> jax.Array:
    """float32[], what the batch's metrics are means over: scored tokens where the loss is one over them, else pairs."""
    return metrics.get("scored_tokens", jnp.sum(batch.valid.astype(jnp.float32)))


def gradient(loss_fn: LossFn, mesh: Mesh, parts: int = 1) -> Callable[[Any, Any, Any], tuple[Any, losses.Metrics]]:
    """(trainable, frozen, batch) -> gradient and metrics, the batch computed in so many parts one after another.

    A part counts by its weight (valid pairs, or scored tokens), so that result and metrics are those of one large
    batch, whatever lies in which part. Sums are float32. Every share of the devices cuts its own rows.
    """

    def whole(trainable: Any, frozen: Any, batch: Batch) -> tuple[Any, losses.Metrics]:
        return jax.grad(lambda p: loss_fn(trees.join(p, frozen), batch), has_aux=True)(trainable)

    def cut(x: jax.Array) -> jax.Array:
        x = rearrange(x, "(w m b) ... -> m (w b) ...", w=sharding.ways(mesh), m=parts)
        return sharding.constrain(x, None, BATCH)

    def summed(trainable: Any, frozen: Any, batch: Batch) -> tuple[Any, losses.Metrics]:
        where = sharding.shardings(trainable, mesh)

        def scaled(part: Batch) -> Any:
            grads, metrics = whole(trainable, frozen, part)
            weight = _weight(metrics, part)
            grads = jax.tree.map(lambda g: weight * g.astype(jnp.float32), grads)
            values = {name: value if name in COUNTS else weight * value for name, value in metrics.items()}
            return jax.lax.with_sharding_constraint(grads, where), values, weight

        batches = jax.tree.map(cut, batch)
        first = jax.eval_shape(scaled, jax.tree.map(lambda x: x[0], batches))
        start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
        total, _ = jax.lax.scan(lambda sums, part: (jax.tree.map(jnp.add, sums, scaled(part)), None), start, batches)
        grads, values, weight = total
        weight = jnp.where(weight > 0, weight, 1.0)
        metrics = {name: value if name in COUNTS else value / weight for name, value in values.items()}
        return jax.tree.map(lambda g: g / weight, grads), metrics

    return whole if parts == 1 else summed


@dataclass(frozen=True)
class Updater:
    """An optimizer over the trainable part of the parameters: frozen ones get neither gradients nor state."""

    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    mask: Any  # tree of bools like params
    memory: str = "fp32"  # one of memory.NAMES: how weights and moments lie between steps

    def init(self, params: Any) -> TrainState:
        """The state of float32 parameters, no update made."""
        trainable, frozen = trees.split(params, self.mask)
        step = jnp.zeros((), jnp.int32)
        trainable, opt_state = memory.store(self.memory, trainable, self.optimizer.init(trainable), step)
        return TrainState(step, trees.join(trainable, frozen), opt_state)

    def place(self, params: Any, mesh: Mesh) -> TrainState:
        """`init` on the mesh, of parameters that lie there and are used up: no second copy of them is ever made."""
        state = jax.eval_shape(self.stored_init, params)
        where = sharding.shardings(state, mesh)
        if self.memory == "fp32":
            return jax.jit(self.init, out_shardings=where, donate_argnums=0)(params)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)

        def rest() -> tuple[jax.Array, Any]:
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            state = self.stored_init(zeros)
            return state.step, state.opt_state

        step, opt_state = jax.jit(rest, out_shardings=(where.step, where.opt_state))()
        return self.from_checkpoint(TrainState(step, params, opt_state))

    def stored_init(self, params: Any) -> TrainState:
        """`init` as checkpoints hold it: with float32 weights, for shapes."""
        opt_state = self.init(params).opt_state
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state if self.memory == "fp32" else opt_state.inner)

    def to_checkpoint(self, state: TrainState) -> TrainState:
        """The state as a checkpoint holds it."""
        return state if self.memory == "fp32" else memory.to_checkpoint(state, self.mask)

    def from_checkpoint(self, state: TrainState) -> TrainState:
        """The inverse; uses up its argument."""
        return state if self.memory == "fp32" else memory.from_checkpoint(state, self.mask)

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

    def step(self, loss_fn: LossFn, mesh: Mesh, state: TrainState, parts: int = 1) -> Step:
        """The jitted update; it donates the state it is given. `state` may be abstract: only its shapes are read.

        `parts` as in `gradient`. Adds to the metrics: grad_norm (before clipping) and lr.
        """
        gradient_fn = gradient(loss_fn, mesh, parts)

        def update(state: TrainState, batch: Batch) -> tuple[TrainState, losses.Metrics]:
            trainable, frozen = trees.split(state.params, self.mask)
            grads, metrics = gradient_fn(trainable, frozen, batch)
            grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
            metrics |= {"grad_norm": optim.global_norm(grads), "lr": jnp.asarray(self.schedule(state.step))}
            weights, opt_state = memory.load(self.memory, trainable, state.opt_state)
            updates, opt_state = self.optimizer.update(grads, opt_state, weights)
            weights = optax.apply_updates(weights, updates)
            trainable, opt_state = memory.store(self.memory, weights, opt_state, state.step + 1)
            return TrainState(state.step + 1, trees.join(trainable, frozen), opt_state), metrics

        where = sharding.shardings(state, mesh)
        return jax.jit(
            update,
            in_shardings=(where, sharding.batch_sharding(mesh)),
            out_shardings=(where, None),
            donate_argnums=0,
        )


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
        weight = _weight(metrics, batch)
        return Totals(weight, {name: weight * value for name, value in metrics.items() if name not in COUNTS})

    return jax.jit(totals)


def reference(model: vlm.Muffin) -> Callable[[Any, Any], jax.Array]:
    """Jitted (params, batch) -> float32[B, 2, T-1], packed [B, 2, K]: the very forward pass that the loss runs."""
    return jax.jit(lambda params, batch: batch_log_probs(model, params, batch))
