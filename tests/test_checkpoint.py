"""Checkpoints come back bit for bit, onto any mesh, or not at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhfv_jax import checkpoint, optim, sharding, steps, trees
from rlhfv_jax.errors import UserError


@pytest.fixture(scope="module")
def saved(tiny_params, tmp_path_factory):
    """A run's folder with checkpoints of steps 3 and 5, written from one device, and the last state."""
    folder = tmp_path_factory.mktemp("run")
    schedule = optim.schedule(1e-3, 10, 0.0)
    updater = steps.Updater(optim.adamw(schedule), schedule, optim.trainable_mask(tiny_params, "full"))
    state = updater.init(jax.tree.map(jnp.array, tiny_params))
    with checkpoint.Checkpoints(folder / "checkpoints", keep=2) as checkpoints:
        for step in (3, 5):
            params = jax.tree.map(lambda x, s=step: x + s / 7, state.params)
            state = state._replace(step=jnp.int32(step), params=params)
            checkpoints.save(state, {"note": step})
        assert checkpoints.latest() == 5
    return folder, state


def test_a_state_returns_bit_for_bit_on_another_mesh(saved):
    folder, state = saved
    mesh = sharding.make_mesh(fsdp=8)
    found = checkpoint.restore(folder, jax.eval_shape(lambda: state), mesh)
    assert trees.diff(state, found) == [] and int(found.step) == 5
    assert trees.digest(found) == trees.digest(state)
    assert len(found.params["llm"]["embed"]["embedding"].sharding.device_set) == 8


def test_parameters_alone_are_found_by_run_folder_or_step(saved):
    folder, state = saved
    mesh = sharding.make_mesh(fsdp=1)
    abstract = jax.eval_shape(lambda: state.params)
    for path in (folder, folder / "checkpoints", folder / "checkpoints" / "5"):
        assert trees.digest(checkpoint.restore_params(path, abstract, mesh)) == trees.digest(state.params)
    third = checkpoint.restore_params(folder / "checkpoints" / "3", abstract, mesh)
    assert trees.digest(third) != trees.digest(state.params)
    assert checkpoint.read_meta(folder) == {"note": 5}


def change(params, kind):
    llm = dict(params["llm"])
    norm = llm.pop("final_norm")["scale"]
    changed = {"missing": None, "shape": jnp.zeros(7), "dtype": norm.astype(jnp.bfloat16), "extra": norm}[kind]
    if changed is not None:
        llm["final_norm"] = {"scale": changed}
    if kind == "extra":
        llm["layers"] = {**llm["layers"], "second_norm": {"scale": norm}}
    return {**params, "llm": llm}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "llm/final_norm/scale: unexpected"),
        ("shape", r"llm/final_norm/scale: expected float32\[7\], found float32\[32\]"),
        ("dtype", r"llm/final_norm/scale: expected bfloat16\[32\], found float32\[32\]"),
        ("extra", "second_norm/scale: missing"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(saved, kind, words):
    folder, state = saved
    abstract = jax.eval_shape(lambda: change(state.params, kind))
    with pytest.raises(UserError, match=words):
        checkpoint.restore_params(folder, abstract, sharding.make_mesh(fsdp=1))


def test_what_is_no_checkpoint_is_not_taken_for_one(saved, tmp_path):
    (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp-0" / "params").mkdir(parents=True)
    assert not checkpoint.exists(tmp_path)
    with pytest.raises(UserError, match="There is no checkpoint at"):
        checkpoint.find(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.find(tmp_path / "nowhere")


def test_only_the_newest_are_kept(tmp_path, tiny_params):
    schedule = optim.schedule(1e-3, 10, 0.0)
    updater = steps.Updater(optim.adamw(schedule), schedule, optim.trainable_mask(tiny_params, "lm_only"))
    state = updater.init(tiny_params)
    with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(state._replace(step=np.int32(step)), {})
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdecimal()) == ["2", "3"]
