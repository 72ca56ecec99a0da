"""The only place that knows attention back ends."""

import jax


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool = False,
    key_lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Scaled dot-product attention, scale 1/sqrt(H), softmax in float32.

    Args:
      q: [B, T, N, H] queries.
      k, v: [B, S, K, H] keys and values; N is a multiple of K (grouped-query attention).
      causal: query t sees keys 0..t.
      key_lengths: int32[B]; keys from there on are padding. Costs no mask tensor.
      mask: bool[B, T, S], true where query t may see key s; for what the two above cannot say.

    Returns:
      [B, T, N, H] in the dtype of q.
    """
    if mask is not None:
        mask = mask[:, None]  # one mask for all heads
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=causal, key_value_seq_lengths=key_lengths, implementation="xla"
    )
