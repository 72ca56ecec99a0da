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
    with pytest.raises(UserError, match="too few axes"):
        sharding.spec("llm/layers/mlp/up/kernel", (16, 16), mesh)


@pytest.mark.parametrize("sizes", [{"data": 3, "fsdp": 3}, {"fsdp": 0}, {"data": -1, "fsdp": -1}, {"tensor": 9}])
def test_impossible_meshes_are_refused(sizes):
    with pytest.raises(UserError, match=r"mesh\."):
        sharding.make_mesh(**sizes)


def test_a_batch_that_cannot_be_cut_is_refused():
    with pytest.raises(UserError, match=r"optim\.batch_size=12 is not divisible by mesh\.data\*mesh\.fsdp=8"):
        sharding.check_batch_size(12, sharding.make_mesh())


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
