"""The only place that knows attention back ends."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Units(NamedTuple):
    """Sequences that lie end to end in buffers [G, N]: where each token is, and who sees whom."""

    source: jax.Array  # int32[G, P, T], places in the buffer; N where a unit is shorter
    place: jax.Array  # int32[G, N], places in the units (P T); P*T where the buffer is empty
    mask: jax.Array  # bool[G*P, T, T]


def tree_mask(segment: jax.Array) -> jax.Array:
    """Who sees whom in a unit [prefix | chosen | rejected]; segment int8[G, P, T] as in PackedBatch -> bool[G*P, T, T].

    prefix   # . . .       the prefix sees itself, each answer the prefix and itself,
    prefix   # # . .       all of it only what comes before
    chosen   # # # .
    rejected # # . #
    """
    segment = segment.reshape(-1, segment.shape[-1])
    index = jnp.arange(segment.shape[-1])
    key, query = segment[:, None, :], segment[:, :, None]
    visible = ((key == 0) | (key == query)) & (index[None, :] <= index[:, None])
    return visible | (index[None, :] == index[:, None])  # padding sees itself, so that its softmax is defined


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool = False,
    key_lengths: jax.Array | None = None,
    mask: jax.Array | Units | None = None,
) -> jax.Array:
    """Scaled dot-product attention, scale 1/sqrt(H), softmax in float32.

    Args:
      q: [B, T, N, H] queries.
      k, v: [B, S, K, H] keys and values; N is a multiple of K (grouped-query attention).
      causal: query t sees keys 0..t.
      key_lengths: int32[B]; keys from there on are padding. Costs no mask tensor.
      mask: bool[B, T, S], true where query t may see key s; for what the two above cannot say. Or the units that q, k
        and v [G, N, ...] are made of: attention then is within each unit.

    Returns:
      [B, T, N, H] in the dtype of q.
    """
    if isinstance(mask, Units):
        gathered = (_to_units(x, mask) for x in (q, k, v))
        return _to_buffer(attention(*gathered, mask=mask.mask), mask)
    if mask is not None:
        mask = mask[:, None]  # one mask for all heads
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=causal, key_value_seq_lengths=key_lengths, implementation="xla"
    )


def _to_units(x: jax.Array, units: Units) -> jax.Array:
    """[G, N, ...] -> [G*P, T, ...]; zeros where a unit is shorter."""
    groups, room, length = units.source.shape
    moved = _moved(x, units.source.reshape(groups, room * length), units.place)
    return moved.reshape(groups * room, length, *x.shape[2:])


def _to_buffer(x: jax.Array, units: Units) -> jax.Array:
    """[G*P, T, ...] -> [G, N, ...]; zeros where the buffer is empty."""
    groups, room, length = units.source.shape
    flat = x.reshape(groups, room * length, *x.shape[2:])
    return _moved(flat, units.place, units.source.reshape(groups, room * length))


@jax.custom_vjp
def _moved(x: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
    """out[g, m] = x[g, source[g, m]], zero where there is no such place; x [G, N, ...], source int32[G, M].

    `target` int32[G, N] is the inverse, and the gradient a gather by it: JAX's own would be a scatter.
    """
    del target
    return jax.vmap(lambda rows, index: rows.at[index].get(mode="fill", fill_value=0))(x, source)


_moved.defvjp(
    lambda x, source, target: (_moved(x, source, target), (source, target)),
    lambda where, g: (_moved(g, where[1], where[0]), None, None),
)
