"""The PyTorch reference's golden files on its own model and pairs: log-probs, gradients, and three AdamW updates."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import shared
from torch_weights import TINY_MUFFIN, muffin_entries, tiny_muffin, to_torch

from rlhfv_jax import losses, optim, steps, trees
from rlhfv_jax.models import vlm
from rlhfv_jax.structs import IGNORE, PairBatch

PAD = 32_000
PICKED = [0, 2, 3, 8]  # the pairs that the reference took gradients of
IM_END = 32_003  # pad_token_id -1 makes this row PyTorch's padding_idx: the reference never moves it
KEYS = ["beta0.5_gamma5.0_avg0", "beta0.1_gamma1.1_avg0", "beta0.5_gamma5.0_avg1"]


@cache
def golden():
    return np.load(shared("fixtures/ddpo.npz")), json.loads(shared("fixtures/ddpo.json").read_text())


def golden_pairs(gamma: str, picked: list[int] = PICKED) -> PairBatch:
    """The stored batch's rows `picked`, in the package's layout; reference B's log-probs."""
    arrays, _ = golden()
    suffix = "" if gamma == "5.0" else "_gamma1.1"
    attended = [arrays[f"batch_{side}_attention_mask"][picked] for side in ("win", "rej")]
    lengths = np.stack([mask.sum(1) for mask in attended], axis=1).astype(np.int32)
    longest = int(lengths.max())

    def both(name: str, first: int, fill: float) -> np.ndarray:
        parts = [arrays[name.format(side)][picked, first:longest] for side in ("win", "rej")]
        room = longest - first
        return np.stack([np.pad(x, ((0, 0), (0, room - x.shape[1])), constant_values=fill) for x in parts], axis=1)

    labels = both("batch_{}_labels", 1, IGNORE).astype(np.int32)
    weights = both("batch_{}_token_weight" + suffix, 0, 0)[..., : longest - 1]
    return PairBatch(
        image=np.ascontiguousarray(arrays["batch_images"][picked].transpose(0, 2, 3, 1)),
        tokens=both("batch_{}_input_ids", 0, PAD).astype(np.int32),
        labels=labels,
        weights=(weights * (labels != IGNORE)).astype(np.float32),
        lengths=lengths,
        ref_logps=both("batch_ref_{}_per_token_logp", 0, 0)[..., : longest - 1],
        row=np.array(picked, np.int32),
        valid=np.ones(len(picked), bool),
    )


@cache
def golden_gradient(average: bool):
    """Jitted (params, batch, beta) -> ((loss, metrics), gradient), without the row that the reference never moves.

    One program serves every β, which is why it is traced here.
    """

    def loss_fn(params, batch, beta):
        table = params["llm"]["embed"]["embedding"]
        still = jnp.arange(table.shape[0])[:, None] == IM_END
        table = jnp.where(still, jax.lax.stop_gradient(table), table)
        loss = steps.preference_loss(vlm.Vlm(TINY_MUFFIN), losses.Preference(beta, average))
        return loss({**params, "llm": {**params["llm"], "embed": {"embedding": table}}}, batch)

    return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))


def parts(key: str) -> tuple[float, str, bool]:
    """`beta0.5_gamma5.0_avg0` as beta, gamma's spelling, and whether scores are averages."""
    beta, gamma, average = key.split("_")
    return float(beta.removeprefix("beta")), gamma.removeprefix("gamma"), average == "avg1"


def torch_layout(tree) -> dict[str, np.ndarray]:
    return to_torch(tree, muffin_entries(TINY_MUFFIN), TINY_MUFFIN.llm.vocab_size)


