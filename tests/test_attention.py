"""Every attention back end against XLA's, in value and gradient, with the masks that the models use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhfv_jax import sharding
from rlhfv_jax.ops import attention as room

B, T, N, K, H = 2, 200, 4, 2, 32


def inputs(seed: int = 0):
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = (B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H)
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def masks() -> dict:
    segment = np.repeat([0, 1, 2, -1], [90, 50, 40, 20]).astype(np.int8)
    other = np.repeat([0, 1, 2, -1], [120, 0, 70, 10]).astype(np.int8)
    tree = room.tree_mask(jnp.asarray(np.stack([segment, other]))[None])
    return {"tree": {"mask": tree}, "rows": {"causal": True, "key_lengths": jnp.array([200, 131])}}


def value_and_gradient(backend: str, case: dict, real: np.ndarray):
    """Padding rows are left out: no one reads them, and back ends put different things there."""
    q, k, v, weight = inputs()
    weight = weight * real[..., None, None]

    def scored(q, k, v):
        out = room.attention(q, k, v, **case, backend=backend)
        return jnp.sum(out * weight), out * real[..., None, None]

    (_, out), grads = jax.jit(jax.value_and_grad(scored, (0, 1, 2), has_aux=True))(q, k, v)
    return [out, *grads]


@pytest.mark.parametrize("name", ["tree", "rows"])
@pytest.mark.parametrize("backend", ["splash", "cudnn"])
def test_a_back_end_is_xlas_in_value_and_gradient(backend, name):
    if backend == "cudnn" and jax.default_backend() != "gpu":
        pytest.skip("cuDNN runs on NVIDIA GPUs alone")
    real = np.arange(T) < np.array([[180], [131 if name == "rows" else 190]])
    found, expected = (value_and_gradient(b, masks()[name], real) for b in (backend, "xla"))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.slow
def test_units_in_blocks_have_the_attention_of_their_whole_mask():
    """Two buffers of three units, of which the third ends in the first block; the other way is splash on whole ones."""
    lengths, starts = [[200, 150, 60], [180, 140, 40]], [0, 64, 128, 192]
    tokens = max(map(sum, lengths))
    blocks = [np.full((2, count, 64), tokens) for count in (3, 2, 2)] + [np.full((2, 1, 8), tokens)]
    segment = np.full((2, 3, 200), -1, np.int8)
    for g, units in enumerate(lengths):
        for p, length in enumerate(units):
            segment[g, p, :length] = np.repeat(
                [0, 1, 2], [length // 2, length // 4, length - length // 2 - length // 4]
            )
            at = sum(units[:p]) + np.arange(length)
            for start, block in zip(starts, blocks, strict=True):
                here = at[start : start + 64]
                if len(here):
                    block[g, p, : len(here)] = here
    flat = np.concatenate([block.reshape(2, -1) for block in blocks], axis=1)
    place = np.full((2, tokens), flat.shape[1])
    for g, index in enumerate(flat):
        place[g, index[index < tokens]] = np.flatnonzero(index < tokens)
    units = room.Units(tuple(map(jnp.asarray, blocks)), jnp.asarray(place), room.tree_mask(jnp.asarray(segment)))
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, weight = (jax.random.normal(key, (2, tokens, n, H)) for key, n in zip(keys, (N, K, K, N), strict=True))

    def scored(q, k, v, backend):
        out = room.attention(q, k, v, mask=units, backend=backend)
        return jnp.sum(out * weight), out

    both = [jax.value_and_grad(scored, (0, 1, 2), has_aux=True)(q, k, v, name) for name in ("xla", "splash")]
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    mask = np.asarray(units.mask)  # of the second unit of the first buffer
    alone = room.attention(*(x[:1, 200:350] for x in (q, k, v)), mask=jnp.asarray(mask[1:2, :150, :150]))
    np.testing.assert_allclose(both[0][0][1][0, 200:350], alone[0], atol=1e-5)


def test_splash_on_a_mesh_is_splash_on_one_device():
    mesh = sharding.make_mesh(fsdp=2, tensor=2)
    q, k, v, _ = inputs()
    alone = room.attention(q, k, v, causal=True, backend="splash")
    with jax.set_mesh(mesh):
        cut = jax.jit(lambda q, k, v: room.attention(q, k, v, causal=True, backend="splash"))(q, k, v)
    np.testing.assert_allclose(cut, alone, atol=1e-5)


def test_automatic_stays_with_xla_where_nothing_else_runs():
    assert room.automatic(48, inputs()[0]) == "xla"
    long = jax.ShapeDtypeStruct((1, 4096, 4, 128), jnp.bfloat16)
    assert room.automatic(4096, long) == "xla"  # these tests run on a CPU


def test_attention_over_a_cache_is_attention_over_as_many_keys():
    """Grouped heads, one query and many, a mask of its own for every query."""
    q, k, v, _ = inputs()
    for queries in (1, T):
        mask = jax.random.bernoulli(jax.random.key(1), 0.5, (B, queries, T)).at[..., 0].set(True)
        cached = room.cached_attention(q[:, :queries], k.swapaxes(1, 2), v.swapaxes(1, 2), mask)
        np.testing.assert_allclose(cached, room.attention(q[:, :queries], k, v, mask=mask), atol=2e-6)
