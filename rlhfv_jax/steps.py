"""The jitted programs: DDPO and SFT updates, their evaluation, the reference pass. Each compiles once a shape."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jax.sharding import Mesh

from rlhfv_jax import losses, optim, sharding, trees
from rlhfv_jax.models import vlm
from rlhfv_jax.structs import PairBatch, SftBatch, TrainState

Batch = PairBatch | SftBatch
LossFn = Callable[[Any, Any], tuple[jax.Array, losses.Metrics]]  # (params, batch) -> loss, metrics
Step = Callable[[TrainState, Any], tuple[TrainState, losses.Metrics]]


def batch_log_probs(model: vlm.Muffin, params: Any, batch: Batch) -> jax.Array:
    """float32[B, G, T-1], the log-prob of every target of the G rows (2 for pairs); each image is encoded once."""

    def rows(x: jax.Array) -> jax.Array:
        return rearrange(x, "b g ... -> (b g) ...")

    logps = vlm.log_probs(model, params, batch.image, rows(batch.tokens), rows(batch.labels), rows(batch.lengths))
    return rearrange(logps, "(b g) t -> b g t", g=batch.tokens.shape[1])


def ddpo_loss(model: vlm.Muffin, beta: float, average: bool) -> LossFn:
    """The loss function of Dense DPO over a PairBatch; β and the averaging are constants of the program."""

    def loss_fn(params: Any, batch: PairBatch) -> tuple[jax.Array, losses.Metrics]:
        logps = batch_log_probs(model, params, batch)
        return losses.ddpo(logps, batch.ref_logps, batch.weights, batch.valid, beta=beta, average=average)

    return loss_fn


def sft_loss(model: vlm.Muffin) -> LossFn:
    """The loss function of supervised fine-tuning over an SftBatch."""

    def loss_fn(params: Any, batch: SftBatch) -> tuple[jax.Array, losses.Metrics]:
        return losses.sft(batch_log_probs(model, params, batch), batch.weights, batch.valid)

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

    def step(self, loss_fn: LossFn, mesh: Mesh, state: TrainState) -> Step:
        """The jitted update; it donates the state it is given. Adds grad_norm (before clipping) and lr to the metrics.

        `state` may be abstract: only its shapes are read.
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


def evaluation(loss_fn: LossFn) -> Callable[[Any, Any], losses.Metrics]:
    """Jitted (params, batch) -> metrics without gradients."""
    return jax.jit(lambda params, batch: loss_fn(params, batch)[1])


def reference(model: vlm.Muffin) -> Callable[[Any, PairBatch], jax.Array]:
    """Jitted (params, batch) -> float32[B, 2, T-1]: the very forward pass that the policy's loss runs."""
    return jax.jit(lambda params, batch: batch_log_probs(model, params, batch))