def as_stored(tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
    """`NAME`, `NAME[row_ids]` or `NAME[0:n]`, as the golden files cut their arrays."""
    if not name.endswith("]"):
        return tensors[name]
    name, rows = name[:-1].split("[")
    return tensors[name][golden()[0]["row_ids"]] if rows == "row_ids" else tensors[name][: int(rows.split(":")[1])]


def test_log_probs_through_the_whole_model_are_the_references():
    """All ten pairs; reference A is this checkpoint, so its stored log-probs are the same numbers."""
    arrays, _ = golden()
    batch = golden_pairs("5.0", list(range(10)))
    found = np.asarray(steps.reference(vlm.Vlm(TINY_MUFFIN))(jax.device_put(tiny_muffin()), batch))
    for side, name in enumerate(("win", "rej")):
        policy = np.split(arrays["policy_per_token_logp"], 2)[side]
        stored = arrays[f"batch_ref_{name}_per_token_logp_A"]
        for row, (ours, labels) in enumerate(zip(found[:, side], batch.labels[:, side], strict=True)):
            scored = np.flatnonzero(labels != IGNORE)
            for theirs in (policy[row], stored[row]):
                np.testing.assert_allclose(ours[scored], theirs[scored], atol=1e-4, rtol=0)
            np.testing.assert_allclose(ours.sum(), theirs[scored].sum(), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("key", KEYS)
def test_gradients_through_the_whole_model_are_the_references(key):
    arrays, record = golden()
    beta, gamma, average = parts(key)
    (loss, _), grads = golden_gradient(average)(jax.device_put(tiny_muffin()), golden_pairs(gamma), beta)
    np.testing.assert_allclose(loss, arrays[f"grad_{key}/loss"], atol=1e-5 if average else 1e-3, rtol=0)
    found = torch_layout(grads)
    names = [name for name in arrays.files if name.startswith(f"grad_{key}/") and not name.endswith("/loss")]
    assert len(names) == 17
    for name in names:
        expected = arrays[name]
        ours = as_stored(found, name.split("/")[1])
        scale = np.abs(expected).max()
        np.testing.assert_allclose(ours, expected, atol=1e-3 * scale, rtol=0, err_msg=name)
    norms = record["grad_norms"][key]
    assert set(norms) == set(found)
    for name, norm in norms.items():
        ours = np.linalg.norm(found[name].astype(np.float64))
        assert ours == pytest.approx(norm, rel=1e-3, abs=1e-9) if norm else ours == 0, name


@cache
def golden_update(clip: float):
    optimizer = optim.adamw(1e-3, clip=clip)
    return optimizer.init, jax.jit(optimizer.update)


def follow(key: str, trainable: str, zero_lr: str, clip: float) -> tuple[list[float], list[float], dict]:
    """Losses before each of three updates and after the last, norms before clipping, parameters after 1 and 3.

    `trainable` as in the package; `zero_lr` names a group that has gradients, counts in the norm, and does not move.
    """
    beta, gamma, average = parts(key)
    params, batch = jax.device_put(tiny_muffin()), golden_pairs(gamma)
    mask, moves = (optim.trainable_mask(params, name) for name in (trainable, zero_lr))
    init, update = golden_update(clip)
    opt_state = init(trees.split(params, mask)[0])
    values, norms, after = [], [], {}
    for number in (1, 2, 3, 4):
        (loss, _), grads = golden_gradient(average)(params, batch, beta)
        trained, frozen = trees.split(params, mask)
        updates, opt_state = update(trees.split(grads, mask)[0], opt_state, trained)
        updates = jax.tree.map(
            lambda u, move: u if u is None or move else jnp.zeros_like(u), updates, moves, is_leaf=lambda u: u is None
        )
        params = trees.join(optax.apply_updates(trained, updates), frozen)
        values.append(float(loss))
        norms.append(float(optim.global_norm(grads)))
        after[number] = torch_layout(jax.device_get(params)) if number in (1, 3) else None
    return values, norms, after


VARIANTS = [  # name, trainable, zero learning rate, clip
    ("noclip", "frozen_A", "full", 1e9),  # without clipping, frozen is what a learning rate of zero is
    ("clip1", "full", "frozen_A", 1.0),
    ("clip1_no_zero_lr_groups", "full", "full", 1.0),
]


@pytest.mark.parametrize(
    ("key", "variant", "trainable", "zero_lr", "clip"),
    [(key, *variant) for key in KEYS for variant in VARIANTS if "avg0" in key or "groups" not in variant[0]],
)
def test_three_updates_are_the_references(key, variant, trainable, zero_lr, clip):
    """AdamW at 1e-3 without decay, with and without clipping and the group of zero learning rate.

    Parameters are held to 1e-4 where the first gradient is above 1e-5: below it Adam turns rounding noise into moves
    of the learning rate's size.
    """
    arrays, record = golden()
    values, norms, after = follow(key, trainable, zero_lr, clip)
    expected = record["steps"][f"{key}_{variant}"]
    np.testing.assert_allclose(values, expected["losses_before_each_step_and_after_last"], atol=1e-3, rtol=0)
    np.testing.assert_allclose(norms[:3], expected["grad_norm_before_clipping"], rtol=2e-2)
    np.testing.assert_allclose(norms[0], expected["grad_norm_before_clipping"][0], rtol=1e-3)
    if variant == "clip1" and key == KEYS[0]:  # Hugging Face's own Trainer took the same path
        trainer = record["steps"][f"real_Trainer_train_{key}"]
        np.testing.assert_allclose(values[:3], trainer["losses_before_each_step"], atol=1e-3, rtol=0)
    before = torch_layout(tiny_muffin())
    for number in (1, 3):
        prefix = f"step{number}_{variant}_{key}/"
        for name in [name.removeprefix(prefix) for name in arrays.files if name.startswith(prefix)]:
            clear = np.abs(arrays[f"grad_{key}/{name}"]) > 1e-5
            ours, theirs = as_stored(after[number], name), arrays[prefix + name]
            difference = np.abs(ours - theirs)
            assert not clear.any() or difference[clear].max() < 1e-4, name
            assert difference.max() <= 2e-3 * number, name
            assert np.array_equal(ours, as_stored(before, name)) == (".A." in name), name


def test_the_golden_files_hold_parameters_after_one_and_three_updates_with_and_without_clipping():
    """What the loop above finds to compare: six arrays each."""
    arrays, _ = golden()
    for number, variant in ((1, "noclip"), (3, "noclip"), (1, "clip1"), (3, "clip1")):
        prefix = f"step{number}_{variant}_{KEYS[0]}/"
        assert sum(name.startswith(prefix) for name in arrays.files) == 6
