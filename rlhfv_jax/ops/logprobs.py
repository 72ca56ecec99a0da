"""Token log-probs, the terms of the paper's equation 5. The shift convention of the package, stated here once:

the hidden state at position t predicts the token at t+1, and `labels[..., t]` is that token. So hidden states enter
without their last position, and labels, weights and log-probs all have length T-1 with the same meaning of t.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp

from rlhfv_jax.sharding import constrain
from rlhfv_jax.structs import IGNORE

CHUNK = 8192  # positions whose logits are held at once: 1 GB of float32 for 32,000 entries


def token_log_probs(
    hidden: jax.Array, head: jax.Array, labels: jax.Array, vocab_size: int, chunk: int = CHUNK
) -> jax.Array:
    """log p(labels[..., t] | tokens up to t), float32: logit minus logsumexp.

    Args:
      hidden: [..., T-1, D], final hidden states of positions 0..T-2; or of just those that have a target.
      head: [D, V'], V' at least `vocab_size`; columns beyond it are padding and get no probability.
      labels: int32[..., T-1], targets; IGNORE where there is none.
      chunk: beyond so many positions, logits are made for slices of the T axis, and again in the backward pass.

    Returns:
      float32[..., T-1], 0 where the label is IGNORE.
    """
    chex.assert_equal_shape_prefix([hidden, labels], labels.ndim)
    slices = min(-(-labels.size // chunk), labels.shape[-1])
    log_probs = partial(_log_probs, vocab_size=vocab_size)
    if slices <= 1:
        return log_probs(hidden, head, labels)
    # Whole before the loop: a sharded head would be gathered anew for every slice. It travels in the computation's
    # dtype: without the barrier XLA moves the cast into the loop, and gathers float32.
    head = constrain(jax.lax.optimization_barrier(head.astype(hidden.dtype)), None, "tensor")
    length = labels.shape[-1]
    size = -(-length // slices)
    room = slices * size - length
    hidden = jnp.pad(hidden, [(0, 0)] * (hidden.ndim - 2) + [(0, room), (0, 0)])
    labels = jnp.pad(labels, [(0, 0)] * (labels.ndim - 1) + [(0, room)], constant_values=IGNORE)

    def sliced(x: jax.Array, axis: int) -> jax.Array:
        return jnp.moveaxis(x.reshape(*x.shape[:axis], slices, size, *x.shape[axis + 1 :]), axis, 0)

    @partial(jax.checkpoint, prevent_cse=False)
    def body(carry: None, parts: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        return carry, log_probs(parts[0], head, parts[1])

    axis = labels.ndim - 1
    _, found = jax.lax.scan(body, None, (sliced(hidden, axis), sliced(labels, axis)))
    found = jnp.moveaxis(found, 0, axis)
    return found.reshape(*found.shape[:axis], slices * size)[..., :length]


def _log_probs(hidden: jax.Array, head: jax.Array, labels: jax.Array, vocab_size: int) -> jax.Array:
    logits = jnp.einsum("...td,dv->...tv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    column = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    logits = jnp.where(column < vocab_size, logits, -jnp.inf)
    # A comparison instead of a gather: it fuses with the sums, and its gradient needs no scatter.
    picked = jnp.sum(jnp.where(column == labels[..., None], logits, 0.0), axis=-1)
    return jnp.where(labels == IGNORE, 0.0, picked - jax.nn.logsumexp(logits, axis=-1))
