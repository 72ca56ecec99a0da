"""The losses against the paper's equations in float64 NumPy, closed forms, PyTorch and golden files."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shared

from rlhfv_jax import losses
from rlhfv_jax.ops.logprobs import token_log_probs
from rlhfv_jax.structs import IGNORE

BETA, GAMMA = 0.5, 5.0


@partial(jax.jit, static_argnums=1)
def _run(case, preference):
    def loss_fn(logps):
        return losses.preference(**{**case, "logps": logps}, p=preference)

    return jax.value_and_grad(loss_fn, has_aux=True)(case["logps"])


def run(
    case: dict[str, np.ndarray], average: bool, beta: float = BETA, **options
) -> tuple[float, dict[str, float], np.ndarray]:
    """Loss, metrics and gradient with respect to the log-probs; compiled once for each shape."""
    (loss, metrics), gradient = jax.device_get(_run(case, losses.Preference(beta, average, **options)))
    return float(loss), {name: float(value) for name, value in metrics.items()}, gradient


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def random_case(seed: int, gamma: float = GAMMA, rows: int = 6, targets: int = 11) -> dict[str, np.ndarray]:
    """Log-probs, weights of 0, 1 and gamma, and a last row that is not valid and full of (finite) garbage."""
    rng = np.random.default_rng(seed)
    shape = (rows, 2, targets)
    logps = -rng.exponential(1.0, shape).astype(np.float32)
    ref = (logps + rng.normal(0, 0.3, shape)).astype(np.float32)
    weights = rng.choice([0.0, 1.0, gamma], shape, p=[0.4, 0.4, 0.2]).astype(np.float32)
    weights[..., 0] = 1.0  # every row has credit
    valid = np.ones(rows, bool)
    valid[-1] = False
    logps[-1], ref[-1], weights[-1] = 1e6, -1e6, 1e3
    return {"logps": logps, "ref_logps": ref, "weights": weights, "valid": valid}


def paper_scores(logps: np.ndarray, weights: np.ndarray, average: bool, gamma: float) -> np.ndarray:
    """Equation 5 token by token: the unchanged y_u, the corrected y_c, N = |y_u| + gamma |y_c|. float64."""
    scores = np.zeros(logps.shape[:-1])
    for row in np.ndindex(*scores.shape):
        unchanged = [float(p) for p, w in zip(logps[row], weights[row], strict=True) if w == 1]
        corrected = [float(p) for p, w in zip(logps[row], weights[row], strict=True) if w == np.float32(gamma) != 1]
        norm = len(unchanged) + float(np.float32(gamma)) * len(corrected)
        total = sum(unchanged) + float(np.float32(gamma)) * sum(corrected)
        scores[row] = total / norm if average and norm else total
    return scores


def paper_loss(case: dict[str, np.ndarray], average: bool, gamma: float = GAMMA, beta: float = BETA) -> dict:
    """Equation 3 and the metrics, over the valid rows alone, float64."""
    rows = case["valid"]
    logps, ref, weights = (case[name][rows].astype(np.float64) for name in ("logps", "ref_logps", "weights"))
    rewards = beta * (paper_scores(logps, weights, average, gamma) - paper_scores(ref, weights, average, gamma))
    margins = rewards[:, 0] - rewards[:, 1]
    found = {
        "loss": -np.log(sigmoid(margins)).mean(),
        "rewards/chosen": rewards[:, 0].mean(),
        "rewards/rejected": rewards[:, 1].mean(),
        "rewards/margins": margins.mean(),
        "rewards/accuracies": (margins > 0).mean(),
    }
    corrected = weights == np.float32(gamma) if gamma != 1 else np.zeros_like(weights, bool)
    for side, name in enumerate(("chosen", "rejected")):
        for part, mask in (("", weights > 0), ("/corrected", corrected), ("/unchanged", weights == 1)):
            found[f"logps/{name}{part}"] = (logps * mask)[:, side].sum(-1).mean()
            found[f"log_ratios/{name}{part}"] = ((logps - ref) * mask)[:, side].sum(-1).mean()
            share = weights / weights.sum(-1, keepdims=True) if average else weights
            found[f"rewards/{name}{part}"] = (beta * share * (logps - ref) * mask)[:, side].sum(-1).mean()
    for part in ("/corrected", "/unchanged"):
        found[f"rewards/margins{part}"] = found[f"rewards/chosen{part}"] - found[f"rewards/rejected{part}"]
    found["nll/chosen"] = np.mean([-p[w > 0].mean() for p, w in zip(logps[:, 0], weights[:, 0], strict=True)])
    return found


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("gamma", [5.0, 1.1, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_ddpo_is_equations_3_and_5(seed, gamma, average):
    case = random_case(seed, gamma)
    loss, metrics, _ = run(case, average)
    expected = paper_loss(case, average, gamma)
    assert set(metrics) == set(expected)
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-5)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_without_weighting_averaged_ddpo_is_dpo_on_mean_log_probs():
    case = random_case(2, gamma=1.0)
    mask = case["weights"][case["valid"]] > 0
    means = {
        name: (np.where(mask, case[name][case["valid"]], 0).astype(np.float64).sum(-1) / mask.sum(-1))
        for name in ("logps", "ref_logps")
    }
    logits = (means["logps"] - means["ref_logps"]) @ np.array([1.0, -1.0])
    expected = -np.log(sigmoid(BETA * logits)).mean()
    np.testing.assert_allclose(run(case, True)[0], expected, rtol=1e-6)


def test_without_weighting_or_averaging_ddpo_is_textbook_dpo():
    """Rafailov et al. 2023, equation 7, on whole-sequence log-probs, with PyTorch's logsigmoid."""
    import torch

    case = random_case(3, gamma=1.0)
    rows = case["valid"]
    policy, reference = (
        torch.from_numpy((case[name] * (case["weights"] > 0)).astype(np.float64)[rows]).sum(-1)
        for name in ("logps", "ref_logps")
    )
    ratio = (policy[:, 0] - policy[:, 1]) - (reference[:, 0] - reference[:, 1])
    expected = -torch.nn.functional.logsigmoid(BETA * ratio).mean()
    np.testing.assert_allclose(run(case, False)[0], float(expected), rtol=1e-6)


