"""LoRA: the model with adapters against the merged model, the base, and their checkpoints."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_steps import PREFERENCE, pairs

from rlhfv_jax import (
    adapters,
    checkpoint,
    experiment,
    lora,
    optim,
    prepare,
    settings,
    sharding,
    steps,
    streaming,
    trees,
)
from rlhfv_jax.conversion import job
from rlhfv_jax.errors import UserError
from rlhfv_jax.lora import Lora
from rlhfv_jax.models import vlm
from rlhfv_jax.structs import TrainState

EVERYTHING = Lora(rank=3, alpha=6.0, targets="")  # every kernel: tower, projector, blocks, head


def noisy(params, wanted: Lora, seed: int = 1):
    """The parameters with adapters whose B is not zero, so that they change something."""
    fresh = lora.init(params, wanted, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    filled = trees.map_with_path(
        lambda path, x: jnp.asarray(0.2 * rng.normal(size=x.shape), jnp.float32) if path.endswith("lora_b") else x,
        fresh,
    )
    return lora.attach(params, filled)


@pytest.fixture(scope="module")
def forward(tiny_config):
    return steps.reference(vlm.Vlm(tiny_config))


@pytest.fixture(scope="module")
def adapted(tiny_params):
    return noisy(tiny_params, EVERYTHING)


@pytest.fixture(scope="module")
def base_log_probs(forward, tiny_params):
    return np.asarray(forward(tiny_params, pairs()))


def test_every_kernel_of_every_module_takes_an_adapter(adapted, tiny_params):
    paths = {path for path, _ in trees.paths(adapted)}
    kernels = {path.removesuffix("kernel") for path, _ in trees.paths(tiny_params) if path.endswith("/kernel")}
    assert paths - {path for path, _ in trees.paths(tiny_params)} == {
        f"{root}{name}" for root in kernels for name in lora.NAMES
    }


def test_merged_and_unmerged_give_the_same_log_probs(forward, adapted, base_log_probs):
    unmerged = np.asarray(forward(lora.scaled(adapted, EVERYTHING.scale), pairs()))
    merged = np.asarray(forward(lora.merge(adapted, EVERYTHING.scale), pairs()))
    np.testing.assert_allclose(unmerged, merged, atol=2e-4)
    assert np.abs(unmerged - base_log_probs).max() > 0.1  # the adapters matter


def test_each_adapter_alone_is_its_matrix_product(tiny_params):
    """W + (α/r) A B in NumPy einsums of the axes' own names."""
    params = noisy(tiny_params, EVERYTHING)
    merged = dict(trees.paths(lora.merge(params, 2.0)))
    flat = {path: np.asarray(leaf, np.float64) for path, leaf in trees.paths(params)}
    for root, axes in (
        ("llm/layers/attention/q", "ldr,lrnh->ldnh"),
        ("llm/layers/attention/o", "lnhr,lrd->lnhd"),
        ("tower/layers/mlp/up/B", "ldr,lrf->ldf"),
        ("tower/layers/attention/o/A", "lnhr,lrd->lnhd"),
        ("projector", "er,rd->ed"),
        ("llm/head", "dr,rv->dv"),
    ):
        product = np.einsum(axes, flat[f"{root}/lora_a"], flat[f"{root}/lora_b"])
        np.testing.assert_allclose(merged[f"{root}/kernel"], flat[f"{root}/kernel"] + 2 * product, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 3])
def test_fresh_adapters_and_adapters_of_rank_0_are_the_base_bit_for_bit(forward, tiny_params, base_log_probs, rank):
    fresh = lora.init(tiny_params, Lora(rank, 6.0, "llm/"), jax.random.key(0))
    np.testing.assert_array_equal(forward(lora.attach(tiny_params, fresh), pairs()), base_log_probs)


def test_targets_choose_kernels_by_path_and_must_match_some(tiny_params):
    fresh = lora.init(tiny_params, Lora(2, 1.0, r"llm/.*/(q|v)/"), jax.random.key(0))
    roots = {path.rpartition("/")[0] for path, _ in trees.paths(fresh)}
    assert roots == {"llm/layers/attention/q", "llm/layers/attention/v"}
    with pytest.raises(UserError, match=r"'attn' matches no kernel; there are .*llm/layers/attention/q/kernel"):
        lora.init(tiny_params, Lora(2, 1.0, "attn"), jax.random.key(0))


