"""The jitted programs on the tiny model: what a step computes, on how many devices, and how often it is traced."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhfv_jax import losses, optim, sharding, steps, trees
from rlhfv_jax.models import vlm
from rlhfv_jax.structs import IGNORE, PairBatch, SftBatch

B, T, GAMMA = 8, 24, 5.0
PREFERENCE = losses.Preference(beta=0.5)


def pairs(seed=0, length=T) -> PairBatch:
    """Random images and answers; the first eight tokens are a prompt with the image."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 90, (B, 2, length)).astype(np.int32)
    tokens[:, :, :8] = tokens[:1, :1, :8]
    tokens[:, :, 2:6] = 97
    lengths = rng.integers(16, T + 1, (B, 2)).astype(np.int32)
    index = np.arange(length - 1)
    scored = (index >= 7) & (index < lengths[..., None] - 1)
    labels = np.where(scored, tokens[:, :, 1:], IGNORE).astype(np.int32)
    corrected = scored & (rng.random(scored.shape) < 0.3)
    return PairBatch(
        image=rng.integers(0, 256, (B, 32, 32, 3)).astype(np.uint8),
        tokens=tokens,
        labels=labels,
        weights=(scored + (GAMMA - 1) * corrected).astype(np.float32),
        lengths=lengths,
        ref_logps=np.zeros((B, 2, length - 1), np.float32),
        row=np.arange(B, dtype=np.int32),
        valid=np.ones(B, bool),
    )


def setup(config, params, mesh, trainable="full", lr=1e-3, loss=None):
    model = vlm.Vlm(config)
    schedule = optim.schedule(lr, 20, 0.0)
    updater = steps.Updater(optim.adamw(schedule), schedule, optim.trainable_mask(params, trainable))
    placed = jax.device_put(jax.tree.map(jnp.array, params), sharding.shardings(params, mesh))
    state = updater.init(placed)
    loss = loss or steps.preference_loss(model, PREFERENCE)
    return model, state, updater.step(loss, mesh, state)


def follow(mesh, model, state, step, count=3):
    """Metrics of `count` updates on one batch, with the reference taken from the initial parameters; the last state."""
    batch = sharding.put(pairs(), mesh)
    batch = batch._replace(ref_logps=steps.reference(model)(state.params, batch))
    history = []
    for _ in range(count):
        state, metrics = step(state, batch)
        history.append(jax.device_get(metrics))
    return history, jax.device_get(state)


@pytest.fixture(scope="module")
def program(tiny_config, tiny_params):
    """The compiled update on one device, and a function that makes its initial state; a second trace would raise."""
    mesh = sharding.make_mesh(fsdp=1)
    chex.clear_trace_counter()
    with jax.set_mesh(mesh):
        loss = chex.assert_max_traces(steps.preference_loss(vlm.Vlm(tiny_config), PREFERENCE), n=1)
        model, _, step = setup(tiny_config, tiny_params, mesh, loss=loss)
        yield mesh, model, lambda: setup(tiny_config, tiny_params, mesh)[1], step


@pytest.fixture(scope="module")
def single(program):
    mesh, model, initial, step = program
    return follow(mesh, model, initial(), step)


