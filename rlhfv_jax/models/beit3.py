"""BEiT-3 as Muffin uses it: a multiway encoder whose learned queries read an image.

Wang et al. 2022. Two branches share one attention: A carries the class token and the patches, B the
queries. Every linear map and every norm has a copy for each branch; attention is over both together, fully
bidirectional (image tokens see the queries). Sub-LayerNorm: besides the usual pre-norms, one norm before the
attention's output map and one before the second feed-forward map. As torchscale's encoder with `multiway` and `subln`;
GELU is exact, epsilon 1e-5.

Parameters (E for the tower's width D, L axis first in layers, {A,B} the branches):
    patch/{kernel [p*p*3, D], bias [D]} (or patch/window, patch/out: `ConvStem`)
    class_token [D]    query [Q, D]    positions/{A [P+3, D], B [1024, D]}
    layers/attention_norm/{A,B}/{scale,bias} [L, D]    layers/attention/inner_norm/{A,B}/{scale,bias} [L, D]
    layers/attention/{q,k,v}/{A,B}/{kernel [L,D,N,H], bias [L,N,H]}    .../o/{A,B}/{kernel [L,N,H,D], bias [L,D]}
    layers/mlp_norm/{A,B}/{scale,bias} [L, D]    layers/mlp/inner_norm/{A,B}/{scale,bias} [L, F]
    layers/mlp/up/{A,B}/{kernel [L,D,F], bias [L,F]}    layers/mlp/down/{A,B}/{kernel [L,F,D], bias [L,D]}
    final_norm/{A,B}/{scale,bias} [D]
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

from rlhfv_jax.models.layers import (
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

POSITION_OFFSET = 2  # fairseq keeps two rows for padding; the first token reads row 2
Streams = tuple[jax.Array, jax.Array]  # image stream [B, 1+P, D], query stream [B, Q, D]


@dataclass(frozen=True)
class Beit3Config:
    """Sizes of the tower; `query_positions` is the length of the B position table (BEiT-3's text table)."""

    image_size: int
    patch: int
    width: int
    layers: int
    heads: int
    ffn: int
    queries: int
    query_positions: int = 1024
    norm_eps: float = 1e-5
    init_std: float | None = 0.02
    unroll: int = 1  # layers a turn of the loop; a stack of two runs a quarter faster unrolled on a CPU
    position_std: float = 0.02  # small towers learn sooner from loud positions
    stem: str = "linear"  # or "conv": half-size windows, GELU, summed, then a linear map; for small towers

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch) ** 2


def tiny(image_size: int = 32, queries: int = 4) -> Beit3Config:
    """Two small layers, for tests and trials."""
    return Beit3Config(image_size, 16, 16, 2, 2, 32, queries, query_positions=queries + 4, init_std=None)


def base(image_size: int = 224, queries: int = 64) -> Beit3Config:
    """BEiT-3 base (beit3_base_patch16)."""
    return Beit3Config(image_size, patch=16, width=768, layers=12, heads=12, ffn=3072, queries=queries)


def large(image_size: int = 448, queries: int = 64) -> Beit3Config:
    """BEiT-3 large (beit3_large_patch16), Muffin's tower."""
    return Beit3Config(image_size, patch=16, width=1024, layers=24, heads=16, ffn=4096, queries=queries)


SIZES = {"tiny": tiny, "base": base, "large": large}


def interpolate_positions(table: jax.Array, patches: int) -> jax.Array:
    """The image branch's position table for another number of patches.

    table [P+3, D] -> [patches+3, D]: the two unused rows and the class token's are copied, the grid is resized as by
    torch's `interpolate(mode="bicubic", align_corners=False)`. Both grids must be square.
    """
    grid = resized_grid(table[POSITION_OFFSET + 1 :], patches)
    return jnp.concatenate([table[: POSITION_OFFSET + 1], grid])


class Multiway(nn.Module):
    """One module per branch: `make(name)` builds it, A for the image stream and B for the query stream."""

    make: type[nn.Module]
    kwargs: dict

    @nn.compact
    def __call__(self, streams: Streams) -> Streams:
        a, b = streams
        return self.make(**self.kwargs, name="A")(a), self.make(**self.kwargs, name="B")(b)


def multiway_linear(config: Beit3Config, dtype: Dtype, name: str, inputs: list[int], outputs: list[int]) -> Multiway:
    """A linear map of its own for image tokens (A) and queries (B): [B, T, D] to [B, T, F]."""
    kwargs = {
        "inputs": tuple(inputs),
        "outputs": tuple(outputs),
        "use_bias": True,
        "init_std": config.init_std,
        "dtype": dtype,
    }
    return Multiway(Linear, kwargs, name=name)


def multiway_norm(config: Beit3Config, name: str) -> Multiway:
    """A layer norm of its own for image tokens (A) and queries (B) of [B, T, D]."""
    return Multiway(LayerNorm, {"eps": config.norm_eps}, name=name)