def test_a_target_that_is_frozen_is_refused(adapted):
    with pytest.raises(UserError, match=r"which optim\.trainable=frozen freezes"):
        optim.trainable_mask(adapted, "frozen")


@pytest.fixture(scope="module")
def trained(tiny_config, tiny_params):
    """Two updates of adapters on every matrix of the language model, on eight devices; the states before and after."""
    wanted = Lora(4, 8.0, r"llm/layers/(attention/[qkvo]|mlp/(gate|up|down))/")
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    base = jax.tree.map(jnp.array, tiny_params)  # the step donates what it is given
    params = lora.attach(base, lora.init(base, wanted, jax.random.key(0)))
    updater = steps.Updater(optim.adamw(1e-2), lambda _: jnp.float32(1e-2), optim.trainable_mask(params, "frozen_A"))
    with jax.set_mesh(mesh):
        where = sharding.shardings(jax.eval_shape(updater.init, params), mesh)
        state = jax.jit(updater.init, out_shardings=where)(params)
        updater.check(state, mesh)
        before = jax.device_get(state)
        loss = lora.at_scale(steps.preference_loss(vlm.Vlm(tiny_config), PREFERENCE), wanted.scale)
        step = updater.step(loss, mesh, state)
        for _ in range(2):
            state, metrics = step(state, sharding.put(pairs(), mesh))
    return wanted, before, jax.device_get(state), metrics


def test_only_adapters_train_and_all_of_them_do(trained):
    _, before, after, _ = trained
    old = dict(trees.paths(before.params))
    moved = {path for path, leaf in trees.paths(after.params) if not np.array_equal(leaf, old[path])}
    assert moved == {path for path in old if path.endswith(lora.NAMES)}


def test_optimizer_state_is_two_floats_for_each_adapter_weight(trained, tiny_config):
    """Computed by hand from the sizes: rank × (inputs + outputs) a matrix, two moments of four bytes, two counters."""
    _, before, _, _ = trained
    c = tiny_config.llm
    kv = c.kv_heads * c.head_size
    matrices = [(c.width, c.width), (c.width, kv), (c.width, kv), (c.width, c.width)]
    matrices += [(c.width, c.ffn), (c.width, c.ffn), (c.ffn, c.width)]
    weights = c.layers * sum(4 * (inputs + outputs) for inputs, outputs in matrices)
    found = sum(leaf.nbytes for path, leaf in trees.paths(before.opt_state) if "/mu/" in path or "/nu/" in path)
    assert found == 2 * 4 * weights
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(before.opt_state)) - found <= 16


def test_adapters_lie_on_the_mesh_as_their_kernels(tiny_params):
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    fresh = lora.init(tiny_params, EVERYTHING, jax.random.key(0))
    specs = {path: tuple(where.spec) for path, where in trees.paths(sharding.shardings(fresh, mesh))}
    assert specs["llm/layers/attention/q/lora_a"] == (None, "fsdp", None)
    assert specs["llm/layers/attention/q/lora_b"] == (None, None, "tensor", None)
    assert specs["llm/layers/attention/o/lora_a"] == (None, "tensor", None, None)
    assert specs["llm/layers/attention/o/lora_b"] == (None, None, "fsdp")
    assert specs["llm/head/lora_b"] == (None, "tensor")


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path, tiny_config, tiny_params, adapted) -> Path:
    """A base and a LoRA run's checkpoint on it."""
    meta = {"model": dataclasses.asdict(tiny_config), "template": "muffin"}
    none = {"count": np.int32(0)}
    with checkpoint.Checkpoints(tmp_path / "base/checkpoints") as base:
        base.save(TrainState(np.int32(0), jax.device_get(tiny_params), none), meta)
    meta |= {"lora": adapters.record(tmp_path / "base", EVERYTHING)}
    with checkpoint.Checkpoints(tmp_path / "run/checkpoints") as run:
        run.save(TrainState(np.int32(5), jax.device_get(lora.adapters_of(adapted)), none), meta)
    return tmp_path