@pytest.mark.parametrize("average", [True, False])
def test_gradient_has_its_closed_form(average):
    """dL/d log p = -beta sigmoid(-margin) w/N / B, of the opposite sign for the rejected answer; float64."""
    case = random_case(4)
    _, _, found = run(case, average)
    rows = case["valid"]
    weights = case["weights"].astype(np.float64)
    share = weights / weights.sum(-1, keepdims=True) if average else weights
    margins = BETA * ((share * (case["logps"].astype(np.float64) - case["ref_logps"])).sum(-1) @ np.array([1.0, -1.0]))
    expected = -BETA * sigmoid(-margins[:, None, None]) * share * np.array([1.0, -1.0])[None, :, None] / rows.sum()
    expected[~rows] = 0
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-8)


def test_gradient_agrees_with_float64_finite_differences():
    case = random_case(5)
    _, _, found = run(case, True)
    rng = np.random.default_rng(0)
    exact = {name: value.astype(np.float64) if value.dtype != bool else value for name, value in case.items()}
    for _ in range(12):
        index = (rng.integers(5), rng.integers(2), rng.integers(11))
        up, down = ({**exact, "logps": exact["logps"].copy()} for _ in range(2))
        up["logps"][index] += 1e-4
        down["logps"][index] -= 1e-4
        slope = (paper_loss(up, True)["loss"] - paper_loss(down, True)["loss"]) / 2e-4
        np.testing.assert_allclose(found[index], slope, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("average", [True, False])
def test_a_policy_equal_to_its_reference_has_loss_ln_2_and_zero_rewards_exactly(average):
    case = random_case(6)
    case["ref_logps"] = case["logps"]
    loss, metrics, _ = run(case, average)
    assert loss == np.float32(np.log(2.0))
    assert all(metrics[f"rewards/{name}"] == 0 for name in ("chosen", "rejected", "margins", "accuracies"))


@pytest.mark.parametrize("average", [True, False])
def test_padding_rows_count_in_nothing(average):
    """Whatever finite numbers they hold: loss, metrics and gradient are those of the batch without them."""
    case = random_case(7)
    real = {name: value[case["valid"]] for name, value in case.items()}

    _, expected, gradient = run(real, average)
    _, metrics, with_padding = run(case, average)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(with_padding[:-1], gradient, rtol=1e-6)
    assert not np.any(with_padding[-1])


def test_a_batch_without_valid_rows_has_loss_zero_not_nan():
    case = random_case(8)
    case["valid"] = np.zeros_like(case["valid"])
    loss, metrics, gradient = run(case, True)
    assert loss == 0
    assert all(np.isfinite(value) for value in metrics.values())
    assert not np.any(gradient)


@pytest.mark.parametrize("average", [True, False])
def test_rows_without_credit_score_zero_and_give_finite_gradients(average):
    case = random_case(9)
    case["weights"][0] = 0  # neither answer has credit
    case["weights"][1, 1] = 0  # the rejected answer alone has none
    scores = losses.sequence_score(jnp.asarray(case["logps"]), jnp.asarray(case["weights"]), average)
    assert not np.any(scores[0])
    assert float(scores[1, 1]) == 0
    assert float(scores[1, 0]) < 0
    _, _, found = run(case, average)
    assert np.all(np.isfinite(found))
    assert not np.any(found[0])
    assert not np.any(found[1, 1])
    assert np.any(found[1, 0])


def test_a_huge_margin_neither_overflows_nor_loses_its_gradient():
    """-log sigmoid of -2000 is 2000, not infinity; a long answer at gamma 5 without averaging gets there."""
    logps = np.array([[[-5000.0], [0.0]]], np.float32)
    case = {"logps": logps, "ref_logps": np.zeros_like(logps), "weights": np.full_like(logps, 0.8)}
    loss, _, gradient = run({**case, "valid": np.array([True])}, False)
    np.testing.assert_allclose(loss, 2000, rtol=1e-6)
    np.testing.assert_allclose(gradient[0, :, 0], [-0.4, 0.4], rtol=1e-6)


def test_sft_is_pytorchs_cross_entropy_with_ignore_index():
    """From logits through token_log_probs; two rows an image; the last image is not valid, PyTorch does not see it."""
    import torch

    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4, 2, 7, 13)).astype(np.float32)
    labels = rng.integers(0, 13, (4, 2, 7)).astype(np.int32)
    labels[rng.random((4, 2, 7)) < 0.4] = IGNORE
    valid = np.array([True, True, True, False])
    logps = token_log_probs(jnp.asarray(logits), jnp.eye(13), jnp.asarray(labels), 13)
    loss, metrics = losses.sft(logps, jnp.asarray(labels != IGNORE, jnp.float32), jnp.asarray(valid))
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits[valid].reshape(-1, 13)),
        torch.from_numpy(labels[valid].reshape(-1).astype(np.int64)),
        ignore_index=IGNORE,
    )
    np.testing.assert_allclose(float(loss), float(expected), rtol=1e-6)
    assert float(metrics["scored_tokens"]) == (labels[valid] != IGNORE).sum()


