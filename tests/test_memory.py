"""Split weights are float32 weights bit for bit, stochastic rounding has no bias, and both survive a checkpoint."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_steps import PREFERENCE, pairs

from rlhfv_jax import bits, checkpoint, cli, memory, optim, settings, sharding, steps, trees
from rlhfv_jax.errors import UserError
from rlhfv_jax.models import muffin, vlm

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
    loss = steps.preference_loss(vlm.Vlm(config, jnp.bfloat16), PREFERENCE)
    if plan != "fp32":
        return loss

    def of_masters(params, batch):
        trainable, frozen = trees.split(params, mask)
        return loss(trees.join(jax.tree.map(halved, trainable), frozen), batch)

    return of_masters


class Followed(NamedTuple):
    lines: list[dict]  # metrics of every step
    state: steps.TrainState  # the last one, as a checkpoint holds it
    updater: steps.Updater
    memory: Any  # of the compiled step


def follow(config, params, plan: str) -> Followed:
    mesh = sharding.make_mesh(fsdp=1)
    with jax.set_mesh(mesh):
        one = updater(params, plan)
        state = one.place(jax.device_put(jax.tree.map(jnp.array, params), sharding.shardings(params, mesh)), mesh)
        one.check(state, mesh)
        batches = [sharding.put(pairs(seed), mesh) for seed in range(3)]
        step = one.step(loss_of(config, plan, one.mask), mesh, state).lower(state, batches[0]).compile()
        lines = []
        for index in range(STEPS):
            state, metrics = step(state, batches[index % 3])
            lines.append(jax.device_get(metrics))
        return Followed(lines, one.to_checkpoint(state), one, step.memory_analysis())


@pytest.fixture(scope="module")
def trajectories(tiny_config, tiny_params):
    return {plan: follow(tiny_config, tiny_params, plan) for plan in memory.NAMES}


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


@pytest.mark.slow
def test_split_weights_train_as_float32_masters_bit_for_bit(trajectories):
    """Against float32 masters that are rounded to the same bfloat16 at every step: metrics, weights, moments."""
    masters, split = trajectories["fp32"], trajectories["split"]
    assert masters.lines == split.lines
    assert trees.diff(masters.state, split.state) == []
    assert trees.digest(masters.state) == trees.digest(split.state)


def test_stochastic_rounding_has_no_bias_and_gives_one_of_the_two_neighbors():
    """Over places and over steps, against the binomial's deviation; neighboring places and steps do not correlate."""
    n = 200_000
    for value in (1.0009765625, 3.3e-7, 0.7001, 1e-20):
        x = jnp.full(n, value, jnp.float32)
        pattern = np.float32(value).view(np.uint32) & np.uint32(0xFFFF0000)
        down, up = pattern.view(np.float32), (pattern + np.uint32(0x10000)).view(np.float32)
        share = (np.float64(np.float32(value)) - down) / (np.float64(up) - down)
        draws = [np.asarray(bits.stochastic_bfloat16(x, jnp.uint32(seed)), np.float32) for seed in (0, 1)]
        of_seeds = jax.vmap(bits.stochastic_bfloat16)(x[:, None], jnp.arange(n, dtype=jnp.uint32))
        draws.append(np.asarray(of_seeds, np.float32)[:, 0])
        rounded_up = []
        for drawn in draws:
            assert set(np.unique(drawn)) <= {down, up}
            rounded_up.append((drawn == up).astype(np.float64))
            deviation = np.sqrt(max(share * (1 - share), 1e-12) / n)
            assert abs(rounded_up[-1].mean() - share) < 5 * deviation, value
        if 0.05 < share < 0.95:
            for a, b in ((rounded_up[0], rounded_up[1]), *((one[1:], one[:-1]) for one in rounded_up)):
                assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(n)


@pytest.mark.long
def test_bfloat16_moments_follow_float32_ones(trajectories, tiny_params):
    """Losses, and the whole way from the first weights to the last: a few percent of its length."""
    masters, short = trajectories["fp32"], trajectories["split_sr"]
    for a, b in zip(masters.lines, short.lines, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=5e-3)
    assert any(a["loss"] != b["loss"] for a, b in zip(masters.lines, short.lines, strict=True))
    way, other = (
        jax.tree.map(lambda a, b: a - b, jax.device_get(x.state.params), tiny_params) for x in (masters, short)
    )
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


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "per_parameter"), [("fp32", 12), ("split", 12), ("split_sr", 8)])
def test_bytes_a_parameter_are_as_stated(trajectories, tiny_params, plan, per_parameter):
    """By shapes, of the 13B model; and by arguments and aliases of the small one's step (frozen weights: 4)."""
    model = vlm.Vlm(muffin.muffin_13b())
    shapes = jax.eval_shape(lambda key: vlm.init(model, key), jax.random.key(0))
    state = jax.eval_shape(updater(shapes, plan, "full").init, shapes)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert size == pytest.approx(per_parameter * trees.count(shapes), rel=1e-6)
    one = trajectories[plan]
    trainable, frozen = trees.split(tiny_params, one.updater.mask)
    expected = per_parameter * trees.count(trainable) + 4 * trees.count(frozen)
    assert one.memory.alias_size_in_bytes == pytest.approx(expected, rel=0.02)
    batch = sum(leaf.nbytes for leaf in pairs())
    assert one.memory.argument_size_in_bytes - one.memory.alias_size_in_bytes == pytest.approx(batch, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("plan", memory.NAMES)
def test_checkpoints_hold_float32_weights_and_give_back_the_state_on_another_mesh(trajectories, tmp_path, plan):
    state, one = trajectories[plan].state, trajectories[plan].updater
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "float32"}, "config.dtype=bfloat16"),
        ({"optim.name": "muon"}, "config.optim.name=adamw"),
        ({"lora.rank": 4, "init_from": "somewhere"}, "config.lora.rank=0"),
    ],
)
def test_what_a_split_plan_does_not_go_with_is_refused(changes, words):
    config = cli._load(f"{cli.config_folder() / 'ddpo.py'}:mini")
    config.update_from_flattened_dict({"optim.memory": "split", "dtype": "bfloat16"} | changes)
    with pytest.raises(UserError, match=f"optim.memory=split needs {words}"):
        settings.from_dict(config.to_dict())
