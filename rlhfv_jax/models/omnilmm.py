"""OmniLMM-12B: EVA-02 CLIP, a resampler whose queries read its patches, Mistral (Jiang et al. 2023).

There is no paper of the model itself; its released code is the source.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rlhfv_jax.models import clip, eva, llama
from rlhfv_jax.models.eva import Eva, EvaConfig
from rlhfv_jax.models.layers import Dtype, LayerNorm, Linear, normal_init, resized_grid
from rlhfv_jax.models.vlm import VlmConfig
from rlhfv_jax.ops.attention import attention

NORM_EPS = 1e-6
HEAD = 128  # of the resampler's attention, whatever its width
# Zephyr's chat, of which the language model is a fine-tune; the released tokenizer has the last word.
ZEPHYR = "<|user|>\n{question}</s>\n<|assistant|>\n{answer}</s>{again}\n<|user|>\n"


@dataclass(frozen=True)
class OmniLMMConfig(VlmConfig):
    """The queries' outputs stand in for `<im_patch>`; `queries` is a square number."""

    tower: EvaConfig
    family: str = "omnilmm"
    queries: int = 64

    mean, std = clip.MEAN, clip.STD
    template = ZEPHYR

    @property
    def image_tokens(self) -> int:
        return self.queries

    def vision_tower(self, dtype: Dtype = jnp.float32, remat: str = "none") -> Eva:
        return Eva(self.tower, dtype, remat, name="tower")

    def projector(self, dtype: Dtype = jnp.float32) -> nn.Module:
        llm = self.llm
        return Resampler(self.queries, self.tower.width, llm.width, llm.init_std, dtype, name="projector")


class Resampler(nn.Module):
    """[B, P, E] -> [B, Q, D]: Q learned queries attend to the projected patches once. P is a square number.

    Both have two-dimensional sine positions, of the queries' grid, for the keys interpolated to the patches' (bicubic,
    not antialiased); values have none. The positions are in a checkpoint, rounded as it is, and never train.
    Parameters: query [Q, D], fixed_positions [Q, D], keys/kernel [E, D], {query,keys,post}_norm/{scale,bias} [D],
    attention/{qkv/{kernel [D,3,N,H], bias [3,N,H]}, o/{kernel [N,H,D], bias [D]}}, out/kernel [D, D].
    """

    queries: int
    inputs: int
    width: int
    init_std: float | None
    dtype: Dtype

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        query = self.param("query", normal_init(self.init_std, self.width), (self.queries, self.width))
        positions = self.param("fixed_positions", lambda _: jnp.asarray(sine_positions(self.queries, self.width)))
        positions = jax.lax.stop_gradient(positions)
        keys = Linear([self.inputs], [self.width], init_std=self.init_std, dtype=self.dtype, name="keys")(patches)
        values = LayerNorm(NORM_EPS, name="keys_norm")(keys)
        keys = values + resized_grid(positions, patches.shape[1]).astype(self.dtype)
        asked = LayerNorm(NORM_EPS, name="query_norm")(query) + positions
        asked = jnp.broadcast_to(asked.astype(self.dtype), (len(patches), *asked.shape))
        x = CrossAttention(self.width, self.init_std, self.dtype, name="attention")(asked, keys, values)
        x = LayerNorm(NORM_EPS, name="post_norm")(x)
        return Linear([self.width], [self.width], init_std=self.init_std, dtype=self.dtype, name="out")(x)


class CrossAttention(nn.Module):
    """Torch's MultiheadAttention, its three input maps fused in one kernel."""

    width: int
    init_std: float | None
    dtype: Dtype

    @nn.compact
    def __call__(self, queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        size = min(HEAD, self.width)
        heads = (self.width // size, size)
        kernel, bias = Fused(self.width, heads, self.init_std, name="qkv")()
        q, k, v = (
            jnp.einsum("btd,dnh->btnh", x.astype(self.dtype), kernel[:, i].astype(self.dtype))
            + bias[i].astype(self.dtype)
            for i, x in enumerate((queries, keys, values))
        )
        return Linear(heads, [self.width], True, self.init_std, self.dtype, name="o")(attention(q, k, v))


class Fused(nn.Module):
    """The kernel [D, 3, N, H] and bias [3, N, H] of queries, keys and values."""

    width: int
    heads: tuple[int, int]
    init_std: float | None

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", normal_init(self.init_std, self.width), (self.width, 3, *self.heads))
        return kernel, self.param("bias", nn.initializers.zeros, (3, *self.heads))


def sine_positions(places: int, width: int) -> np.ndarray:
    """float32[places, width] of a square grid: the first half of the channels tells the column, the second the row,
    each half sines and then cosines of it over 10000 ** (i / (width / 4))."""
    side = round(places**0.5)
    frequencies = 10_000.0 ** (-np.arange(width // 4) / (width / 4))
    row, column = np.divmod(np.arange(places), side)
    angles = [place[:, None] * frequencies for place in (column, row)]
    return np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1).astype(np.float32)


def omnilmm_12b(vocab_size: int = 32_009, image_token: int = 32_000) -> OmniLMMConfig:
    """The released model: EVA-02 enormous at 448 px, 64 image tokens, Zephyr-7B."""
    return OmniLMMConfig(eva.enormous(448), llama.mistral_7b(vocab_size), image_token)
