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


def test_splash_on_a_mesh_is_splash_on_one_device():
    mesh = sharding.make_mesh(fsdp=2, tensor=2)
    q, k, v, _ = inputs()
    alone = room.attention(q, k, v, causal=True, backend="splash")
    with jax.set_mesh(mesh):
        cut = jax.jit(lambda q, k, v: room.attention(q, k, v, causal=True, backend="splash"))(q, k, v)
    np.testing.assert_allclose(cut, alone, atol=1e-5)


def test_automatic_stays_with_xla_where_nothing_else_runs():
    assert room.automatic(inputs()[0]) == "xla"
    assert room.automatic(jax.ShapeDtypeStruct((1, 4096, 4, 128), jnp.bfloat16)) == "xla"  # these tests run on a CPU


def test_attention_over_a_cache_is_attention_over_as_many_keys():
    """Grouped heads, one query and many, a mask of its own for every query."""
    q, k, v, _ = inputs()
    for queries in (1, T):
        mask = jax.random.bernoulli(jax.random.key(1), 0.5, (B, queries, T)).at[..., 0].set(True)
        cached = room.cached_attention(q[:, :queries], k.swapaxes(1, 2), v.swapaxes(1, 2), mask)
        np.testing.assert_allclose(cached, room.attention(q[:, :queries], k, v, mask=mask), atol=2e-6)
