"""The losses, on per-token log-probs. Everything is float32, and nothing here has seen a model.

The paper's equations:  (3) L = -log sigmoid(beta [(s_w - s_w_ref) - (s_l - s_l_ref)])
                        (5) s = 1/N [sum over y_u of log p + gamma * sum over y_c of log p],  N = |y_u| + gamma |y_c|
with y_u the unchanged and y_c the corrected tokens.
`weights` hold 1 and gamma per target, so N is their sum; `average=False` leaves 1/N out, as plain DPO does.
docs/losses.md defines every loss and every metric.
"""

from collections.abc import Callable
from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp

Metrics = dict[str, jax.Array]


@dataclass(frozen=True)
class Preference:
    """Which preference loss: Python values that a jitted step closes over (each new array type would trace anew)."""

    beta: float
    average: bool = True  # divide a score by the sum of its weights, the paper's N
    loss: str = "sigmoid"  # a name in LOSSES
    label_smoothing: float = 0.0  # the share of pairs whose sides are thought to be swapped, below 1/2
    reference_free: bool = False  # the reference's log-probs count as 0
    nll: float = 0.0  # weight of the chosen answer's mean negative log-likelihood


# float32[B] margins (beta times the difference of the log-ratios), beta -> float32[B].
LOSSES: dict[str, Callable[[jax.Array, float], jax.Array]] = {
    "sigmoid": lambda margins, beta: -jax.nn.log_sigmoid(margins),  # Rafailov et al. 2023
    "ipo": lambda margins, beta: jnp.square(margins / beta - 1 / (2 * beta)),  # Azar et al. 2023, τ = β
    "hinge": lambda margins, beta: jax.nn.relu(1 - margins),  # Zhao et al. 2023 (SLiC), on log-ratios
}


def sequence_score(logps: jax.Array, weights: jax.Array, average: bool) -> jax.Array:
    """Equation 5. float32[..., T-1] log-probs and weights -> float32[...]; a row without credit scores 0."""
    chex.assert_equal_shape([logps, weights])
    total = jnp.sum(weights * logps, axis=-1)
    return total / _norm(weights) if average else total


def _norm(weights: jax.Array) -> jax.Array:
    """float32[...], the paper's N; 1 for a row without credit, whose sums are 0."""
    norm = jnp.sum(weights, axis=-1)
    return jnp.where(norm > 0, norm, 1.0)


def valid_mean(values: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean over the valid entries: float32[B], bool[B] -> float32[]."""
    return jnp.sum(jnp.where(valid, values, 0.0)) / jnp.maximum(jnp.sum(valid), 1)


def pair_losses(margins: jax.Array, p: Preference) -> jax.Array:
    """float32[B] margins -> float32[B]. With label smoothing ε: (1-ε) L(margin) + ε L(-margin), for each loss."""
    loss, swapped = LOSSES[p.loss], p.label_smoothing
    if not swapped:
        return loss(margins, p.beta)
    return (1 - swapped) * loss(margins, p.beta) + swapped * loss(-margins, p.beta)


def preference(
    logps: jax.Array, ref_logps: jax.Array, weights: jax.Array, valid: jax.Array, p: Preference
) -> tuple[jax.Array, Metrics]:
    """Dense DPO (equations 3 and 5) and its family; with weights of 0 and 1 and `average=False` it is plain DPO.

    Args:
      logps, ref_logps, weights: float32[B, 2, T-1], index 0 of the second axis chosen, 1 rejected.
      valid: bool[B].

    Returns:
      float32[], the mean loss over valid pairs, and the metrics of `preference_metrics`.
    """
    chex.assert_equal_shape([logps, ref_logps, weights])
    if p.reference_free:
        ref_logps = jnp.zeros_like(ref_logps)
    rewards = p.beta * (sequence_score(logps, weights, p.average) - sequence_score(ref_logps, weights, p.average))
    scored = (weights > 0).astype(jnp.float32)
    nll = valid_mean(-sequence_score(logps[:, 0], scored[:, 0], average=True), valid)
    loss = valid_mean(pair_losses(rewards[:, 0] - rewards[:, 1], p), valid)
    if p.nll:
        loss += p.nll * nll
    metrics = {"loss": loss, "nll/chosen": nll}
    return loss, metrics | preference_metrics(rewards, logps, ref_logps, weights, valid, p)


def preference_metrics(
    rewards: jax.Array, logps: jax.Array, ref_logps: jax.Array, weights: jax.Array, valid: jax.Array, p: Preference
) -> Metrics:
    """Batch means over valid pairs; shapes as in `preference`, rewards float32[B, 2].

    `rewards/*` are β times score differences, as the loss sees them. `logps/*` are plain sums over the scored targets,
    comparable across γ and averaging, `log_ratios/*` the same minus the reference's. `.../corrected` and
    `.../unchanged` are the parts of each that come from targets whose weight differs from 1, and equals 1 (so with
    γ = 1 every target counts as unchanged); the two parts add up to the whole.
    """
    margins = rewards[:, 0] - rewards[:, 1]
    metrics = {"rewards/accuracies": valid_mean((margins > 0).astype(jnp.float32), valid)}
    share = p.beta * weights / (_norm(weights)[..., None] if p.average else 1.0)
    ratios = logps - ref_logps
    scored = weights > 0
    parts = {"": scored, "/corrected": scored & (weights != 1), "/unchanged": scored & (weights == 1)}
    for part, mask in parts.items():
        per_target = {"logps": logps, "log_ratios": ratios, "rewards": share * ratios}
        sums = {name: jnp.sum(jnp.where(mask, values, 0.0), axis=-1) for name, values in per_target.items()}
        if not part:
            sums["rewards"] = rewards  # bit for bit what the loss saw
        for name, values in sums.items():
            metrics[f"{name}/chosen{part}"] = valid_mean(values[:, 0], valid)
            metrics[f"{name}/rejected{part}"] = valid_mean(values[:, 1], valid)
        metrics[f"rewards/margins{part}"] = valid_mean(sums["rewards"][:, 0] - sums["rewards"][:, 1], valid)
    return metrics


def sft(logps: jax.Array, weights: jax.Array, valid: jax.Array) -> tuple[jax.Array, Metrics]:
    """Mean negative log-likelihood per scored token: float32[B, G, T-1] twice, bool[B] -> float32[] and metrics."""
    credit = weights * valid[:, None, None]
    tokens = jnp.sum(credit)
    loss = -jnp.sum(credit * logps) / jnp.maximum(tokens, 1.0)
    return loss, {"loss": loss, "scored_tokens": tokens}