def test_sft_without_a_scored_token_is_zero_with_finite_gradient():
    zeros, valid = jnp.zeros((2, 1, 3)), jnp.ones(2, bool)
    loss, gradient = jax.value_and_grad(lambda x: losses.sft(x, zeros, valid)[0])(zeros - 3)
    assert float(loss) == 0
    assert not np.any(gradient)


def test_token_log_probs_are_the_references():
    """fixtures/logps.npz: random logits enter as hidden states under an identity head; odd masks, an empty row."""
    golden = np.load(shared("fixtures/logps.npz"))
    logits, labels = golden["synthetic_logits"][:, :-1], golden["synthetic_labels"][:, 1:].astype(np.int32)
    vocab = logits.shape[-1]
    found = np.asarray(token_log_probs(jnp.asarray(logits), jnp.eye(vocab), jnp.asarray(labels), vocab))
    targets = labels != IGNORE  # elsewhere the reference gathers token 0, we return 0
    np.testing.assert_allclose(found[targets], golden["synthetic_per_token_logps"][targets], atol=1e-4, rtol=0)
    assert not np.any(found[~targets])
    np.testing.assert_allclose(found.sum(-1), golden["synthetic_sum_logps"], atol=1e-3, rtol=1e-5)
    averages = losses.sequence_score(jnp.asarray(found), jnp.asarray(targets, jnp.float32), True)
    expected = np.nan_to_num(golden["synthetic_average_logps"])  # 0/0 in the reference for a row without targets
    assert np.any(~targets.any(-1))
    np.testing.assert_allclose(averages, expected, atol=1e-4)


def test_padding_columns_of_the_head_take_no_probability_and_get_no_gradient():
    rng = np.random.default_rng(1)
    hidden, head = rng.normal(size=(3, 5)).astype(np.float32), rng.normal(size=(5, 16)).astype(np.float32)
    head[:, 11:] = 1e3  # whatever the padding columns hold
    every = jnp.asarray(np.broadcast_to(hidden[:, None], (3, 11, 5)))
    labels = jnp.asarray(np.tile(np.arange(11, dtype=np.int32), (3, 1)))
    total = np.exp(np.asarray(token_log_probs(every, jnp.asarray(head), labels, 11), np.float64)).sum(-1)
    np.testing.assert_allclose(total, 1, rtol=1e-5)
    gradient = jax.grad(lambda head: token_log_probs(every, head, labels, 11).sum())(jnp.asarray(head))
    assert np.all(np.isfinite(gradient))
    assert not np.any(gradient[:, 11:])