def test_the_first_loss_is_ln_2_and_overfitting_lowers_it(single):
    history, state = single
    assert history[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert abs(history[0]["rewards/chosen"]) < 1e-5 and abs(history[0]["rewards/rejected"]) < 1e-5
    assert history[0]["loss"] > history[1]["loss"] > history[2]["loss"]
    assert int(state.step) == 3


@pytest.mark.parametrize(
    "axes",
    [
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        pytest.param({"data": 4, "fsdp": 2}, marks=pytest.mark.slow),
        pytest.param({"data": 2, "fsdp": 4}, marks=pytest.mark.slow),
        pytest.param({"fsdp": 8}, marks=pytest.mark.slow),
        {"data": 2, "fsdp": 2, "tensor": 2},
    ],
)
def test_one_device_and_eight_agree_to_rounding(single, tiny_config, tiny_params, axes):
    mesh = sharding.make_mesh(**axes)
    with jax.set_mesh(mesh):
        history, state = follow(mesh, *setup(tiny_config, tiny_params, mesh))
    for ours, theirs in zip(history, single[0], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=2e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    # Adam turns a rounding-sized gradient into a step of the learning rate's size: three steps of 1e-3 bound it.
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(single[1].params), strict=True):
        assert np.abs(a - b).max() < 3e-3
        assert np.abs(a - b).mean() < 2e-5


def test_a_step_is_traced_once_a_shape(program):
    mesh, _, initial, step = program
    state = initial()
    for seed in range(4):
        state, _ = step(state, sharding.put(pairs(seed), mesh))
    with pytest.raises(AssertionError, match="traced"):  # the guard itself can fail
        step(state, sharding.put(pairs(0, T + 8), mesh))


@pytest.fixture(scope="module")
def gradient(tiny_config):
    """Jitted (params, batch) -> loss and the gradient of every parameter."""
    loss = steps.preference_loss(vlm.Vlm(tiny_config), PREFERENCE)
    return jax.jit(jax.value_and_grad(lambda p, b: loss(p, b)[0]))


@pytest.mark.parametrize("name", optim.FROZEN)
def test_of_each_mask_trained_groups_have_gradients_and_frozen_ones_neither_gradients_nor_moments(
    gradient, tiny_params, name
):
    """The program differentiates the tree that `split` leaves: frozen leaves are not zero there, they are absent."""
    mask = optim.trainable_mask(tiny_params, name)
    trains = {path for path, keep in trees.paths(mask) if keep}
    assert {path for path, _ in trees.paths(trees.split(tiny_params, mask)[0])} == trains
    _, grads = gradient(tiny_params, pairs())
    unread = "tower/final_norm/A/"  # the tower's outputs are its queries, which are the other branch
    for path, leaf in trees.paths(trees.split(grads, mask)[0]):
        assert (np.abs(np.asarray(leaf)).max() > 0) != path.startswith(unread), path
    state = steps.Updater(optim.adamw(1e-3), lambda _: jnp.float32(0), mask).init(tiny_params)
    for moment in ("/mu/", "/nu/"):
        found = {path.partition(moment)[2] for path, _ in trees.paths(state.opt_state) if moment in path}
        assert found == trains


def test_longer_padding_changes_neither_loss_nor_gradients(gradient, tiny_params):
    short, room = pairs(), ((0, 0), (0, 0), (0, 8))
    longer = short._replace(
        tokens=np.pad(short.tokens, room, constant_values=99),
        labels=np.pad(short.labels, room, constant_values=IGNORE),
        weights=np.pad(short.weights, room),
        ref_logps=np.pad(short.ref_logps, room),
    )
    (a, grads_a), (b, grads_b) = gradient(tiny_params, short), gradient(tiny_params, longer)
    np.testing.assert_allclose(a, b, atol=1e-6)
    for x, y in zip(jax.tree.leaves(grads_a), jax.tree.leaves(grads_b), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_frozen_parameters_do_not_move_and_carry_no_optimizer_state(tiny_config, tiny_params):
    mesh = sharding.make_mesh(fsdp=8)
    with jax.set_mesh(mesh):
        _, state, step = setup(tiny_config, tiny_params, mesh, trainable="frozen_A")
        moments = [path for path, _ in trees.paths(state.opt_state) if "/mu/" in path]
        for _ in range(2):
            state, _ = step(state, sharding.put(pairs(), mesh))
    moved = {
        path
        for (path, after), (_, before) in zip(trees.paths(state.params), trees.paths(tiny_params), strict=True)
        if not np.array_equal(np.asarray(after), np.asarray(before))
    }
    frozen = {path for path, _ in trees.paths(tiny_params) if "/A/" in path or path.endswith("positions/A")}
    frozen |= {"tower/patch/kernel", "tower/patch/bias", "tower/class_token"}
    everything = {path for path, _ in trees.paths(tiny_params)}
    assert moved == everything - frozen
    assert {path.split("/mu/")[1] for path in moments} == everything - frozen


def test_the_state_is_donated(program):
    mesh, _, initial, step = program
    state = initial()
    step(state, sharding.put(pairs(), mesh))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_supervised_fine_tuning_learns_an_answer(tiny_config, tiny_params):
    p = pairs()
    batch = SftBatch(p.image, p.tokens, p.labels, (p.labels != IGNORE).astype(np.float32), p.lengths, p.row, p.valid)
    mesh = sharding.make_mesh(fsdp=1)
    with jax.set_mesh(mesh):
        model = vlm.Vlm(tiny_config)
        _, state, step = setup(tiny_config, tiny_params, mesh, lr=1e-2, loss=steps.sft_loss(model))
        values = []
        for _ in range(8):
            state, metrics = step(state, sharding.put(batch, mesh))
            values.append(float(metrics["loss"]))
    assert values[0] > 4 and values[-1] < 0.8 * values[0]


def uneven(task):
    """Eight rows of which two are padding, both in one part, and with very different numbers of scored targets."""
    p, short = pairs(), np.arange(T - 1) < np.array([23, 10] * 4)[:, None, None]
    p = p._replace(valid=np.arange(B) >= 2, weights=p.weights * short)
    if task == "ddpo":
        return p
    labels = np.where(p.weights > 0, p.labels, IGNORE).astype(np.int32)
    return SftBatch(p.image, p.tokens, labels, (labels != IGNORE).astype(np.float32), p.lengths, p.row, p.valid)


def head_alone(task) -> steps.LossFn:
    """A model of one matrix, which compiles at once: each token's next one from its own number."""

    def loss(params, batch):
        features = jnp.cos(jnp.outer(jnp.arange(100.0), jnp.arange(1.0, 9.0)))
        table = jax.nn.log_softmax(features @ params["llm"]["head"]["kernel"])
        logps = table[batch.tokens[..., :-1], jnp.maximum(batch.labels, 0)]
        if task == "sft":
            loss, metrics = losses.sft(logps, batch.weights, batch.valid)
        else:
            loss, metrics = losses.preference(logps, batch.ref_logps, batch.weights, batch.valid, PREFERENCE)
        return loss, metrics | {"tokens": steps.attended(batch)}

    return loss


@pytest.mark.parametrize(("task", "axes", "parts"), [("ddpo", {"fsdp": 1}, 4), ("sft", {"fsdp": 4, "tensor": 2}, 2)])
@pytest.mark.parametrize("model", ["head", pytest.param("muffin", marks=pytest.mark.slow)])
def test_accumulated_parts_are_one_large_batch(request, task, axes, parts, model):
    """Gradients and metrics, whatever the parts hold: means have to be weighed by what they are means over."""
    batch, mesh, loss = uneven(task), sharding.make_mesh(**axes), head_alone(task)
    params = {"llm": {"head": {"kernel": np.random.default_rng(0).normal(size=(8, 104)).astype(np.float32)}}}
    if model == "muffin":
        muffin, params = vlm.Vlm(request.getfixturevalue("tiny_config")), request.getfixturevalue("tiny_params")
        loss = steps.preference_loss(muffin, PREFERENCE) if task == "ddpo" else steps.sft_loss(muffin)
    frozen = jax.tree.map(lambda _: None, params)
    grads, metrics = jax.jit(lambda p, b: steps.gradient(loss, mesh)(p, frozen, b))(params, batch)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.shardings(params, mesh))
        cut = jax.jit(lambda p, b: steps.gradient(loss, mesh, parts)(p, frozen, b))
        summed, values = cut(placed, sharding.put(batch, mesh))
    assert set(values) == set(metrics)
    for name, value in metrics.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    for (path, a), (_, b) in zip(trees.paths(grads), trees.paths(summed), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * max(float(np.abs(a).max()), 1e-3), err_msg=path)
