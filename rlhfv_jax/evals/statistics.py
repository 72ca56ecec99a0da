"""Bootstrap intervals (Efron 1979, percentiles) of ratios and means over items; two models on the same items."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhfv_jax.evals.scores import Metric

RESAMPLES = 1000
BLOCK = 4_000_000  # drawn indices held at once


@dataclass(frozen=True)
class Comparison:
    """`difference` is second minus first, with its 95 % interval; `p` is two-sided; `n` the number of shared items."""

    difference: float
    low: float
    high: float
    p: float
    n: int


def ratio(
    numerators: Sequence[float],
    denominators: Sequence[float] | None = None,
    scale: float = 1.0,
    n: int | None = None,
    seed: int = 0,
) -> Metric:
    """scale * sum(numerators) / sum(denominators) with a bootstrap interval over items; the mean without denominators.

    Args:
      numerators, denominators: float[items].
      n: what the metric is of, if not of the items (a mention-level rate is of mentions).

    A zero denominator gives None, without an interval.
    """
    top = np.asarray(numerators, float)
    bottom = np.ones_like(top) if denominators is None else np.asarray(denominators, float)
    count = len(top) if n is None else n
    if not len(top) or bottom.sum() == 0:
        return Metric(None, None, None, count)
    low, high = interval(resampled_ratios(top, bottom, scale, seed))
    return Metric(float(scale * top.sum() / bottom.sum()), low, high, count)


def resampled_ratios(
    numerators: Sequence[float] | np.ndarray,
    denominators: Sequence[float] | np.ndarray,
    scale: float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """float64[resamples]: the ratio of `ratio` over items drawn again; NaN where the drawn denominators are all zero.

    What is computed from several groups of items (a mean of three F1) has for its interval that of the same computed
    from these, each group with a seed of its own.
    """
    sums = resampled_sums(np.stack([np.asarray(numerators, float), np.asarray(denominators, float)], 1), seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sums[:, 1] > 0, scale * sums[:, 0] / sums[:, 1], np.nan)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled values, those that are NaN left out."""
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def resampled_sums(values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """float64[resamples, columns]: sums of values[items, columns] over items drawn with replacement."""
    rng = np.random.default_rng(seed)
    step = max(1, BLOCK // len(values))
    blocks = []
    for start in range(0, resamples, step):
        drawn = rng.integers(0, len(values), (min(step, resamples - start), len(values)))
        times = np.stack([np.bincount(row, minlength=len(values)) for row in drawn])  # how often each item was drawn
        blocks.append(times.astype(float) @ values)
    return np.concatenate(blocks)


def compare(first: Sequence[float], second: Sequence[float], seed: int = 0, permutations: int = 10_000) -> Comparison:
    """Paired comparison of one value an item: bootstrap interval of the mean difference, p by flipping signs.

    Raises:
      ValueError: the lengths differ or are zero.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    if len(a) != len(b) or not len(a):
        raise ValueError(f"{len(a)} and {len(b)} values: expected the same items, and at least one.")
    difference = b - a
    means = resampled_sums(difference[:, None], seed)[:, 0] / len(a)
    rng = np.random.default_rng(seed)
    observed, extreme = abs(difference.sum()), 0
    for start in range(0, permutations, 500):
        signs = rng.integers(0, 2, (min(500, permutations - start), len(a))) * 2 - 1
        extreme += int((np.abs(signs @ difference) >= observed - 1e-9).sum())
    low, high = np.quantile(means, [0.025, 0.975])
    p = (extreme + 1) / (permutations + 1)
    return Comparison(float(difference.mean()), float(low), float(high), p, len(a))
