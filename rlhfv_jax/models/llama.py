"""LLaMA: pre-norm decoder blocks with rotary positions, grouped-query attention and SwiGLU; with a window, Mistral.

Touvron et al. 2023 and Jiang et al. 2023, as Hugging Face's.

Parameters (L axis first, from `nn.scan`):
    embed/embedding [V', D]    head/kernel [D, V']    final_norm/scale [D]    layers/attention_norm/scale [L, D]
    layers/attention/{q [L,D,N,H], k [L,D,K,H], v [L,D,K,H], o [L,N,H,D]}/kernel
    layers/mlp_norm/scale [L, D]    layers/mlp/{gate [L,D,F], up [L,D,F], down [L,F,D]}/kernel
V' is the vocabulary padded to a multiple of 128; its extra rows never get probability and are not exported.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rlhfv_jax.models.layers import Dtype, Linear, RMSNorm, normal_init, rematerialised, rotary
from rlhfv_jax.ops.attention import Units, attention, cached_attention
from rlhfv_jax.sharding import constrain
from rlhfv_jax.structs import BATCH


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a LLaMA; `init_std=None` initializes each kernel with 1/sqrt(fan_in)."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    init_std: float | None = 0.02
    unroll: int = 1  # layers a turn of the loop; a stack of two runs a quarter faster unrolled on a CPU
    window: int = 0  # tokens that attention looks back over, its own included; 0 for all

    @property
    def head_size(self) -> int:
        """Numbers of one head, H."""
        return self.width // self.heads

    @property
    def padded_vocab(self) -> int:
        """Rows of embedding and head: the vocabulary, up to a multiple of 128."""
        return padded(self.vocab_size)


def padded(vocab_size: int) -> int:
    """The rows that a vocabulary takes in embedding and head: the next multiple of 128."""
    return -(-vocab_size // 128) * 128


def tiny(vocab_size: int) -> LlamaConfig:
    """Two small layers with grouped-query heads, for tests and trials."""
    return LlamaConfig(vocab_size, width=32, layers=2, heads=4, kv_heads=2, ffn=64, init_std=None)


def stories260k(vocab_size: int = 512) -> LlamaConfig:
    """The 260,000-parameter story teller of karpathy/llama2.c, 8 heads on 4 key-value heads."""
    return LlamaConfig(vocab_size, width=64, layers=5, heads=8, kv_heads=4, ffn=172, norm_eps=1e-5)


def llama_7b(vocab_size: int = 32_000) -> LlamaConfig:
    """LLaMA and Vicuna 7B (v1.5 has norm_eps=1e-5)."""
    return LlamaConfig(vocab_size, width=4096, layers=32, heads=32, kv_heads=32, ffn=11_008)


def mistral_7b(vocab_size: int = 32_000) -> LlamaConfig:
    """Mistral and Zephyr 7B: 32 heads on 8 key-value heads, a window of 4,096 tokens."""
    return LlamaConfig(vocab_size, 4096, 32, heads=32, kv_heads=8, ffn=14_336, norm_eps=1e-5, window=4096)


def llama_13b(vocab_size: int = 32_000) -> LlamaConfig:
    """LLaMA and Vicuna 13B (v1.5 has norm_eps=1e-5)."""
    return LlamaConfig(vocab_size, width=5120, layers=40, heads=40, kv_heads=40, ffn=13_824)


def vicuna_7b(vocab_size: int = 32_000) -> LlamaConfig:
    """Vicuna 7B v1.5: LLaMA 2's epsilon."""
    return replace(llama_7b(vocab_size), norm_eps=1e-5)


def vicuna_13b(vocab_size: int = 32_000) -> LlamaConfig:
    """Vicuna 13B v1.5."""
    return replace(llama_13b(vocab_size), norm_eps=1e-5)


SIZES = {"tiny": tiny, "stories260k": stories260k, "llama_7b": llama_7b, "llama_13b": llama_13b}


class KVCache(NamedTuple):
    """Keys and values of all layers, written from `cursor` on; S slots, the caller's `mask` says which are real."""

    k: jax.Array  # [L, B, K, S, H]
    v: jax.Array  # [L, B, K, S, H]
    cursor: jax.Array  # int32[], the next slot to write


def empty_cache(config: LlamaConfig, batch: int, slots: int, dtype: Dtype = jnp.float32) -> KVCache:
    """A cache of zeros with `slots` static slots."""
    shape = (config.layers, batch, config.kv_heads, slots, config.head_size)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((), jnp.int32))


