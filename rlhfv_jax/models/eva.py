"""EVA-02's CLIP vision transformer as OmniLMM has it (timm's eva02_enormous_patch14_clip): all patches, after a norm.

Sun et al. 2023 (EVA-CLIP). Residual post-norm: each branch is normed and then added, x + norm(f(x)). Queries and values
have biases, keys none; plain exact GELU, epsilon 1e-6. The last block of the original is not there, but the norm that
was trained behind it is. The position table keeps its own grid and is interpolated for others, bicubically with
antialiasing, at every call.

Parameters (L axis first in layers):
    patch/{kernel [p*p*3, D], bias [D]}    class_token [D]    positions [G*G+1, D]    final_norm/{scale,bias} [D]
    layers/{attention_norm,mlp_norm}/{scale,bias} [L, D]
    layers/attention/{qkv/kernel [L,D,3,N,H], q/bias [L,N,H], v/bias [L,N,H], o/{kernel [L,N,H,D], bias [L,D]}}
    layers/mlp/{up/{kernel [L,D,F], bias [L,F]}, down/{kernel [L,F,D], bias [L,D]}}
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rlhfv_jax.models.layers import (
    MLP,
    Dtype,
    LayerNorm,
    Linear,
    gelu,
    normal_init,
    patch_windows,
    rematerialised,
    resized_grid,
)
from rlhfv_jax.ops.attention import attention
from rlhfv_jax.sharding import constrain
from rlhfv_jax.structs import BATCH


@dataclass(frozen=True)
class EvaConfig:
    """Sizes of the tower; `grid` is the side of its position table, in patches, whatever the size of the images."""

    image_size: int
    patch: int
    width: int
    layers: int
    heads: int
    ffn: int
    grid: int
    norm_eps: float = 1e-6
    init_std: float | None = 0.02
    unroll: int = 1

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (-(-self.image_size // self.patch)) ** 2


def enormous(image_size: int = 448) -> EvaConfig:
    """EVA-02 CLIP enormous, 63 of its 64 blocks, trained at 224 px."""
    return EvaConfig(image_size, patch=14, width=1792, layers=63, heads=16, ffn=15_360, grid=16)


class Bias(nn.Module):
    """A bias of its own, for what is cut out of a fused linear map."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.param("bias", nn.initializers.zeros, self.shape).astype(x.dtype)


class Attention(nn.Module):
    """Attention with rotary positions over all patches, [B, P, D]."""

    config: EvaConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        heads = (c.heads, c.width // c.heads)
        fused = Linear([c.width], [3, *heads], init_std=c.init_std, dtype=self.dtype, name="qkv")(x)
        q, k, v = (fused[:, :, i] for i in range(3))
        q, v = Bias(heads, name="q")(q), Bias(heads, name="v")(v)
        q, k, v = checkpoint_name(q, "q"), checkpoint_name(k, "k"), checkpoint_name(v, "v")
        context = checkpoint_name(attention(q, k, v), "context")
        return Linear(heads, [c.width], True, c.init_std, self.dtype, name="o")(context)


class Block(nn.Module):
    """Attention and MLP, each behind its norm, [B, P, D]."""

    config: EvaConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, _):
        c = self.config
        x = constrain(x, BATCH)
        x = x + LayerNorm(c.norm_eps, name="attention_norm")(Attention(c, self.dtype, name="attention")(x))
        x = checkpoint_name(x, "residual")
        mlp = MLP(c.width, c.ffn, gelu, c.init_std, self.dtype, name="mlp")
        return x + LayerNorm(c.norm_eps, name="mlp_norm")(mlp(x)), None


class Eva(nn.Module):
    """Normalized square images float32[B, S, S, 3] -> [B, P, D], the patches after the final norm.

    An S that is no multiple of the patch is filled up with zeros on the right and below.
    """

    config: EvaConfig
    dtype: Dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        c = self.config
        rows, columns = (-size % c.patch for size in image.shape[1:3])
        windows = patch_windows(jnp.pad(image, ((0, 0), (0, rows), (0, columns), (0, 0))), c.patch)
        patches = Linear([windows.shape[-1]], [c.width], True, c.init_std, self.dtype, name="patch")(windows)
        class_token = self.param("class_token", normal_init(c.init_std, c.width), (c.width,))
        table = self.param("positions", normal_init(c.init_std, c.width), (c.grid**2 + 1, c.width))
        if patches.shape[1] != c.grid**2:
            table = jnp.concatenate([table[:1], resized_grid(table[1:], patches.shape[1], antialias=True)])
        first = jnp.broadcast_to(class_token.astype(self.dtype), (len(image), 1, c.width))
        x = jnp.concatenate([first, patches], axis=1) + table.astype(self.dtype)
        layers = nn.scan(
            rematerialised(Block, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.layers,
            unroll=c.unroll,
        )(c, self.dtype, name="layers")
        x, _ = layers(x, None)
        return LayerNorm(c.norm_eps, name="final_norm")(x)[:, 1:]
