"""The optimizer against PyTorch's and the schedule against Hugging Face's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhfv_jax import optim, trees
from rlhfv_jax.errors import UserError


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_with_clipping_warm_up_and_cosine_is_pytorchs(decay):
    import torch
    from transformers import get_cosine_schedule_with_warmup

    rng = np.random.default_rng(0)
    start = rng.normal(size=(5, 7)).astype(np.float32)
    theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=decay)
    scheduler = get_cosine_schedule_with_warmup(optimizer, 3, 20)
    ours = {"kernel": jnp.asarray(start)}
    tx = optim.adamw(optim.schedule(1e-2, 20, 0.15), weight_decay=decay)
    state = tx.init(ours)
    update = jax.jit(tx.update)
    for step in range(20):
        gradient = (rng.normal(size=(5, 7)) * (0.01 if step % 2 else 10)).astype(np.float32)  # below and above the clip
        theirs.grad = torch.from_numpy(gradient.copy())
        torch.nn.utils.clip_grad_norm_([theirs], 1.0)
        optimizer.step()
        scheduler.step()
        updates, state = update({"kernel": jnp.asarray(gradient)}, state, ours)
        ours = optax.apply_updates(ours, updates)
        np.testing.assert_allclose(ours["kernel"], theirs.detach().numpy(), atol=2e-6)


def test_norms_and_biases_do_not_decay():
    params = {"kernel": jnp.ones(3), "scale": jnp.ones(3), "bias": jnp.ones(3), "embedding": jnp.ones(3)}
    tx = optim.adamw(0.1, weight_decay=0.5)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert {name for name, value in updates.items() if np.any(np.asarray(value))} == {"kernel", "embedding"}


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("full", lambda path: False),
        ("frozen_A", lambda path: "/A/" in path or path.endswith(("positions/A", "class_token")) or "patch/" in path),
        ("frozen", lambda path: path.startswith("tower/")),
        ("lm_only", lambda path: not path.startswith("llm/")),
    ],
)
def test_each_name_freezes_exactly_its_paths(tiny_params, name, frozen):
    mask = dict(trees.paths(optim.trainable_mask(tiny_params, name)))
    assert mask == {path: not frozen(path) for path in mask}


def test_an_unknown_name_is_refused(tiny_params):
    with pytest.raises(UserError, match="frozen_B"):
        optim.trainable_mask(tiny_params, "frozen_B")


def test_muon_turns_every_blocks_matrix_and_leaves_embeddings_to_adam(tiny_params):
    updates, _ = jax.jit(
        lambda p: (tx := optim.muon(lambda _: 1e-2, b2=0.99, eps=1e-8, clip=1e9)).update(
            jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), p), tx.init(p), p
        )
    )(tiny_params)
    matrix = np.asarray(updates["llm"]["layers"]["mlp"]["up"]["kernel"])[0]
    values = np.linalg.svd(matrix, compute_uv=False)
    # Five Newton-Schulz steps of optax bring the singular values of a gradient of rank two near each other.
    assert values[1] > 0.5 * values[0]
    embedding = np.abs(np.asarray(updates["llm"]["embed"]["embedding"]))
    assert embedding.max() < 4e-3 and embedding.std() < 0.1 * embedding.mean()  # Adam's first step: a sign times a size
