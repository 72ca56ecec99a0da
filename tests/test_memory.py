"""Split weights are float32 weights bit for bit, stochastic rounding has no bias, and both survive a checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_steps import PREFERENCE, pairs

from rlhfv_jax import bits, checkpoint, memory, optim, sharding, steps, trees
from rlhfv_jax.models import vlm

STEPS, LR = 12, 1e-3


def updater(params, plan: str, trainable: str = "frozen_A") -> steps.Updater:
    schedule = optim.schedule(LR, STEPS, 0.2)
    return steps.Updater(optim.adamw(schedule), schedule, optim.trainable_mask(params, trainable), plan)


@jax.custom_vjp
def halved(x):
    """A float32 weight as its upper half, rounded as `split_float32` rounds; its gradient is that of the upper half."""
    return bits.split_float32(x)[0]


halved.defvjp(lambda x: (halved(x), None), lambda _, g: (g.astype(jnp.float32),))


def loss_of(config, plan: str, mask) -> steps.LossFn:
    loss = steps.preference_loss(vlm.Muffin(config, jnp.bfloat16), PREFERENCE)
    if plan != "fp32":
        return loss

    def of_masters(params, batch):
        trainable, frozen = trees.split(params, mask)
        return loss(trees.join(jax.tree.map(halved, trainable), frozen), batch)

    return of_masters


def follow(config, params, plan: str, mesh) -> tuple[list[dict], steps.TrainState, steps.Updater]:
    """Metrics of some steps, and the last state as a checkpoint holds it."""
    with jax.set_mesh(mesh):
        one = updater(params, plan)
        state = one.place(jax.device_put(jax.tree.map(jnp.array, params), sharding.shardings(params, mesh)), mesh)
        one.check(state, mesh)
        step, lines = one.step(loss_of(config, plan, one.mask), mesh, state), []
        for index in range(STEPS):
            state, metrics = step(state, sharding.put(pairs(index % 3), mesh))
            lines.append(jax.device_get(metrics))
        return lines, jax.device_get(one.to_checkpoint(state)), one


@pytest.fixture(scope="module")
def trajectories(tiny_config, tiny_params):
    mesh = sharding.make_mesh(fsdp=2)
    return {plan: follow(tiny_config, tiny_params, plan, mesh) for plan in memory.NAMES}


def test_a_split_float32_is_whole_again_bit_for_bit():
    """Every upper half with the lower halves that matter: ties, their neighbors, denormals, infinities, NaNs."""
    lows = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    patterns = (np.arange(2**16, dtype=np.uint32)[:, None] << 16) | lows
    x = jnp.asarray(patterns.view(np.float32))
    high, low = jax.jit(bits.split_float32)(x)
    assert np.array_equal(np.asarray(jax.jit(bits.join_float32)(high, low)).view(np.uint32), patterns)
    finite = np.isfinite(np.asarray(x)) & (patterns & 0xFFFF != 0x8000)  # all but ties round as a cast does
    rounded = np.asarray(x.astype(jnp.bfloat16))
    assert np.array_equal(np.asarray(high).view(np.uint16)[finite], rounded.view(np.uint16)[finite])


def test_split_weights_train_as_float32_masters_bit_for_bit(trajectories):
    """Against float32 masters from which the same bfloat16 weights are cast at every step: metrics, weights, moments."""
    (whole, masters, _), (split, state, _) = trajectories["fp32"], trajectories["split"]
    assert whole == split
    assert trees.diff(masters, state) == [] and trees.digest(masters) == trees.digest(state)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state.params))


def test_stochastic_rounding_has_no_bias_and_gives_one_of_the_two_neighbors():
    """Over places and over steps, against the binomial's deviation; neighboring places and steps do not correlate."""
    n = 200_000
    for value in (1.0009765625, 3.3e-7, 0.7001, 1e-20):
        x = jnp.full(n, value, jnp.float32)
        down = np.float32((np.float32(value).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32))
        up = np.float32(
            (np.float32(value).view(np.uint32) + np.uint32(0x10000) & np.uint32(0xFFFF0000)).view(np.float32)
        )
        share = (np.float64(np.float32(value)) - down) / (np.float64(up) - down)
        draws = [np.asarray(bits.stochastic_bfloat16(x, jnp.uint32(seed)), np.float32) for seed in (0, 1)]
        tall = jax.vmap(lambda s: bits.stochastic_bfloat16(jnp.full(1, value, jnp.float32), s))
        draws.append(np.asarray(tall(jnp.arange(n, dtype=jnp.uint32)), np.float32)[:, 0])
        rounded_up = []
        for drawn in draws:
            assert set(np.unique(drawn)) <= {down, up}
            rounded_up.append((drawn == up).astype(np.float64))
            deviation = np.sqrt(max(share * (1 - share), 1e-12) / n)
            assert abs(rounded_up[-1].mean() - share) < 5 * deviation, value
        if 0.05 < share < 0.95:
            for a, b in ((rounded_up[0], rounded_up[1]), *((one[1:], one[:-1]) for one in rounded_up)):
                assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(n)