class Attention(nn.Module):
    """Causal attention with rotary positions and grouped key-value heads, [B, T, D]."""

    config: LlamaConfig
    dtype: Dtype
    backend: str = "xla"

    @nn.compact
    def __call__(self, x, kv, positions, lengths, mask, cursor):
        c = self.config

        def project(name: str, heads: int) -> jax.Array:
            return Linear([c.width], [heads, c.head_size], init_std=c.init_std, dtype=self.dtype, name=name)(x)

        q = checkpoint_name(rotary(project("q", c.heads), positions, c.rope_theta), "q")
        k = checkpoint_name(rotary(project("k", c.kv_heads), positions, c.rope_theta), "k")
        v = checkpoint_name(project("v", c.kv_heads), "v")
        if kv is None:
            context = attention(
                q,
                k,
                v,
                causal=mask is None,
                key_lengths=lengths,
                mask=mask,
                window=c.window,
                backend=self.backend,
            )
        else:
            k, v = kv = _write(kv[0], k, cursor), _write(kv[1], v, cursor)
            context = cached_attention(q, k, v, mask)
        context = checkpoint_name(context, "context")
        out = Linear([c.heads, c.head_size], [c.width], init_std=c.init_std, dtype=self.dtype, name="o")(context)
        return out, kv


def _write(cache: jax.Array, new: jax.Array, cursor: jax.Array) -> jax.Array:
    """The cache [B, K, S, H] with [B, T, K, H] in its slots from `cursor` on."""
    return jax.lax.dynamic_update_slice_in_dim(cache, new.swapaxes(1, 2).astype(cache.dtype), cursor, axis=2)


class MLP(nn.Module):
    """The gated MLP, [B, T, D]."""

    config: LlamaConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        c = self.config
        gate = Linear([c.width], [c.ffn], init_std=c.init_std, dtype=self.dtype, name="gate")(x)
        up = Linear([c.width], [c.ffn], init_std=c.init_std, dtype=self.dtype, name="up")(x)
        hidden = nn.silu(checkpoint_name(gate, "gate")) * checkpoint_name(up, "up")
        return Linear([c.ffn], [c.width], init_std=c.init_std, dtype=self.dtype, name="down")(hidden)


class Block(nn.Module):
    """Attention and MLP, each behind its norm, [B, T, D]."""

    config: LlamaConfig
    dtype: Dtype
    backend: str = "xla"

    @nn.compact
    def __call__(self, x, kv, positions, lengths, mask, cursor):
        c = self.config
        x = constrain(x, BATCH)
        out, kv = Attention(c, self.dtype, self.backend, name="attention")(
            RMSNorm(c.norm_eps, name="attention_norm")(x), kv, positions, lengths, mask, cursor
        )
        x = checkpoint_name(x + out, "residual")
        x = x + MLP(c, self.dtype, name="mlp")(RMSNorm(c.norm_eps, name="mlp_norm")(x))
        return x, kv


class Embed(nn.Module):
    """Token ids int32[B, T] to embeddings [B, T, D]."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, tokens):
        c = self.config
        table = self.param("embedding", normal_init(c.init_std, c.width), (c.padded_vocab, c.width))
        return table[tokens]


class Head(nn.Module):
    """The kernel [D, V] of the logits."""

    config: LlamaConfig

    @nn.compact
    def __call__(self):
        c = self.config
        return self.param("kernel", normal_init(c.init_std, c.width), (c.width, c.padded_vocab))


class Llama(nn.Module):
    """Tokens to final hidden states.

    Args of `__call__`:
      tokens: int32[B, T].
      positions: int32[B, T], rotary positions; default 0..T-1.
      lengths: int32[B], real tokens of right-padded rows; attention is causal.
      mask: bool[B, T, S] instead of causal attention with lengths: left padding, decoding; or the units of a buffer.
        It says all, the window of a model that has one included.
      cache: keys and values of earlier calls (needs `mask`); the new ones are written at `cache.cursor`.
      edit_embeds: changes the embeddings [B, T, D] before the first block; a vision tower's outputs enter here.

    Returns:
      hidden [B, T, D] after the final norm, and the cache (None if none was given). The head is applied outside,
      from `head_kernel(params)`, to the positions that need it.
    """

    config: LlamaConfig
    dtype: Dtype = jnp.float32
    remat: str = "none"
    backend: str = "xla"  # of attention, see `ops.attention`

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        lengths: jax.Array | None = None,
        mask: jax.Array | Units | None = None,
        cache: KVCache | None = None,
        edit_embeds: Callable[[jax.Array], jax.Array] | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        c = self.config
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        x = Embed(c, name="embed")(tokens).astype(self.dtype)
        if edit_embeds is not None:
            x = edit_embeds(x)
        kv, cursor = (None, None) if cache is None else ((cache.k, cache.v), cache.cursor)
        layers = nn.scan(
            rematerialised(Block, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
            out_axes=0,
            length=c.layers,
            unroll=c.unroll,
        )(c, self.dtype, self.backend, name="layers")
        x, kv = layers(x, kv, positions, lengths, mask, cursor)
        if self.is_initializing():
            Head(c, name="head")()  # declared here, applied outside
        if cache is not None:
            cache = KVCache(kv[0], kv[1], cache.cursor + tokens.shape[1])
        return RMSNorm(c.norm_eps, name="final_norm")(x), cache


def head_kernel(params: dict) -> jax.Array:
    """float32[D, V'], the output head of a LLaMA's parameters, with its adapter where it has one."""
    head = params["head"]
    return head["kernel"] + head["lora_a"] @ head["lora_b"] if "lora_a" in head else head["kernel"]
