"""The intervals hold what they promise on populations that are known, and the paired test agrees with exact ones."""

import itertools
import math

import numpy as np
import pytest

from rlhfv_jax.evals.statistics import compare, ratio

DRAWS = 600
# The share of 600 intervals that hold the truth has a standard error of 0.9 points around 95 percent; percentile
# intervals of some hundred items fall a little short of that, by about 1 point.
LEAST, MOST = 0.92, 0.98


def rate_of_answers(rng):
    """Answers that hallucinate, of 146: a share of a quarter."""
    return rng.random(146) < 0.25, None, 25.0


def rare_rate(rng):
    """A rate of 7.5 percent among 300."""
    return rng.random(300) < 0.075, None, 7.5


def rate_of_mentions(rng):
    """Hallucinated of all mentions in 300 answers: how many an answer has and how likely they are wrong go together."""
    mentions = rng.poisson(6, 300)
    return rng.binomial(mentions, np.where(mentions > 6, 0.3, 0.1)), mentions, None


def mean_of_ratings(rng):
    """96 ratings from 0 to 6 by fixed chances."""
    chances = np.asarray([0.2, 0.1, 0.15, 0.15, 0.1, 0.1, 0.2])
    return rng.choice(7, 96, p=chances), None, 100 * float(chances @ np.arange(7))


def true_rate_of_mentions():
    """By summing over the Poisson chances, in percent."""
    chance = np.asarray([math.exp(-6) * 6.0**k / math.factorial(k) for k in range(80)])
    counts = np.arange(80)
    return 100 * float((chance * counts * np.where(counts > 6, 0.3, 0.1)).sum() / (chance * counts).sum())


@pytest.mark.parametrize(
    "population",
    [
        rate_of_answers,
        *(pytest.param(one, marks=pytest.mark.slow) for one in (rare_rate, rate_of_mentions, mean_of_ratings)),
    ],
)
def test_a_95_percent_interval_holds_the_truth_19_times_in_20(population):
    held, below, above = 0, 0, 0
    for draw in range(DRAWS):
        top, bottom, truth = population(np.random.default_rng(draw))
        truth = true_rate_of_mentions() if truth is None else truth
        metric = ratio(top, bottom, 100, seed=draw)
        assert metric.low <= metric.value <= metric.high
        held += metric.low <= truth <= metric.high
        below += metric.high < truth
        above += metric.low > truth
    assert LEAST <= held / DRAWS <= MOST
    assert max(below, above) <= 0.06 * DRAWS  # neither side is given away


@pytest.mark.parametrize("n", [60, 400])
def test_an_interval_of_a_mean_is_the_normal_one_where_that_is_right(n):
    values = np.random.default_rng(n).normal(3.0, 2.0, n)
    metric = ratio(values, seed=1)
    error = values.std() / math.sqrt(n)  # of the bootstrap's own mean, exactly
    # A quantile of 1,000 resamples has a standard error of about 0.07 of that error at 2.5 percent.
    assert metric.low == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)
    assert metric.high == pytest.approx(values.mean() + 1.96 * error, abs=0.25 * error)


def test_the_paired_intervals_hold_the_true_difference_19_times_in_20():
    held = 0
    for draw in range(DRAWS // 3):
        rng = np.random.default_rng(draw)
        hard = rng.random(200)  # of the items, common to both models
        first, second = rng.random(200) < hard, rng.random(200) < 0.8 * hard
        found = compare(100.0 * first, 100.0 * second, seed=draw, permutations=1)
        held += found.low <= -10.0 <= found.high  # the mean of 0.8 h - h over h uniform in [0, 1]
    assert 0.9 <= held / (DRAWS // 3) <= 0.99


@pytest.mark.parametrize("seed", range(4))
def test_p_is_that_of_all_sign_flips(seed):
    """Of 12 items, all 4,096 flips, enumerated."""
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 7, 12).astype(float), rng.integers(0, 7, 12).astype(float)
    difference = second - first
    flipped = [abs(sum(s * d for s, d in zip(signs, difference, strict=True))) for signs in _signs(12)]
    exact = sum(value >= abs(difference.sum()) - 1e-9 for value in flipped) / len(flipped)
    found = compare(first, second)
    assert found.difference == pytest.approx(difference.mean()) and found.n == 12
    assert found.p == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 10_000) + 2e-4)


def _signs(count):
    return itertools.product((-1, 1), repeat=count)


def test_p_of_yes_and_no_is_mcnemars_exact_one():
    """Of pairs of right and wrong answers only the changed ones count: a binomial test of 30 against 14."""
    first = [1] * 14 + [0] * 30 + [1] * 100 + [0] * 56
    second = [0] * 14 + [1] * 30 + [1] * 100 + [0] * 56
    exact = 2 * sum(math.comb(44, k) for k in range(15)) / 2**44
    found = compare(first, second)
    assert found.difference == pytest.approx(16 / 200)
    assert found.p == pytest.approx(exact, abs=4 * math.sqrt(exact / 10_000))


@pytest.mark.parametrize("shift", [0.0, 0.25, 0.5])
def test_p_and_interval_agree_with_scipys(shift):
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(7)
    first = rng.gamma(2.0, 1.0, 150)
    second = first + rng.normal(shift, 1.2, 150)
    found = compare(first, second)
    paired = stats.permutation_test(
        (second, first),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=10_000,
        rng=np.random.default_rng(1),
    )
    noise = math.sqrt(max(found.p * (1 - found.p), 1e-4) / 10_000)
    assert found.p == pytest.approx(paired.pvalue, abs=5 * noise)
    around = stats.bootstrap(
        (second - first,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(2)
    ).confidence_interval
    error = (second - first).std() / math.sqrt(150)
    assert (found.low, found.high) == pytest.approx((around.low, around.high), abs=0.25 * error)


@pytest.mark.slow
def test_p_is_uniform_where_nothing_differs():
    """At level 5 percent, 5 percent of comparisons of equal models are wrongly told apart."""
    false = 0
    for draw in range(400):
        rng = np.random.default_rng(draw)
        found = compare(rng.normal(size=80), rng.normal(size=80), seed=draw, permutations=500)
        false += found.p <= 0.05
    assert 0.02 <= false / 400 <= 0.085  # 400 draws: 5 percent with a standard error of 1.1
