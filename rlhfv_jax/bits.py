"""Floating-point numbers as bit patterns: checksums of arrays, float32 in two halves, stochastic rounding.

Everything is elementwise or an integer sum over global positions, so that it fuses into its surroundings, needs no
buffer, and gives the same bits however an array is cut over devices.
"""

import math

import jax
import jax.numpy as jnp

UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def positions(shape: tuple[int, ...]) -> jax.Array:
    """uint32[shape], the place of every entry in row-major order, modulo 2**32."""
    index = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = jnp.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        index = index + stride * jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return index


def checksum(x: jax.Array) -> jax.Array:
    """uint32[]: every entry's bits times an odd number of its place, added up modulo 2**32.

    One flipped bit always changes it, since an odd number times a power of two is never 0; so do most larger changes.
    """
    pattern = x if x.dtype == bool else jax.lax.bitcast_convert_type(x, UNSIGNED[x.dtype.itemsize])
    return jnp.sum(pattern.astype(jnp.uint32) * (2 * positions(x.shape) + 1), dtype=jnp.uint32)


def split_float32(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float32[...] -> bfloat16[...] and int16[...], from which `join_float32` makes exactly x.

    The first is x rounded to nearest; a tie rounds away from zero where a cast would choose the even neighbor, since
    the 2**16 values that round to one bfloat16 have to be as many as an int16 tells apart.
    """
    pattern = jax.lax.bitcast_convert_type(x, jnp.uint32) + jnp.uint32(0x8000)
    high = jax.lax.bitcast_convert_type((pattern >> 16).astype(jnp.uint16), jnp.bfloat16)
    low = (pattern & jnp.uint32(0xFFFF)).astype(jnp.int32) - 0x8000
    return high, low.astype(jnp.int16)


def join_float32(high: jax.Array, low: jax.Array) -> jax.Array:
    """The float32 that `split_float32` took apart."""
    pattern = jax.lax.bitcast_convert_type(high, jnp.uint16).astype(jnp.uint32) << 16
    return jax.lax.bitcast_convert_type(pattern + low.astype(jnp.int32).astype(jnp.uint32), jnp.float32)


def mixed(x: jax.Array) -> jax.Array:
    """uint32[...], a well-mixed function of the same (the finalizer of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def stochastic_bfloat16(x: jax.Array, seed: jax.Array) -> jax.Array:
    """float32[...] finite -> bfloat16[...], up or down at random so that the mean is x; `seed`: uint32[].

    The randomness is a function of seed and place, and costs no generator's state and no buffer.
    """
    noise = mixed(mixed(positions(x.shape)) ^ mixed(seed.astype(jnp.uint32) + jnp.uint32(0x9E3779B9)))
    pattern = jax.lax.bitcast_convert_type(x, jnp.uint32) + (noise >> 16)
    return jax.lax.bitcast_convert_type((pattern >> 16).astype(jnp.uint16), jnp.bfloat16)