def test_bfloat16_moments_follow_float32_ones(trajectories, tiny_params):
    """Losses, and the whole way from the first weights to the last: a few percent of its length."""
    (whole, masters, _), (short, state, _) = trajectories["fp32"], trajectories["split_sr"]
    for a, b in zip(whole, short, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=5e-3)
    assert any(a["loss"] != b["loss"] for a, b in zip(whole, short, strict=True))
    way, other = (jax.tree.map(lambda a, b: a - b, x.params, tiny_params) for x in (masters, state))
    difference = jax.tree.map(lambda a, b: a - b, way, other)
    assert optim.global_norm(difference) < 0.05 * optim.global_norm(way)


def test_second_moments_rounded_to_nearest_would_drift_where_stochastic_ones_do_not():
    """A steady gradient after a burst: v has to fall by 0.1 % a step, less than half a bfloat16's spacing."""
    exact, nearest, drawn = np.ones(4096), jnp.ones(4096, jnp.bfloat16), jnp.ones(4096, jnp.bfloat16)
    step = jax.jit(lambda v, s: bits.stochastic_bfloat16(0.999 * v.astype(jnp.float32), s))
    for index in range(300):
        exact = 0.999 * exact
        nearest = (0.999 * nearest.astype(jnp.float32)).astype(jnp.bfloat16)
        drawn = step(drawn, jnp.uint32(index))
    assert float(nearest[0]) > 0.99 and exact[0] < 0.75
    assert np.asarray(drawn, np.float32).mean() == pytest.approx(exact[0], rel=0.01)


@pytest.mark.parametrize(("plan", "per_parameter"), [("fp32", 12), ("split", 12), ("split_sr", 8)])
def test_bytes_a_parameter_are_as_stated(tiny_config, tiny_params, plan, per_parameter):
    """By shapes, of the 13B model; and by the arguments and aliases of a compiled step of the small one."""
    model = vlm.Muffin(vlm.muffin_13b())
    shapes = jax.eval_shape(lambda key: vlm.init(model, key), jax.random.key(0))
    state = jax.eval_shape(updater(shapes, plan, "full").init, shapes)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert size == pytest.approx(per_parameter * trees.count(shapes), rel=1e-6)
    mesh = sharding.make_mesh(fsdp=1)
    with jax.set_mesh(mesh):
        one = updater(tiny_params, plan, "full")
        state = jax.eval_shape(one.init, tiny_params)
        batch = jax.eval_shape(lambda: pairs())
        step = one.step(loss_of(tiny_config, "split", one.mask), mesh, state)
        found = step.lower(state, batch).compile().memory_analysis()
    assert found.alias_size_in_bytes == pytest.approx(per_parameter * trees.count(tiny_params), rel=0.01)
    rest = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch))
    assert found.argument_size_in_bytes - found.alias_size_in_bytes <= rest + 1024


@pytest.mark.parametrize("plan", memory.NAMES)
def test_checkpoints_hold_float32_weights_and_give_back_the_state_on_another_mesh(trajectories, tmp_path, plan):
    _, state, one = trajectories[plan]
    with checkpoint.Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(state, {})
    stored = checkpoint.stored_params(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(stored)} == {np.dtype(np.float32)}
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    abstract = jax.eval_shape(one.stored_init, jax.eval_shape(lambda: state.params))
    found = one.from_checkpoint(checkpoint.restore(tmp_path, abstract, mesh))
    one.check(found, mesh)
    assert trees.diff(jax.eval_shape(one.init, jax.eval_shape(lambda: state.params)), found) == []
    assert trees.digest(one.to_checkpoint(found)) == trees.digest(state)
    narrow = {leaf.dtype.name for leaf in jax.tree.leaves(found.params)}
    assert narrow == ({"float32"} if plan == "fp32" else {"float32", "bfloat16"})  # what is frozen stays whole
