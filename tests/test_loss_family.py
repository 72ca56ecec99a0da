"""Every member of the preference family against float64 NumPy and, where it has the parts, PyTorch's autograd."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from test_losses import BETA, random_case, run, sigmoid

from rlhfv_jax import losses

MEMBERS = [
    {"loss": loss, "label_smoothing": smoothing, "reference_free": free, "nll": nll}
    for (loss, smoothing), (free, nll) in itertools.product(
        itertools.product(losses.LOSSES, (0.0, 0.2)), ((False, 0.0), (True, 0.0), (False, 0.7))
    )
]


def numpy_loss(case, average, beta, loss, label_smoothing, reference_free, nll):
    """Pair by pair, from the published definitions; float64."""
    values = []
    for pair in np.flatnonzero(case["valid"]):
        logps, ref, weights = (case[name][pair].astype(np.float64) for name in ("logps", "ref_logps", "weights"))
        ratios = logps if reference_free else logps - ref
        scores = [(w * r).sum() / (w.sum() if average else 1) for w, r in zip(weights, ratios, strict=True)]
        h = scores[0] - scores[1]
        member = {
            "sigmoid": lambda h: -np.log(sigmoid(beta * h)),
            "ipo": lambda h: (h - 1 / (2 * beta)) ** 2,
            "hinge": lambda h: max(0.0, 1 - beta * h),
        }[loss]
        value = (1 - label_smoothing) * member(h) + label_smoothing * member(-h)
        values.append(value - nll * logps[0][weights[0] > 0].mean())
    return np.mean(values)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: "-".join(str(value) for value in m.values()))
def test_each_loss_is_its_float64_definition_with_token_weights(member, average):
    """Weights 0, 1 and 5; the gradient by central differences of the same definition."""
    case = random_case(11, rows=4, targets=7)
    loss, _, gradient = run(case, average, **member)
    np.testing.assert_allclose(loss, numpy_loss(case, average, BETA, **member), rtol=2e-5)
    rng = np.random.default_rng(1)
    for _ in range(6):
        index = (rng.integers(3), rng.integers(2), rng.integers(7))
        sides = []
        for step in (1e-5, -1e-5):
            moved = {**case, "logps": case["logps"].astype(np.float64)}
            moved["logps"][index] += step
            sides.append(numpy_loss(moved, average, BETA, **member))
        slope = (sides[0] - sides[1]) / 2e-5
        np.testing.assert_allclose(gradient[index], slope, rtol=1e-3, atol=1e-5)


def torch_loss(torch, logps, case, average, loss, label_smoothing):
    """The same family from torch.nn.functional's own losses."""
    rows, functional = case["valid"], torch.nn.functional
    ref, weights = (torch.from_numpy(case[name][rows].astype(np.float64)) for name in ("ref_logps", "weights"))
    share = weights / weights.sum(-1, keepdim=True) if average else weights
    ratios = (share * (logps - ref)).sum(-1)
    h = ratios[:, 0] - ratios[:, 1]
    if loss == "sigmoid":  # cDPO is binary cross-entropy against 1 - ε
        return functional.binary_cross_entropy_with_logits(BETA * h, torch.full_like(h, 1 - label_smoothing))
    if loss == "ipo":
        member = lambda sign: functional.mse_loss(sign * h, torch.full_like(h, 1 / (2 * BETA)))  # noqa: E731
    else:  # margin ranking: max(0, -y (a - b) + 1)
        member = lambda sign: functional.margin_ranking_loss(  # noqa: E731
            BETA * h, torch.zeros_like(h), sign * torch.ones_like(h), margin=1.0
        )
    return (1 - label_smoothing) * member(1) + label_smoothing * member(-1)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss", losses.LOSSES)
def test_each_loss_and_its_gradient_are_pytorchs(loss, smoothing, average):
    import torch

    case = random_case(12)
    logps = torch.from_numpy(case["logps"][case["valid"]].astype(np.float64)).requires_grad_()
    expected = torch_loss(torch, logps, case, average, loss, smoothing)
    expected.backward()
    value, _, gradient = run(case, average, loss=loss, label_smoothing=smoothing)
    np.testing.assert_allclose(value, float(expected.detach()), rtol=2e-5)
    np.testing.assert_allclose(gradient[case["valid"]], logps.grad.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("member", ["sigmoid", "ipo", "hinge"])
def test_without_a_reference_its_log_probs_do_not_matter(member):
    case = random_case(13)
    other = {**case, "ref_logps": case["ref_logps"] * 7 - 3}
    first, second = (run(one, True, loss=member, reference_free=True) for one in (case, other))
    assert first[0] == second[0] and first[1] == second[1]


def test_the_mixed_in_likelihood_is_the_mean_over_scored_tokens_whatever_their_weight():
    """γ of 5 on some tokens does not enter; a token of weight 0 does not count."""
    case = random_case(14)
    plain, metrics, _ = run(case, True)
    mixed, _, _ = run(case, True, nll=2.0)
    np.testing.assert_allclose(mixed, plain + 2 * metrics["nll/chosen"], rtol=1e-6)
    ones = {**case, "weights": (case["weights"] > 0).astype(np.float32)}
    np.testing.assert_allclose(run(ones, True)[1]["nll/chosen"], metrics["nll/chosen"], rtol=1e-6)


@pytest.mark.parametrize("average", [True, False])
def test_rewards_are_the_sum_of_their_corrected_and_unchanged_parts(average):
    _, metrics, _ = run(random_case(15), average)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "log_ratios/rejected"):
        parts = metrics[f"{name}/corrected"] + metrics[f"{name}/unchanged"]
        np.testing.assert_allclose(metrics[name], parts, rtol=1e-5, atol=1e-6, err_msg=name)
        assert metrics[f"{name}/corrected"] != 0


def test_at_the_reference_each_loss_has_its_known_value():
    zero = jnp.zeros(1)
    for loss, expected in (("sigmoid", np.log(2)), ("ipo", 1 / (4 * BETA**2)), ("hinge", 1.0)):
        for smoothing in (0.0, 0.3):
            p = losses.Preference(BETA, loss=loss, label_smoothing=smoothing)
            np.testing.assert_allclose(float(losses.pair_losses(zero, p)[0]), expected, rtol=1e-6)