class Attention(nn.Module):
    """Attention over image tokens and queries together, [B, T, D]; a norm before the output (sub-LN)."""

    config: Beit3Config
    dtype: Dtype

    @nn.compact
    def __call__(self, streams: Streams) -> Streams:
        c = self.config
        head = c.width // c.heads
        q, k, v = (
            checkpoint_name(
                jnp.concatenate(multiway_linear(c, self.dtype, name, [c.width], [c.heads, head])(streams), axis=1), name
            )
            for name in ("q", "k", "v")
        )
        context = checkpoint_name(attention(q, k, v), "context")
        split = streams[0].shape[1]
        # The inner norm spans all heads, so heads are flattened for it and taken apart again for the output map.
        normed = multiway_norm(c, "inner_norm")(
            (
                rearrange(context[:, :split], "b t n h -> b t (n h)"),
                rearrange(context[:, split:], "b t n h -> b t (n h)"),
            )
        )
        a, b = (rearrange(x, "b t (n h) -> b t n h", n=c.heads) for x in normed)
        return multiway_linear(c, self.dtype, "o", [c.heads, head], [c.width])((a, b))


class MLP(nn.Module):
    """GELU between two multiway maps, [B, T, D]; a norm in between (sub-LN)."""

    config: Beit3Config
    dtype: Dtype

    @nn.compact
    def __call__(self, streams: Streams) -> Streams:
        c = self.config
        up = multiway_linear(c, self.dtype, "up", [c.width], [c.ffn])(streams)
        a, b = (gelu(checkpoint_name(x, "up")) for x in up)
        normed = multiway_norm(c, "inner_norm")((a, b))
        return multiway_linear(c, self.dtype, "down", [c.ffn], [c.width])(normed)


class Block(nn.Module):
    """Attention and MLP, each behind its norm, [B, T, D]."""

    config: Beit3Config
    dtype: Dtype

    @nn.compact
    def __call__(self, streams: Streams, _):
        c = self.config
        a, b = constrain(streams[0], BATCH), constrain(streams[1], BATCH)
        da, db = Attention(c, self.dtype, name="attention")(multiway_norm(c, "attention_norm")((a, b)))
        a, b = checkpoint_name(a + da, "residual"), checkpoint_name(b + db, "residual")
        da, db = MLP(c, self.dtype, name="mlp")(multiway_norm(c, "mlp_norm")((a, b)))
        return (a + da, b + db), None


class ConvStem(nn.Module):
    """Four half-size windows a patch, one linear map and GELU each, summed, and a second linear map.

    Sharing the first map over the windows makes what is in a patch independent of where in it: small towers see sooner.
    """

    config: Beit3Config
    dtype: Dtype

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        c = self.config
        size = c.patch // 2
        x = rearrange(image, "b (y i p) (x j q) c -> b (y x) (i j) (p q c)", i=2, j=2, p=size, q=size)
        x = gelu(Linear([size * size * 3], [c.width], True, c.init_std, self.dtype, name="window")(x))
        return Linear([c.width], [c.width], True, c.init_std, self.dtype, name="out")(x.sum(axis=2))


class Positions(nn.Module):
    """The two position tables, whole as in the checkpoint; rows below POSITION_OFFSET are never read."""

    config: Beit3Config

    @nn.compact
    def __call__(self) -> Streams:
        c = self.config
        a = self.param("A", nn.initializers.normal(c.position_std), (c.patches + 3, c.width))
        b = self.param("B", nn.initializers.normal(c.position_std), (c.query_positions, c.width))
        first = POSITION_OFFSET
        return a[first:], b[first : first + c.queries]


class Beit3(nn.Module):
    """Image float32[B, S, S, 3] in [-1, 1] -> query outputs [B, Q, D] after the final norm."""

    config: Beit3Config
    dtype: Dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        c = self.config
        batch = image.shape[0]
        if c.stem == "conv":
            patches = ConvStem(c, self.dtype, name="patch")(image)
        else:
            windows = patch_windows(image, c.patch)
            size = c.patch * c.patch * 3
            patches = Linear([size], [c.width], True, c.init_std, self.dtype, name="patch")(windows)
        class_token = self.param("class_token", normal_init(c.init_std, c.width), (c.width,))
        query = self.param("query", normal_init(c.init_std, c.width), (c.queries, c.width))
        image_positions, query_positions = Positions(c, name="positions")()
        first = jnp.broadcast_to(class_token.astype(self.dtype), (batch, 1, c.width))
        a = jnp.concatenate([first, patches], axis=1) + image_positions.astype(self.dtype)
        b = jnp.broadcast_to((query + query_positions).astype(self.dtype), (batch, c.queries, c.width))
        layers = nn.scan(
            rematerialised(Block, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.layers,
            unroll=c.unroll,
        )(c, self.dtype, name="layers")
        (a, b), _ = layers((a, b), None)
        # Both branches of the norm exist in a checkpoint, but only the queries' outputs leave the tower.
        return multiway_norm(c, "final_norm")((a, b))[1]
