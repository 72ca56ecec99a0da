"""The losses, on per-token log-probs. Everything is float32, and nothing here has seen a model.

The paper's equations:  (3) L = -log sigmoid(beta [(s_w - s_w_ref) - (s_l - s_l_ref)])
                        (5) s = 1/N [sum over y_u of log p + gamma * sum over y_c of log p],  N = |y_u| + gamma |y_c|
with y_u the unchanged and y_c the corrected tokens.
`weights` hold 1 and gamma per target, so N is their sum; `average=False` leaves 1/N out, as plain DPO does.
"""

import chex
import jax
import jax.numpy as jnp

Metrics = dict[str, jax.Array]


def sequence_score(logps: jax.Array, weights: jax.Array, average: bool) -> jax.Array:
    """Equation 5. float32[..., T-1] log-probs and weights -> float32[...]; a row without credit scores 0."""
    chex.assert_equal_shape([logps, weights])
    total = jnp.sum(weights * logps, axis=-1)
    if not average:
        return total
    norm = jnp.sum(weights, axis=-1)
    return jnp.where(norm > 0, total / jnp.where(norm > 0, norm, 1.0), 0.0)


def valid_mean(values: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean over the valid entries: float32[B], bool[B] -> float32[]."""
    return jnp.sum(jnp.where(valid, values, 0.0)) / jnp.maximum(jnp.sum(valid), 1)


def ddpo(
    logps: jax.Array,
    ref_logps: jax.Array,
    weights: jax.Array,
    valid: jax.Array,
    *,
    beta: float,
    average: bool = True,
) -> tuple[jax.Array, Metrics]:
    """Dense DPO (equations 3 and 5); with weights of 0 and 1 and `average=False` it is DPO.

    Args:
      logps, ref_logps, weights: float32[B, 2, T-1], index 0 of the second axis chosen, 1 rejected.
      valid: bool[B].
      beta: the paper's β, a Python float (each new array type would trace anew).
      average: divide by the sum of the weights (the paper's N).

    Returns:
      float32[], the mean loss over valid pairs, and the metrics of `preference_metrics`.
    """
    chex.assert_equal_shape([logps, ref_logps, weights])
    rewards = beta * (sequence_score(logps, weights, average) - sequence_score(ref_logps, weights, average))
    loss = valid_mean(-jax.nn.log_sigmoid(rewards[:, 0] - rewards[:, 1]), valid)
    return loss, preference_metrics(loss, rewards, logps, ref_logps, weights, valid)


def preference_metrics(
    loss: jax.Array,
    rewards: jax.Array,
    logps: jax.Array,
    ref_logps: jax.Array,
    weights: jax.Array,
    valid: jax.Array,
) -> Metrics:
    """Batch means over valid pairs; shapes as in `ddpo`, rewards float32[B, 2].

    `rewards/*` are β times score differences, as the loss sees them. `logps/*` are plain sums over the scored targets,
    comparable across γ and averaging. `.../corrected` and `.../unchanged` split those sums, and the log-ratio to the
    reference, by whether a target's weight differs from 1 (so with γ = 1 every target counts as unchanged).
    """
    margins = rewards[:, 0] - rewards[:, 1]
    metrics = {
        "loss": loss,
        "rewards/chosen": valid_mean(rewards[:, 0], valid),
        "rewards/rejected": valid_mean(rewards[:, 1], valid),
        "rewards/margins": valid_mean(margins, valid),
        "rewards/accuracies": valid_mean((margins > 0).astype(jnp.float32), valid),
    }
    scored = weights > 0
    parts = {"": scored, "/corrected": scored & (weights != 1), "/unchanged": scored & (weights == 1)}
    for part, mask in parts.items():
        for side, name in enumerate(("chosen", "rejected")):
            values = {"logps": logps[:, side], "log_ratios": logps[:, side] - ref_logps[:, side]}
            for quantity, value in values.items():
                total = jnp.sum(jnp.where(mask[:, side], value, 0.0), axis=-1)
                metrics[f"{quantity}/{name}{part}"] = valid_mean(total, valid)
    return metrics


def sft(logps: jax.Array, weights: jax.Array, valid: jax.Array) -> tuple[jax.Array, Metrics]:
    """Mean negative log-likelihood per scored token: float32[B, G, T-1] twice, bool[B] -> float32[] and metrics."""
    credit = weights * valid[:, None, None]
    tokens = jnp.sum(credit)
    loss = -jnp.sum(credit * logps) / jnp.maximum(tokens, 1.0)
    return loss, {"loss": loss, "tokens": tokens}
