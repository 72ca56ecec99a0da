"""Token log-probs. The shift convention of the package, stated here once:

the hidden state at position t predicts the token at t+1, and `labels[..., t]` is that token. So hidden states enter
without their last position, and labels, weights and log-probs all have length T-1 with the same meaning of t.
"""

import chex
import jax
import jax.numpy as jnp

from rlhfv_jax.structs import IGNORE


def token_log_probs(hidden: jax.Array, head: jax.Array, labels: jax.Array, vocab_size: int) -> jax.Array:
    """log p(labels[..., t] | tokens up to t), float32.

    Args:
      hidden: [..., T-1, D], final hidden states of positions 0..T-2.
      head: [D, V'], V' at least `vocab_size`; columns beyond it are padding and get no probability.
      labels: int32[..., T-1], targets; IGNORE where there is none.

    Returns:
      float32[..., T-1], 0 where the label is IGNORE.
    """
    chex.assert_equal_shape_prefix([hidden, labels], labels.ndim)
    logits = jnp.einsum("...td,dv->...tv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    column = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    logits = jnp.where(column < vocab_size, logits, -jnp.inf)
    # A comparison instead of a gather: it fuses with the sums, and its gradient needs no scatter.
    picked = jnp.sum(jnp.where(column == labels[..., None], logits, 0.0), axis=-1)
    return jnp.where(labels == IGNORE, 0.0, picked - jax.nn.logsumexp(logits, axis=-1))
