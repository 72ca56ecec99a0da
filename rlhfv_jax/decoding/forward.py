"""The models as decoding computes them: image features once per image, prompts at once, then a token a step.

The layers are unstacked here, one subtree each: a loop over stacked layers would copy a layer's weights and its cache
out of the stack and back for every token. P prompts, R rows (prompts times beams or answers), T prompt tokens, S cache
slots, U images, Q image tokens of each, V' the padded vocabulary.
"""

import operator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rlhfv_jax.models import vlm
from rlhfv_jax.models.layers import Dtype, RMSNorm
from rlhfv_jax.models.llama import Block, LlamaConfig, head_kernel
from rlhfv_jax.ops.attention import near
from rlhfv_jax.ops.logprobs import token_log_probs
from rlhfv_jax.sharding import constrain
from rlhfv_jax.structs import BATCH


class Inputs(NamedTuple):
    """A batch of prompts; rows without image tokens may name any image, and a batch without images has no features."""

    tokens: Any  # int32[P, T], right-padded
    lengths: Any  # int32[P], real tokens
    features: Any  # [U, Q, D] or None
    image_of: Any  # int32[P], each prompt's image


class Cache(NamedTuple):
    """Keys and values of every layer. Slots 0..T-1 belong to the prompt, slot T + i to the answer's token i."""

    k: tuple[jax.Array, ...]  # L times [R, K, S, H]
    v: tuple[jax.Array, ...]


def cache_bytes(config: LlamaConfig, rows: int, slots: int, dtype: Dtype = jnp.float32) -> int:
    """Memory of a cache: 2 (keys and values) x L x R x K x S x H numbers."""
    numbers = 2 * config.layers * rows * slots * config.kv_heads * config.head_size
    return numbers * jnp.dtype(dtype).itemsize


@dataclass(frozen=True)
class Network:
    """A model of any family or a LLaMA alone, for parameters that went through `unstack`."""

    config: vlm.VlmConfig | LlamaConfig
    dtype: Dtype = jnp.float32

    @property
    def llm(self) -> LlamaConfig:
        return self.config if isinstance(self.config, LlamaConfig) else self.config.llm

    @property
    def queries(self) -> int:
        """Image tokens of a prompt with an image, 0 for a model without eyes."""
        return 0 if isinstance(self.config, LlamaConfig) else self.config.image_tokens

    def unstack(self, params: Any) -> Any:
        """The parameters with `llm/layers` as a tuple of one tree per layer; for jit, with the old ones donated."""
        stacked = params["llm"]["layers"]
        layers = tuple(jax.tree.map(operator.itemgetter(i), stacked) for i in range(self.llm.layers))
        return params | {"llm": params["llm"] | {"layers": layers}}

    def features(self, params: Any, image: jax.Array) -> jax.Array:
        """uint8[U, S, S, 3] -> [U, Q, D], what stands in for the image tokens' embeddings."""
        assert isinstance(self.config, vlm.VlmConfig), "a LLaMA alone sees no images"
        return vlm.encode(self.config, params, image, self.dtype)

    def prefill(self, params: Any, inputs: Inputs) -> tuple[jax.Array, Cache]:
        """The logits after each prompt, float32[P, V'], and a cache of T slots."""
        x, cache = self._whole(params, inputs)
        last = jnp.take_along_axis(x, (inputs.lengths - 1)[:, None, None], axis=1)
        return self._logits(params, last[:, 0]), cache

    def log_probs(self, params: Any, inputs: Inputs, labels: jax.Array) -> jax.Array:
        """Of targets int32[P, T-1] (IGNORE: none) in the rows themselves, as ops/logprobs.py: float32[P, T-1]."""
        x, _ = self._whole(params, inputs)
        return token_log_probs(x[:, :-1], head_kernel(params["llm"]), labels, self.llm.vocab_size)

    def _whole(self, params: Any, inputs: Inputs) -> tuple[jax.Array, Cache]:
        """Final hidden states of whole rows, [P, T, D], and their cache."""
        tokens, lengths = inputs.tokens, inputs.lengths
        rows, width = tokens.shape
        x = params["llm"]["embed"]["embedding"][tokens].astype(self.dtype)
        if inputs.features is not None:
            assert isinstance(self.config, vlm.VlmConfig) and inputs.image_of is not None
            x = vlm.splice(x, inputs.features[inputs.image_of], tokens == self.config.image_token)
        positions = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), tokens.shape)
        empty = jnp.zeros((rows, self.llm.kv_heads, width, self.llm.head_size), self.dtype)
        blank = Cache((empty,) * self.llm.layers, (empty,) * self.llm.layers)
        mask = jnp.tri(width, dtype=bool) & (jnp.arange(width) < lengths[:, None, None])
        if 0 < self.llm.window < width:
            mask &= near(positions, positions, self.llm.window)
        return self._blocks(params, x, blank, positions, mask, 0)

    def step(
        self, params: Any, tokens: jax.Array, cache: Cache, slot: jax.Array, lengths: jax.Array, width: int
    ) -> tuple[jax.Array, Cache]:
        """The logits after one more token a row, int32[R] -> float32[R, V'], whose keys go to the cache's `slot`.

        `lengths` int32[R] are those of the rows' prompts, `width` is T: the slots between the two are never looked at.
        """
        x = params["llm"]["embed"]["embedding"][tokens[:, None]].astype(self.dtype)
        positions = (lengths + slot - width)[:, None]
        slots = jnp.arange(cache.k[0].shape[2])
        mask = ((slots < lengths[:, None]) | ((slots >= width) & (slots <= slot)))[:, None]
        if 0 < self.llm.window < len(slots):
            places = jnp.where(slots < width, slots, lengths[:, None] + slots - width)
            mask &= near(positions, places, self.llm.window)
        x, cache = self._blocks(params, x, cache, positions, mask, slot)
        return self._logits(params, x[:, 0]), cache

    def _blocks(self, params, x, cache, positions, mask, slot):
        block: Any = Block(self.llm, self.dtype)
        keys: list[jax.Array] = []
        values: list[jax.Array] = []
        for layer, k, v in zip(params["llm"]["layers"], cache.k, cache.v, strict=True):
            x, (k, v) = block.apply({"params": layer}, x, (k, v), positions, None, mask, slot)
            keys.append(k)
            values.append(v)
        x = RMSNorm(self.llm.norm_eps).apply({"params": params["llm"]["final_norm"]}, x)
        return x, Cache(tuple(keys), tuple(values))

    def _logits(self, params: Any, hidden: jax.Array) -> jax.Array:
        head = head_kernel(params["llm"])
        logits = jnp.einsum("rd,dv->rv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
        return jnp.where(jnp.arange(head.shape[1]) < self.llm.vocab_size, logits, -jnp.inf)


def extend(cache: Cache, times: int, slots: int) -> Cache:
    """The cache of P prompts as one of P * times rows, each prompt's rows side by side, with `slots` more slots."""

    def one(x: jax.Array) -> jax.Array:
        x = jnp.pad(jnp.repeat(x, times, axis=0), ((0, 0), (0, 0), (0, slots), (0, 0)))
        return constrain(x, BATCH, *[PartitionSpec.UNCONSTRAINED] * 3)

    return jax.tree.map(one, cache)
