"""Attention (Vaswani et al. 2017), and the only place that knows its back ends.

    xla      any mask, any length, everywhere; holds the scores [B, N, T, S] in float32, of causal attention those of
             the blocks on and below the diagonal. The reference and the default.
    cudnn    NVIDIA, 16-bit, even lengths; a mask becomes a bias, still T*S numbers, but no scores are held.
    splash   TPU; skips blocks that the mask leaves empty. Each sequence has a mask of its own, given at run time.
    auto     cudnn or splash where they run and T is over 512, else xla

Never merge two attention calls by their residuals under a gradient: JAX's are wrong there.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec as P

from rlhfv_jax.structs import BATCH

BACKENDS = ("xla", "cudnn", "splash", "auto")
LONG = 512  # tokens; up to here the scores cost little
BLOCK = 128  # splash takes whole blocks; XLA's queries come in blocks of at least so many
MOST_BLOCKS = 8
Blocks = list[jax.Array]


class Units(NamedTuple):
    """Sequences that lie end to end in buffers [G, N]: where each token is, and who sees whom.

    Block k of them holds W tokens of the P_k longest. Nobody sees a later token of its unit.
    """

    blocks: tuple[jax.Array, ...]  # int32[G, P_k, W], places in the buffer; N where a unit is shorter
    place: jax.Array  # int32[G, N], places in the blocks laid end to end; their size where the buffer is empty
    mask: jax.Array  # bool[G*P, T, T]; T are all W together


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
    window: int = 0,
    backend: str = "xla",
) -> jax.Array:
    """Scaled dot-product attention, scale 1/sqrt(H), softmax in float32.

    Args:
      q: [B, T, N, H] queries.
      k, v: [B, S, K, H] keys and values; N is a multiple of K (grouped-query attention).
      causal: query t sees keys 0..t.
      key_lengths: int32[B]; keys from there on are padding. Costs no mask tensor.
      mask: bool[B, T, S], true where query t may see key s; for what the two above cannot say. Or the units that q, k
        and v [G, N, ...] are made of: attention then is within each unit.
      window: with `causal`, query t sees keys t-window+1..t; 0 for all. A mask says so itself (`near`).
      backend: one of BACKENDS.

    Returns:
      [B, T, N, H] in the dtype of q.
    """
    if isinstance(mask, Units):
        return _within_units(q, k, v, mask, backend)
    backend = automatic(q.shape[1], q) if backend == "auto" else backend
    if backend == "splash":
        return _splash(q, k, v, _whole_mask(q.shape, k.shape[1], causal, key_lengths, mask, window))
    if backend == "xla" and causal:
        return _causal(q, k, v, _whole_mask(q.shape, k.shape[1], causal, key_lengths, mask, window))
    implementation: Any = backend
    local = (window - 1, 0) if causal and 0 < window < k.shape[1] else None
    whole = None
    if mask is not None:  # one for all heads, with all that is to be said
        whole = _whole_mask(q.shape, k.shape[1], causal, key_lengths, mask, window)[:, None]
        causal, key_lengths, local = False, None, None
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=whole,
        is_causal=causal,
        key_value_seq_lengths=key_lengths,
        local_window_size=local,
        implementation=implementation,
    )


def near(queries: jax.Array, keys: jax.Array, window: int) -> jax.Array:
    """bool[B, T, S]: which keys at positions int32[B, S] a window of that size shows to queries at int32[B, T]."""
    return queries[:, :, None] - keys[:, None, :] < window


def cached_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """The same attention over a cache whose heads come before its slots, so that no step moves it to compute with it.

    Args:
      q: [B, T, N, H] queries.
      k, v: [B, K, S, H] keys and values; N is a multiple of K.
      mask: bool[B, T, S], true where query t may see slot s.

    Returns:
      [B, T, N, H] in the dtype of q.
    """
    group = q.shape[2] // k.shape[1]
    q, k, v = rearrange(q, "b t (k g) h -> b k g t h", g=group), k.astype(q.dtype), v.astype(q.dtype)
    return rearrange(_weighted(q, k, v, mask), "b k g t h -> b t (k g) h")


def _causal(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention where no query sees a later key, of sequences of one length."""
    block = max(BLOCK, -(-q.shape[1] // MOST_BLOCKS))
    starts = range(0, q.shape[1], block)
    blocks = ([x[:, None, start : start + block] for start in starts] for x in (q, k, v))
    return jnp.concatenate(_in_blocks(*blocks, mask=mask[:, None]), axis=2)[:, 0]


def _in_blocks(q: Blocks, k: Blocks, v: Blocks, *, mask: jax.Array) -> Blocks:
    """Queries in blocks, each against the keys up to its own end; block k [G, P_k, W, N, H], mask bool[G, P, T, T].

    What lies above the diagonal of blocks is neither computed nor held (with 5 equal blocks 0.6 of the scores are), nor
    what lies beyond the end of a unit's last block.
    """
    k, v = ([rearrange(x, "a p s k h -> a p k s h") for x in blocks] for blocks in (k, v))
    seen, end = [], 0
    for i, block in enumerate(q):
        _, rows, width, _, _ = block.shape
        keys, values = (jnp.concatenate([x[:, :rows] for x in blocks[: i + 1]], axis=3) for blocks in (k, v))
        start, end = end, end + width
        block = rearrange(block, "a p t (k g) h -> a p k g t h", k=keys.shape[2])
        found = _weighted(block, keys, values, mask[:, :rows, start:end, :end])
        seen.append(rearrange(found, "a p k g t h -> a p t (k g) h"))
    return seen


def _within_units(q: jax.Array, k: jax.Array, v: jax.Array, units: Units, backend: str) -> jax.Array:
    """Attention of buffers [G, N, ...] within their units."""
    groups, room, _ = units.blocks[0].shape
    length = units.mask.shape[-1]
    backend = automatic(length, q) if backend == "auto" else backend
    mask = units.mask.reshape(groups, room, length, length)
    blocks = [_to_blocks(x, units) for x in (q, k, v)]
    if backend == "xla":
        return _to_buffer(_in_blocks(*blocks, mask=mask), units)
    whole = (rearrange(whole_units(x, 0), "a p ... -> (a p) ...") for x in blocks)
    found = attention(*whole, causal=True, mask=units.mask, backend=backend).reshape(groups, room, length, *q.shape[2:])
    parts, start = [], 0
    for block in units.blocks:
        _, rows, width = block.shape
        parts.append(found[:, :rows, start : start + width])
        start += width
    return _to_buffer(parts, units)


def whole_units(blocks: Sequence[jax.Array], fill: int) -> jax.Array:
    """Blocks [G, P_k, W, ...] as [G, P, T, ...]; `fill` where a unit has no such block."""
    room = blocks[0].shape[1]
    rest = [(0, 0)] * (blocks[0].ndim - 2)
    even = [jnp.pad(x, ((0, 0), (0, room - x.shape[1]), *rest), constant_values=fill) for x in blocks]
    return jnp.concatenate(even, axis=2)


def _weighted(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Scores, softmax in float32, weighted values: q [..., K, G, T, H], k, v [..., K, S, H], mask bool[..., T, S]."""
    scores = jnp.einsum("...kgth,...ksh->...kgts", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    scores = jnp.where(mask[..., None, None, :, :], scores, jnp.finfo(jnp.float32).min)
    return jnp.einsum("...kgts,...ksh->...kgth", jax.nn.softmax(scores, axis=-1).astype(q.dtype), v)


def automatic(length: int, q: jax.Array) -> str:
    """The back end of "auto" for sequences of that length, on the platform that JAX runs on. `q`: [..., H]."""
    size = q.shape[-1]
    if length <= LONG:
        return "xla"
    if jax.default_backend() == "gpu" and q.dtype.itemsize == 2 and length % 2 == 0 and size % 8 == 0 and size <= 128:
        return "cudnn"
    return "splash" if jax.default_backend() == "tpu" else "xla"


def _whole_mask(
    shape: tuple, keys: int, causal: bool, key_lengths: jax.Array | None, mask: jax.Array | None, window: int
) -> jax.Array:
    """bool[B, T, S] that says what the four say together."""
    whole = jnp.ones((shape[0], shape[1], keys), bool) if mask is None else mask
    if causal:
        whole &= jnp.tri(shape[1], keys, dtype=bool)
    if causal and window:
        whole &= near(jnp.arange(shape[1])[None], jnp.arange(keys)[None], window)
    if key_lengths is not None:
        whole &= jnp.arange(keys) < key_lengths[:, None, None]
    return whole


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Splash attention with a mask for each sequence; lengths are padded to whole blocks. Interpreted off a TPU."""
    length = q.shape[1]
    if k.shape[1] != length:
        raise ValueError(f"splash attention is for as many keys as queries; got {k.shape[1]} and {length}")
    room = -length % BLOCK
    q, k, v = (jnp.pad(x, ((0, 0), (0, room), (0, 0), (0, 0))) for x in (q * q.shape[-1] ** -0.5, k, v))
    mask = jnp.pad(mask, ((0, 0), (0, room), (0, room))) | jnp.eye(length + room, dtype=bool)  # no row sees nothing
    call = jax.vmap(_splash_one)
    if not jax.sharding.get_abstract_mesh().empty:  # the partitioner cannot cut a kernel, we can
        heads = P(BATCH, None, "tensor")
        call = jax.shard_map(call, in_specs=(heads, heads, heads, P(BATCH)), out_specs=heads, check_vma=False)
    return call(q, k, v, mask)[:, :length]


def _splash_one(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    heads, length, _ = q.shape[1], *mask.shape
    block = next(size for size in (512, 256, BLOCK) if length % size == 0)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    blocks: dict[str, Any] = dict.fromkeys((*names, "block_q_dq", "block_kv_dq"), block)
    sizes = splash.BlockSizes(**blocks)
    make = partial(splash.make_splash_mha, head_shards=1, q_seq_shards=1, block_sizes=sizes)
    kernel = make(jnp.broadcast_to(mask, (heads, length, length)), interpret=jax.default_backend() != "tpu")
    for name in ("fwd_mask_info", "dq_mask_info", "dkv_mask_info"):  # a flag that jax 0.10.2 turns into a tracer
        setattr(kernel, name, getattr(kernel, name)._replace(is_dynamic_mask=True))
    return kernel(*(x.swapaxes(0, 1) for x in (q, k, v))).swapaxes(0, 1).astype(q.dtype)


def _to_blocks(x: jax.Array, units: Units) -> Blocks:
    """[G, N, ...] -> [G, P_k, W, ...]; zeros where a unit is shorter."""
    moved = _moved(x, _end_to_end(units.blocks), units.place)
    ends = list(itertools.accumulate(block.shape[1] * block.shape[2] for block in units.blocks))
    cut = jnp.split(moved, ends[:-1], axis=1)
    return [part.reshape(*block.shape, *x.shape[2:]) for part, block in zip(cut, units.blocks, strict=True)]


def _to_buffer(blocks: Blocks, units: Units) -> jax.Array:
    """[G, P_k, W, ...] -> [G, N, ...]; zeros where the buffer is empty."""
    return _moved(_end_to_end(blocks), units.place, _end_to_end(units.blocks))


def _end_to_end(blocks: Sequence[jax.Array]) -> jax.Array:
    return jnp.concatenate([rearrange(block, "a p w ... -> a (p w) ...") for block in blocks], axis=1)


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
