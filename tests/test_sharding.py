"""The sharding table is total, and what cannot lie on the mesh is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rlhfv_jax import optim, sharding, steps, trees
from rlhfv_jax.errors import UserError
from rlhfv_jax.models import vlm


def test_every_large_array_of_the_13b_state_is_cut_eight_ways_and_no_layer_axis_is():
    model, mesh = vlm.Muffin(vlm.muffin_13b()), sharding.make_mesh(fsdp=8)
    params = jax.eval_shape(lambda key: vlm.init(model, key), jax.random.key(0))
    schedule = optim.schedule(1e-6, 10, 0.0)
    updater = steps.Updater(optim.adamw(schedule), schedule, optim.trainable_mask(params, "full"))
    state = jax.eval_shape(updater.init, params)
    for path, leaf in trees.paths(state):
        spec = sharding.spec(path, leaf.shape, mesh)
        if np.prod(leaf.shape) > 2e6:
            assert "fsdp" in spec, path
        if "layers/" in path and len(spec):
            assert spec[0] is None, path


def test_what_the_table_cannot_place_is_refused_by_path_and_shape():
    mesh = sharding.make_mesh(fsdp=8)
    with pytest.raises(UserError, match=r"No sharding rule matches the parameter llm/new/kernel of shape \(8, 8\)"):
        sharding.spec("llm/new/kernel", (8, 8), mesh)
    with pytest.raises(UserError, match=r"llm/layers/mlp/up/kernel: axis 1 of shape \(2, 12, 16\)"):
        sharding.spec("llm/layers/mlp/up/kernel", (2, 12, 16), mesh)
    with pytest.raises(UserError, match="names 3 axes"):
        sharding.spec("llm/layers/mlp/up/kernel", (16, 16), mesh)


@pytest.mark.parametrize("sizes", [{"data": 3, "fsdp": 3}, {"fsdp": 0}, {"data": -1, "fsdp": -1}, {"tensor": 9}])
def test_impossible_meshes_are_refused(sizes):
    with pytest.raises(UserError, match=r"mesh\."):
        sharding.make_mesh(**sizes)


def test_a_batch_that_cannot_be_cut_is_refused():
    with pytest.raises(UserError, match=r"optim\.batch_size=12 is not divisible by mesh\.data\*mesh\.fsdp=8"):
        sharding.check_batch_size(12, sharding.make_mesh())
    with pytest.raises(UserError, match=r"batch_size=8 is not divisible by .*=8 times gradient_accumulation=2"):
        sharding.check_batch_size(8, sharding.make_mesh(), 2)


def test_put_and_constrain_place_the_batch_axis():
    mesh = sharding.make_mesh(data=2, fsdp=4)
    array = np.arange(32.0).reshape(16, 2)
    placed = sharding.put({"x": array}, mesh)["x"]
    assert np.array_equal(placed, array) and placed.sharding.spec == P(("data", "fsdp"))
    x = jnp.asarray(array)
    assert sharding.constrain(x, sharding.BATCH) is x  # no mesh
    with jax.set_mesh(mesh):
        out = jax.jit(lambda x: sharding.constrain(x, sharding.BATCH))(x)
    assert {shard.data.shape for shard in out.addressable_shards} == {(2, 2)}


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"tensor": 2}])
@pytest.mark.parametrize("trainable", ["full", "frozen_A"])
def test_the_table_places_the_whole_small_state_as_it_is_on_the_mesh(tiny_params, axes, trainable):
    """Every entry gets a place, moments that of their parameter; scalars lie everywhere."""
    mesh = sharding.make_mesh(**axes)
    mask = optim.trainable_mask(tiny_params, trainable)
    updater = steps.Updater(optim.adamw(1e-3), lambda step: 1e-3, mask)
    state = jax.eval_shape(updater.init, tiny_params)
    places = dict(trees.paths(sharding.shardings(state, mesh)))
    assert set(places) == {path for path, _ in trees.paths(state)}
    of_params = {p.removeprefix("params/"): s.spec for p, s in places.items() if p.startswith("params/")}
    moments = [path for path in places if "/mu/" in path or "/nu/" in path]
    assert len(moments) == 2 * sum(jax.tree.leaves(mask))
    for path in moments:
        assert places[path].spec == of_params[path.partition("u/")[2]], path
    assert all(places[path].spec == P() for path, leaf in trees.paths(state) if not leaf.shape)
    assert any(len(spec) for spec in of_params.values())


def test_placed_parameters_hold_a_share_each(tiny_params):
    """What the table says is what the devices hold: all but norms, biases and position tables in eighths."""
    mesh = sharding.make_mesh(fsdp=8)
    placed = jax.device_put(tiny_params, sharding.shardings(tiny_params, mesh))
    for (path, before), (_, after) in zip(trees.paths(tiny_params), trees.paths(placed), strict=True):
        np.testing.assert_array_equal(after, before)
        ways = 8 if path.endswith(("kernel", "embedding")) else 1
        assert after.addressable_shards[0].data.size * ways == before.size, path


def test_more_axes_than_the_rule_names_are_refused():
    """A kernel with a new axis must not be cut along the wrong one."""
    with pytest.raises(UserError, match=r"llm/head/kernel.*\(8, 8, 8\)"):
        sharding.spec("llm/head/kernel", (8, 8, 8), sharding.make_mesh(fsdp=8))


@pytest.mark.parametrize("sizes", [{"data": 3}, {"tensor": 3}, {"fsdp": 5, "data": -1}])
def test_a_mesh_that_would_leave_devices_idle_is_refused(sizes):
    """-1 takes what is left; what it cannot take evenly is not dropped without a word."""
    with pytest.raises(UserError, match=r"mesh\..*8"):
        sharding.make_mesh(**sizes)


def test_a_smaller_mesh_that_is_asked_for_in_full_is_given():
    assert sharding.make_mesh(data=1, fsdp=2, tensor=2).size == 4


def test_the_pairs_rows_need_no_communication():
    """[B, 2, T] reshaped to [2B, T] on eight devices compiles to a program without collectives."""
    mesh = sharding.make_mesh(fsdp=8)
    x = sharding.put(np.zeros((8, 2, 4), np.float32), mesh)
    with jax.set_mesh(mesh):
        text = jax.jit(lambda x: sharding.constrain(x.reshape(16, 4), sharding.BATCH)).lower(x).compile().as_text()
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute", "all-reduce"))