def golden_combos() -> list[str]:
    return [
        f"beta{beta}_gamma{gamma}_avg{average}_ref{ref}"
        for beta, gamma in (("0.5", "5.0"), ("0.1", "1.1"))
        for average in (0, 1)
        for ref in "AB"
    ]


def golden_batch(golden, gamma: str, ref: str) -> dict[str, np.ndarray]:
    """The ten pairs of ddpo.npz as [10, 2, 261] arrays; rows of the rejected answers are two targets shorter."""
    suffix = "" if ref == "B" else "_A"
    weight = "" if gamma == "5.0" else "_gamma1.1"
    length = golden["policy_per_token_logp"].shape[1]

    def pair(win: np.ndarray, rej: np.ndarray) -> np.ndarray:
        return np.stack([np.pad(x, ((0, 0), (0, length - x.shape[1]))) for x in (win, rej)], axis=1)

    sides = ("win", "rej")
    targets = [golden[f"batch_{side}_labels"][:, 1:] != IGNORE for side in sides]  # stored weights are not yet masked
    weights = [golden[f"batch_{side}_token_weight{weight}"] for side in sides]
    return {
        "logps": pair(*np.split(golden["policy_per_token_logp"], 2)),
        "ref_logps": pair(*(golden[f"batch_ref_{side}_per_token_logp{suffix}"] for side in sides)),
        "weights": pair(*(w * t for w, t in zip(weights, targets, strict=True))),
        "valid": np.ones(10, bool),
    }


@pytest.mark.parametrize("combo", golden_combos())
def test_ddpo_is_the_references(combo):
    golden = np.load(shared("fixtures/ddpo.npz"))
    beta, gamma, average, ref = (
        part.removeprefix(prefix)
        for part, prefix in zip(combo.split("_"), ("beta", "gamma", "avg", "ref"), strict=True)
    )
    case = golden_batch(golden, gamma, ref)
    averaged = average == "1"
    score = {"atol": 1e-3, "rtol": 1e-5}
    for name, prefix in (("logps", "policy"), ("ref_logps", "ref")):
        scores = losses.sequence_score(jnp.asarray(case[name]), jnp.asarray(case["weights"]), averaged)
        np.testing.assert_allclose(scores[:, 0], golden[f"{combo}/{prefix}_win"], **score)
        np.testing.assert_allclose(scores[:, 1], golden[f"{combo}/{prefix}_rej"], **score)
    loss, metrics, _ = run(case, averaged, float(beta))
    tolerance = 1e-5 if averaged else 1e-3
    np.testing.assert_allclose(float(loss), golden[f"{combo}/total_loss"], atol=tolerance, rtol=0)
    for side in ("chosen", "rejected"):
        rewards = golden[f"{combo}/{side}_rewards"]
        np.testing.assert_allclose(metrics[f"rewards/{side}"], rewards.mean(), atol=tolerance, rtol=1e-5)
    for i in range(10):  # pair by pair, as batches of one valid row
        valid = np.arange(10) == i
        one, _, _ = run({**case, "valid": valid}, averaged, float(beta))
        np.testing.assert_allclose(one, golden[f"{combo}/losses"][i], atol=tolerance, rtol=0)


@pytest.mark.parametrize("average", [0, 1])
def test_dpo_without_token_weights_is_the_references(average):
    golden = np.load(shared("fixtures/ddpo.npz"))
    case = golden_batch(golden, "5.0", "B")
    case["weights"] = (case["weights"] > 0).astype(np.float32)
    loss, _, _ = run(case, bool(average), 0.1)
    expected = golden[f"unweighted_beta0.1_avg{average}_refB/total_loss"]
    np.testing.assert_allclose(float(loss), expected, atol=1e-5 if average else 1e-3, rtol=0)


@pytest.mark.parametrize("key", ["beta0.5_gamma5.0_avg0_refB", "beta0.1_gamma1.1_avg0_refB"])
def test_logged_rewards_and_accuracies_are_the_references(key):
    golden = np.load(shared("fixtures/ddpo.npz"))
    combos = json.loads(shared("fixtures/ddpo.json").read_text())["combos"]
    logged = next(combo for combo in combos if combo["key"] == key)["logged"]
    beta, gamma = (key.split("_")[i].removeprefix(name) for i, name in enumerate(("beta", "gamma")))
    _, metrics, _ = run(golden_batch(golden, gamma, "B"), False, float(beta))
    for name in ("chosen", "rejected", "margins", "accuracies"):
        expected = logged[f"rewards_train/{name}"]
        np.testing.assert_allclose(metrics[f"rewards/{name}"], expected, atol=1e-3, rtol=1e-5, err_msg=name)
