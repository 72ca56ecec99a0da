"""How far people agree beyond chance, with 95 % intervals: pure functions of counts.

Every measure is a function of sums over items. An interval comes from the same function of the sums over items drawn
again, so what belongs to one item (its words, its segments, its pairs of annotators) stays together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rlhfv_jax.evals.statistics import resampled_sums

FEWEST = 5  # items below which no interval is given
NO_VARIATION = "no variation"  # everybody said the same all the time, so chance explains it as well as agreement
NOTHING = "nothing to compare"


@dataclass(frozen=True)
class Figure:
    """A measure: None where it is undefined, and `undefined` says why. `n` counts `unit`s; an interval needs items."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    unit: str
    undefined: str = ""


class Table(NamedTuple):
    """What a measure is computed from: `terms` float[items, columns] that are summed over items, `measure` that turns
    sums float[..., columns] into values float[...] (NaN where undefined), and how many units there are of what."""

    terms: np.ndarray
    measure: Callable[[np.ndarray], np.ndarray]
    n: int
    unit: str


def kappas(confusion: np.ndarray) -> np.ndarray:
    """Cohen's kappa of float[..., values * values] confusion counts of two raters; NaN where it is undefined."""
    size = round(confusion.shape[-1] ** 0.5)
    table = confusion.reshape(*confusion.shape[:-1], size, size)
    total = table.sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        chance = (table.sum(-1) * table.sum(-2)).sum(-1) / total**2
        agreed = np.trace(table, axis1=-2, axis2=-1) / total
        return np.where(chance < 1 - 1e-12, (agreed - chance) / (1 - chance), np.nan)


def confusion(first: Sequence[int], second: Sequence[int], size: int) -> np.ndarray:
    """float[units, size * size]: for each unit a 1 at (the first's value, the second's)."""
    places = np.asarray(first, int) * size + np.asarray(second, int)
    return np.eye(size * size)[places] if len(places) else np.zeros((0, size * size))


def alphas(sums: np.ndarray) -> np.ndarray:
    """Krippendorff's nominal alpha of summed `alpha_terms` float[..., 1 + values]; NaN where it is undefined."""
    disagreed, values = sums[..., 0], sums[..., 1:]
    total = values.sum(-1)
    mixed = total**2 - (values**2).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(mixed > 1e-9, 1 - disagreed * (total - 1) / mixed, np.nan)


def alpha_terms(counts: np.ndarray) -> np.ndarray:
    """float[units, 1 + values] of counts float[units, values], how many raters gave each unit each value.

    A unit with fewer than two values is paired with nothing and adds nothing (Krippendorff 2011, "Computing
    Krippendorff's Alpha-Reliability", in coincidences by value rather than by pair of raters).
    """
    counts = np.asarray(counts, float)
    raters = counts.sum(1)
    paired = raters >= 2
    disagreed = (raters**2 - (counts**2).sum(1)) / np.maximum(raters - 1, 1)
    return np.concatenate([disagreed[:, None], counts], 1) * paired[:, None]


def ratios(sums: np.ndarray) -> np.ndarray:
    """The first column over the second; NaN where that is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan)


def alpha(counts: np.ndarray) -> float | None:
    """Krippendorff's nominal alpha of counts float[units, values]; None where everybody gave the same value."""
    return _plain(alphas(alpha_terms(counts).sum(0)))


def kappa(first: Sequence[int], second: Sequence[int]) -> float | None:
    """Cohen's kappa of two raters' values 0, 1, ... of the same units; None where both gave one value throughout."""
    size = max([*first, *second], default=0) + 1
    return _plain(kappas(confusion(first, second, size).sum(0)))


def _plain(value: np.ndarray) -> float | None:
    return None if np.isnan(value) else float(value)


def figures(tables: Mapping[str, Table], seed: int = 0) -> dict[str, Figure]:
    """Every measure with its interval, all from the same drawn items; the tables have their rows in common.

    The interval leaves out draws in which the measure is undefined, and is not given below FEWEST items.
    """
    if not tables:
        return {}
    every = np.concatenate([table.terms for table in tables.values()], 1)
    draws = resampled_sums(every, seed) if len(every) >= FEWEST else None
    found, start = {}, 0
    for name, table in tables.items():
        columns = slice(start, start + table.terms.shape[1])
        start = columns.stop
        value = _plain(table.measure(table.terms.sum(0)))
        low = high = None
        if value is None:
            why = NO_VARIATION if table.n else NOTHING
            found[name] = Figure(None, None, None, table.n, table.unit, why)
            continue
        if draws is not None:
            low, high = np.nanquantile(table.measure(draws[:, columns]), [0.025, 0.975]).tolist()
        found[name] = Figure(value, low, high, table.n, table.unit)
    return found


def spelled(figure: Figure, digits: int = 3) -> str:
    """As "0.743 [0.600, 0.850]", or "undefined (no variation)"."""
    if figure.value is None:
        return f"undefined ({figure.undefined})"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.{digits}f} (too few items for an interval)"
    return f"{figure.value:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"
