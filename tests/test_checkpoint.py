"""Checkpoints come back bit for bit, onto any mesh, or not at all."""

import os
import resource
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhfv_jax import checkpoint, optim, sharding, steps, trees
from rlhfv_jax.errors import UserError

pytestmark = [  # Orbax drops its readers where a file is damaged
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


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


def test_a_state_written_from_eight_devices_returns_on_one(saved, tmp_path):
    """Moments of the optimizer too, which here are not zero."""
    rng = np.random.default_rng(0)
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    state = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), saved[1])._replace(step=jnp.int32(4))
    with checkpoint.Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(jax.device_put(state, sharding.shardings(state, mesh)), {})
    found = checkpoint.restore(tmp_path, jax.eval_shape(lambda: state), sharding.make_mesh(fsdp=1))
    assert trees.digest(found) == trees.digest(state)
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(found))


def test_an_optimizer_state_of_other_trainable_parameters_is_refused(saved):
    """A run that froze another part has other moments: an error that names one, not a fresh start of them."""
    folder, state = saved
    mask = optim.trainable_mask(state.params, "lm_only")
    fewer = optim.adamw(1e-3).init(trees.split(state.params, mask)[0])
    abstract = jax.eval_shape(lambda: state._replace(opt_state=fewer))
    with pytest.raises(UserError, match=r"opt_state/.*/mu/(projector|tower)/\S+: unexpected"):
        checkpoint.restore(folder, abstract, sharding.make_mesh(fsdp=1))


def test_what_an_interrupted_save_left_is_neither_restored_nor_in_the_way(saved, tmp_path):
    """Beside the last whole checkpoint; the same step can then be saved."""
    folder, state = saved
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    half = run / "checkpoints" / "7.orbax-checkpoint-tmp"
    shutil.copytree(run / "checkpoints" / "5", half)
    shutil.rmtree(half / "opt_state")
    (run / "checkpoints" / "9").mkdir()  # a step's folder without its parameters
    assert checkpoint.find(run).name == "5"
    (run / "checkpoints" / "9").rmdir()
    with checkpoint.Checkpoints(run / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 5
        checkpoints.save(state._replace(step=jnp.int32(7)), {})
    assert checkpoint.find(run).name == "7"
    found = checkpoint.restore(run, jax.eval_shape(lambda: state), sharding.make_mesh(fsdp=1))
    assert trees.digest(found.params) == trees.digest(state.params)


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("item", ["params", "opt_state"])
@pytest.mark.parametrize("damage", ["truncated data", "no data", "truncated index", "truncated record", "no item"])
def test_a_damaged_checkpoint_is_refused_by_name(saved, tmp_path, item, damage):
    folder, state = saved
    shutil.copytree(folder, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "5"
    part = step / item
    victim = {"index": part / "manifest.ocdbt", "record": part / "_METADATA", "data": largest_file(part), "item": part}[
        damage.split()[1]
    ]
    if damage == "no item":
        (part / "_METADATA").unlink()
        shutil.rmtree(part)
    elif damage.startswith("no"):
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    with pytest.raises(UserError, match=f"There is no checkpoint at|checkpoints/{step.name} is damaged or incomplete"):
        checkpoint.restore(step, jax.eval_shape(lambda: state), sharding.make_mesh(fsdp=1))


@pytest.mark.parametrize("item", ["params", "opt_state", "checksums"])
@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_bit_is_never_restored(saved, tmp_path, item, place):
    """Compressed data are still data after most flips; only a checksum of the arrays tells."""
    folder, state = saved
    shutil.copytree(folder, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "5"
    victim = largest_file(step / item)
    content = bytearray(victim.read_bytes())
    content[int(place * len(content))] ^= 1 << 3
    victim.write_bytes(content)
    with pytest.raises(UserError, match="checkpoints/5 is damaged"):
        checkpoint.restore(step, jax.eval_shape(lambda: state), sharding.make_mesh(fsdp=1))
    assert checkpoint.read_meta(folder) == {"note": 5}


def test_a_damaged_record_of_a_run_is_refused_by_name(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "5"
    (step / "meta" / "metadata").write_text('{"note": ')
    with pytest.raises(UserError, match="checkpoints/5 is damaged or incomplete"):
        checkpoint.read_meta(step)


def test_a_save_that_would_be_dropped_is_an_error(saved, tmp_path):
    """Orbax declines a step before its latest one without a word; a run must not lose its state that way."""
    folder, state = saved
    shutil.copytree(folder, tmp_path / "run")
    with (
        checkpoint.Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints,
        pytest.raises(UserError, match="step 4"),
    ):
        checkpoints.save(state._replace(step=jnp.int32(4)), {})


@contextmanager
def without_rights():
    """Takes root's rights from the process, which would write into a read-only directory."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_read_only_directory_is_one_sentence_and_damages_nothing_older(saved):
    folder, state = saved
    with tempfile.TemporaryDirectory() as room:  # pytest's own directories are closed to other users
        run = Path(room) / "run"
        shutil.copytree(folder, run)
        for path in (Path(room), run, run / "checkpoints"):
            path.chmod(0o555)
        with (
            without_rights(),
            pytest.raises(UserError, match=r"could not be written in .*checkpoints; is the disk full, or read-only"),
            checkpoint.Checkpoints(run / "checkpoints") as checkpoints,
        ):
            checkpoints.save(state._replace(step=jnp.int32(9)), {})
        assert checkpoint.find(run).name == "5"
        found = checkpoint.restore(run, jax.eval_shape(lambda: state), sharding.make_mesh(fsdp=1))
        assert trees.digest(found) == trees.digest(state)
        for path in (run / "checkpoints", run, Path(room)):
            path.chmod(0o755)


def test_a_save_that_cannot_be_written_is_one_sentence_and_damages_nothing_older(saved, tmp_path):
    """The kernel refuses files beyond a size, as it refuses all of them on a full disk."""
    folder, state = saved
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with (
            pytest.raises(UserError, match=r"could not be written in .*checkpoints; is the disk full"),
            checkpoint.Checkpoints(run / "checkpoints") as checkpoints,
        ):
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
            checkpoints.save(state._replace(step=jnp.int32(9)), {})

    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.find(run).name == "5"
    found = checkpoint.restore(run, jax.eval_shape(lambda: state), sharding.make_mesh(fsdp=1))
    assert trees.digest(found) == trees.digest(state)
