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


def test_clipping_takes_the_norm_over_all_parameters_together():
    """Two groups at once, against PyTorch; then the norm that the metrics report is the one before clipping."""
    import torch

    rng = np.random.default_rng(0)
    start = {"a": {"kernel": rng.normal(size=(3, 4))}, "b": {"kernel": rng.normal(size=(2, 2, 2))}}
    ours = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), start)
    theirs = [torch.nn.Parameter(torch.tensor(np.asarray(leaf))) for leaf in jax.tree.leaves(ours)]
    optimizer, tx = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.0, eps=1e-2), optim.adamw(1e-2, eps=1e-2)
    state, update = tx.init(ours), jax.jit(tx.update)  # a large eps, so that the size of a gradient matters
    for scale in (1.0, 0.05, 3.0):
        grads = jax.tree.map(lambda x, s=scale: jnp.asarray(s * rng.normal(size=x.shape), jnp.float32), ours)
        for parameter, gradient in zip(theirs, jax.tree.leaves(grads), strict=True):
            parameter.grad = torch.tensor(np.asarray(gradient))
        norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        np.testing.assert_allclose(optim.global_norm(grads), float(norm), rtol=1e-6)
        optimizer.step()
        updates, state = update(grads, state, ours)
        ours = optax.apply_updates(ours, updates)
        for parameter, leaf in zip(theirs, jax.tree.leaves(ours), strict=True):
            np.testing.assert_allclose(leaf, parameter.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize(("total", "warmup"), [(20, 0.0), (20, 0.15), (7, 0.1), (100, 0.07), (30, 1 / 3)])
def test_the_schedule_is_hugging_faces_at_every_step(total, warmup):
    """Warm-up steps rounded up, as TrainingArguments(warmup_ratio) does."""
    import math

    import torch
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, math.ceil(warmup * total), total)
    schedule = optim.schedule(1.0, total, warmup)
    for step in range(total):
        assert float(schedule(step)) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-6), step
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
def test_a_run_of_one_step_learns(warmup):
    """Hugging Face's warm-up would spend the only step at a rate of zero."""
    assert float(optim.schedule(1.0, 1, warmup)(0)) == 1.0


def test_frozen_parameters_have_no_moments_and_weigh_nothing_in_the_clipped_norm(tiny_params):
    """As many moments as trainable leaves; a gradient that is absent is not counted."""
    mask = optim.trainable_mask(tiny_params, "lm_only")
    trained, frozen = trees.split(tiny_params, mask)
    state = optim.adamw(1e-3).init(trained)
    moments = {path.partition("/mu/")[2] for path, _ in trees.paths(state) if "/mu/" in path}
    assert moments == {path for path, _ in trees.paths(tiny_params) if path.startswith("llm/")}
    together = trees.join(trained, frozen)
    assert jax.tree.structure(together) == jax.tree.structure(tiny_params)
    assert trees.digest(together) == trees.digest(tiny_params)