def test_a_lora_checkpoint_holds_adapters_and_a_pointer_to_its_base(stored, adapted):
    names = set(streaming.StoredArrays(stored / "run"))
    assert names == {path for path, _ in trees.paths(adapted) if path.endswith(lora.NAMES)}
    record = checkpoint.read_meta(stored / "run")["lora"]
    assert record["base"] == str(stored / "base/checkpoints/0")
    assert record["base_digest"] == adapters.digest(stored / "base")


def test_a_lora_checkpoint_restores_and_streams_as_the_merged_model(stored, adapted, tiny_params):
    merged = dict(trees.paths(lora.merge(adapted, EVERYTHING.scale)))
    restored = adapters.restore_params(stored / "run", tiny_params, sharding.make_mesh(fsdp=8), jnp.float32)
    for path, leaf in trees.paths(restored):
        np.testing.assert_allclose(leaf, merged[path], atol=1e-6, err_msg=path)
    arrays = adapters.open_arrays(stored / "run")
    assert set(arrays) == set(merged)
    for path, array in arrays.items():
        np.testing.assert_allclose(np.stack(list(array.entries())), merged[path], atol=1e-6, err_msg=path)


def test_a_base_that_changed_or_went_away_is_refused(stored, tiny_params):
    run, base = stored / "run", stored / "base"
    base.rename(stored / "elsewhere")
    with pytest.raises(UserError, match=r"needs its base .*base/checkpoints/0, which is not there"):
        adapters.open_arrays(run)
    other = jax.tree.map(lambda x: np.asarray(x) * 1.001, tiny_params)
    with checkpoint.Checkpoints(base / "checkpoints") as checkpoints:
        checkpoints.save(TrainState(np.int32(0), other, {"count": np.int32(0)}), {})
    with pytest.raises(UserError, match="has changed"):
        adapters.open_arrays(run)


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_lora_run_starts_at_ln_2_continues_exactly_and_exports_merged(tmp_path, small_run, dtype):
    """SFT base, LoRA on it stopped and continued, then `convert --direction=to_torch` of the LoRA run."""
    experiment.train(small_run({"task": "sft", "optim.steps": 2}), tmp_path / "base")
    change = {"init_from": str(tmp_path / "base"), "lora.rank": 4, "optim.trainable": "lm_only", "optim.lr": 1e-2}
    change |= {"save_every": 2, "optim.steps": 4, "dtype": dtype}
    config = small_run(change)
    whole = experiment.train(config, tmp_path / "whole")
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-6 if dtype == "float32" else 5e-3)
    assert lines[-1]["loss"] < lines[0]["loss"]
    frozen = {str(leaf.dtype) for _, leaf in trees.paths(lora.base_of(whole.params))}
    assert frozen == {dtype}  # the base takes the memory of its computation
    branch = experiment.train(config, tmp_path / "branch", resume=str(tmp_path / "whole/checkpoints/2"))
    assert trees.digest(branch.params) == trees.digest(whole.params)
    manifest = json.loads((tmp_path / "whole/manifest.json").read_text())
    assert manifest["parameters"]["trainable"] == trees.count(lora.adapters_of(whole.params))
    s, mesh = settings.from_dict(config), sharding.make_mesh(fsdp=1)
    model = prepare.build_model(s, prepare.load_tokenizer(s))
    report = job.run_to_torch(job.Options(src=str(tmp_path / "whole"), dst=str(tmp_path / "torch"), verify=True))
    assert report["verified"] == report["tensors"]
    back = job.run_to_orbax(
        job.Options(src=str(tmp_path / "torch"), dst=str(tmp_path / "back"), tower_heads=4, verify=True)
    )
    assert back["tensors"] == report["tensors"]
    base = adapters.restore_params(tmp_path / "base", vlm.abstract_params(model.config), mesh, jnp.float32)
    params = lora.attach(base, lora.adapters_of(whole.params))
    merged = dict(trees.paths(lora.merge(jax.device_get(params), 16.0 / 4)))
    found = streaming.StoredArrays(tmp_path / "back")
    np.testing.assert_allclose(found["llm/layers/mlp/up/kernel"].read(), merged["llm/layers/mlp/up/kernel"], atol=1e-6)
