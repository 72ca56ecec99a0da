"""CLIP's vision transformer as LLaVA reads it: the patches' features before the last layer.

Radford et al. 2021, as Hugging Face's CLIPVisionModel. Pre-norm blocks with biases in all linear maps, a norm before
the first, a GELU of its own, epsilon 1e-5. The last layer and the norm behind it belong to a checkpoint and are kept,
but nothing reads them.

Parameters (L axis first in layers, which are all but the last):
    patch/kernel [p*p*3, D]    class_token [D]    positions [P+1, D]    pre_norm/{scale,bias} [D]
    layers/{attention_norm,mlp_norm}/{scale,bias} [L-1, D]
    layers/attention/{q,k,v}/{kernel [L-1,D,N,H], bias [L-1,N,H]}    .../o/{kernel [L-1,N,H,D], bias [L-1,D]}
    layers/mlp/{up/{kernel [L-1,D,F], bias [L-1,F]}, down/{kernel [L-1,F,D], bias [L-1,D]}}
    fixed_last_layer/... as one of the layers    fixed_post_norm/{scale,bias} [D]
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rlhfv_jax.models.layers import MLP, Dtype, LayerNorm, Linear, normal_init, patch_windows, rematerialised
from rlhfv_jax.ops.attention import attention
from rlhfv_jax.sharding import constrain
from rlhfv_jax.structs import BATCH

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pictures that CLIP was trained on
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of the tower; `layers` counts the last one, which is not read."""

    image_size: int
    patch: int
    width: int
    layers: int
    heads: int
    ffn: int
    norm_eps: float = 1e-5
    init_std: float | None = 0.02
    unroll: int = 1

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch) ** 2


def large(image_size: int = 336) -> ClipConfig:
    """ViT-L/14, for 224 or 336 pixels."""
    return ClipConfig(image_size, patch=14, width=1024, layers=24, heads=16, ffn=4096)


class Attention(nn.Module):
    """Attention over all patches, [B, P, D]."""

    config: ClipConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        head = c.width // c.heads
        q, k, v = (
            checkpoint_name(Linear([c.width], [c.heads, head], True, c.init_std, self.dtype, name=name)(x), name)
            for name in ("q", "k", "v")
        )
        context = checkpoint_name(attention(q, k, v), "context")
        return Linear([c.heads, head], [c.width], True, c.init_std, self.dtype, name="o")(context)


class Block(nn.Module):
    """Attention and MLP, each behind its norm, [B, P, D]."""

    config: ClipConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, _):
        c = self.config
        x = constrain(x, BATCH)
        x = x + Attention(c, self.dtype, name="attention")(LayerNorm(c.norm_eps, name="attention_norm")(x))
        x = checkpoint_name(x, "residual")
        mlp = MLP(c.width, c.ffn, quick_gelu, c.init_std, self.dtype, name="mlp")
        return x + mlp(LayerNorm(c.norm_eps, name="mlp_norm")(x)), None


def quick_gelu(x: jax.Array) -> jax.Array:
    """x sigmoid(1.702 x), an approximation that CLIP was trained with; in float32. Any shape and dtype, kept."""
    y = x.astype(jnp.float32)
    return (y * jax.nn.sigmoid(1.702 * y)).astype(x.dtype)


class Clip(nn.Module):
    """Normalized images float32[B, S, S, 3] -> [B, P, D], the patches' features before the last layer."""

    config: ClipConfig
    dtype: Dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        c = self.config
        windows = patch_windows(image, c.patch)
        patches = Linear([windows.shape[-1]], [c.width], False, c.init_std, self.dtype, name="patch")(windows)
        class_token = self.param("class_token", normal_init(c.init_std, c.width), (c.width,))
        positions = self.param("positions", normal_init(c.init_std, c.width), (c.patches + 1, c.width))
        first = jnp.broadcast_to(class_token.astype(self.dtype), (len(image), 1, c.width))
        x = jnp.concatenate([first, patches], axis=1) + positions.astype(self.dtype)
        x = LayerNorm(c.norm_eps, name="pre_norm")(x)
        layers = nn.scan(
            rematerialised(Block, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.layers - 1,
            unroll=c.unroll,
        )(c, self.dtype, name="layers")
        x, _ = layers(x, None)
        if self.is_initializing():  # declared, never applied to anything that is read
            Block(c, self.dtype, name="fixed_last_layer")(x, None)
            LayerNorm(c.norm_eps, name="fixed_post_norm")(x)
        return x[:, 1:]
