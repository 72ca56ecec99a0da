"""What two models share: norms, linear maps, rotary positions, initialisers, rematerialisation.

RMSNorm is Zhang and Sennrich 2019, rotary positions are Su et al. 2021. Parameters are float32; a module computes in
its `dtype`. Norms and rotary angles are float32 whatever the dtype.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero

Dtype = Any

# Saved by name in the forward pass, so that the backward pass recomputes no matrix product but cheap ones.
SAVED_NAMES = ("q", "k", "v", "context", "residual", "gate", "up")


def normal_init(std: float | None, fan_in: int) -> nn.initializers.Initializer:
    """Normal with standard deviation `std`; None means 1/sqrt(fan_in), which suits narrow models."""
    return nn.initializers.normal(fan_in**-0.5 if std is None else std)


class Linear(nn.Module):
    """x[..., *in] -> [..., *out] by one kernel of shape in + out, as many axes as have a meaning (heads, say).

    Where its parameters have an adapter `lora_a` [*in, r], `lora_b` [r, *out], that product is added.
    """

    inputs: Sequence[int]
    outputs: Sequence[int]
    use_bias: bool = False
    init_std: float | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs, outputs = tuple(self.inputs), tuple(self.outputs)
        fan_in = 1
        for size in inputs:
            fan_in *= size
        kernel = self.param("kernel", normal_init(self.init_std, fan_in), inputs + outputs)
        x = x.astype(self.dtype)
        y = product(x, kernel.astype(self.dtype), len(inputs))
        if self.has_variable("params", "lora_a"):  # see `lora`; A and B come scaled
            a: jax.Array = self.get_variable("params", "lora_a").astype(self.dtype)
            b: jax.Array = self.get_variable("params", "lora_b").astype(self.dtype)
            y = y + jnp.tensordot(jnp.tensordot(x, a, len(inputs)), b, 1)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, outputs).astype(self.dtype)
        return y


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, kernel: jax.Array, inputs: int) -> jax.Array:
    """x[..., *in] times kernel[*in, *out] -> [..., *out], where `in` are so many axes.

    JAX's own gradient of a kernel is a product of two transposes, itself transposed. XLA on a CPU carries these out on
    whatever is as wide as the output, and a step takes a fifth longer; here it is one product of two matrices.
    """
    return jnp.tensordot(x, kernel, inputs)


def _product_forward(x: Any, kernel: Any, inputs: int) -> tuple[jax.Array, tuple[jax.Array | None, jax.Array | None]]:
    """Keeps of the two what the gradient of the other needs, where the other is differentiated at all."""
    kept = x.value if kernel.perturbed else None, kernel.value if x.perturbed else None
    return product(x.value, kernel.value, inputs), kept


def _product_gradient(inputs: int, kept: tuple[Any, Any], g: Any) -> tuple[jax.Array | None, jax.Array | None]:
    x, kernel = kept
    if isinstance(g, SymbolicZero):
        return None, None
    of_x = of_kernel = None
    if kernel is not None:
        outputs = kernel.ndim - inputs
        contract = tuple(range(g.ndim - outputs, g.ndim)), tuple(range(inputs, kernel.ndim))
        of_x = jax.lax.dot_general(g, kernel, (contract, ((), ())))
    if x is not None:
        rows = x.ndim - inputs
        ins, outs = x.shape[rows:], g.shape[rows:]
        of_kernel = (x.reshape(-1, math.prod(ins)).T @ g.reshape(-1, math.prod(outs))).reshape(*ins, *outs)
    return of_x, of_kernel


product.defvjp(_product_forward, _product_gradient, symbolic_zeros=True)


class RMSNorm(nn.Module):
    """LLaMA's norm: x / rms(x) in float32, cast back, times a learned scale."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return y.astype(x.dtype) * scale.astype(x.dtype)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis with scale and bias, in float32, cast back."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * scale + bias).astype(x.dtype)


class MLP(nn.Module):
    """Two linear maps with biases and an activation between them: x [..., D] -> [..., D]."""

    width: int
    ffn: int
    activation: Callable[[jax.Array], jax.Array]
    init_std: float | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        up = Linear([self.width], [self.ffn], True, self.init_std, self.dtype, name="up")(x)
        hidden = self.activation(checkpoint_name(up, "up"))
        return Linear([self.ffn], [self.width], True, self.init_std, self.dtype, name="down")(hidden)


def gelu(x: jax.Array) -> jax.Array:
    """Exact (erf) GELU, computed in float32. Any shape and dtype, kept."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype)


def patch_windows(image: jax.Array, patch: int) -> jax.Array:
    """[B, S, S, 3] -> [B, P, p*p*3]: a convolution whose stride is its window is a linear map of these."""
    return rearrange(image, "b (y p) (x q) c -> b (y x) (p q c)", p=patch, q=patch)


def resized_grid(table: jax.Array, patches: int, antialias: bool = False) -> jax.Array:
    """A square grid's rows [P, D] for another square, [patches, D], as torch's bicubic without aligned corners.

    Torch has two bicubics: with antialiasing it interpolates with a = -0.5 and renormalises at the border, as JAX does;
    without, with a = -0.75 and the border repeated.
    """
    old, new = math.isqrt(table.shape[0]), math.isqrt(patches)
    if old**2 != table.shape[0] or new**2 != patches:
        raise ValueError(f"position tables of {table.shape[0]} and {patches} patches: both must be squares")
    methods = jax.image.ResizeMethod
    method = methods.CUBIC if antialias else methods.CUBIC_PYTORCH
    resized = jax.image.resize(table.reshape(old, old, -1), (new, new, table.shape[1]), method, antialias=antialias)
    return resized.reshape(patches, -1)


def rotary(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding, halves rotated as in Hugging Face's LLaMA.

    x [B, T, N, H], positions int32[B, T] -> [B, T, N, H]. Angles are float32: bfloat16 cannot tell 256 from 257.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None].astype(jnp.float32) * frequencies  # [B, T, H/2]
    sin, cos = jnp.sin(angles)[:, :, None], jnp.cos(angles)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def rematerialised(block: type[nn.Module], remat: str) -> type[nn.Module]:
    """The block class with its activations kept ("none"), kept by name ("named") or recomputed ("full").

    For blocks inside `nn.scan` only: the scan is what makes prevent_cse=False safe.
    """
    if remat == "none":
        return block
    if remat not in ("named", "full"):
        raise ValueError(f"remat={remat!r} is not known; choose none, named or full.")
    policies = jax.checkpoint_policies
    policy = policies.save_only_these_names(*SAVED_NAMES) if remat == "named" else policies.nothing_saveable
    return nn.remat(block, prevent_cse=False, policy=policy)
