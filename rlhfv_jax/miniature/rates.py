"""Hallucination rates over many answers, with intervals, and the paper's Table 2 in miniature. Rates are percent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from rlhfv_jax.miniature.captions import Turn
from rlhfv_jax.miniature.scoring import AnswerScore
from rlhfv_jax.miniature.world import CORE_OBJECTS, KINDS, Scene


class Interval(NamedTuple):
    """An estimate and the ends of its bootstrap interval."""

    value: float
    low: float
    high: float


class _Ratio(NamedTuple):
    # What one answer adds to a rate's numerator and denominator, and the unit of the result.
    numerator: float
    denominator: float
    unit: float = 100.0


def summarize(
    scores: Sequence[AnswerScore],
    images: Sequence[int] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Aggregate answers to rates with percentile bootstrap intervals over images.

    Args:
      scores: one per answer.
      images: an id per answer where an image has several answers; they are then drawn together.
      level: the share of intervals that hold the true value.

    Returns:
      `response_rate`: answers with a hallucinated object; `mention_rate`: hallucinated mentions of all mentions;
      `all_rate`: answers with any error; `number_rate`, `color_rate`, `position_rate`: answers with such an error;
      `coverage`: mean share of the true groups mentioned; all in percent, and a rate of nothing (no mention at all)
      is 0. `mentions`, `errors` and `repeats`: their number per answer.

    Raises:
      ValueError: there is no answer, or `images` has another length.
    """
    values, draws = _bootstrap(_totals(scores, images), resamples, seed)
    return _intervals(values, draws, level)


def paired_difference(
    before: Sequence[AnswerScore],
    after: Sequence[AnswerScore],
    images: Sequence[int] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Rates of `after` minus rates of `before` on the same images, answer by answer; both see the same resamples.

    Arguments, keys and units as in `summarize`. Raises ValueError also where the two have different lengths.
    """
    (old, old_draws), (new, new_draws) = _both(before, after, images, resamples, seed)
    return _intervals(new - old, new_draws - old_draws, level)


def relative_change(before: Sequence[AnswerScore], after: Sequence[AnswerScore]) -> dict[str, Interval]:
    """`paired_difference` in percent of the rate before; a rate of 0 before leaves no interval for its key."""
    (old, old_draws), (new, new_draws) = _both(before, after, None, 1000, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = _intervals(100 * (new / old - 1), 100 * (new_draws / old_draws - 1), 0.95)
    return {name: interval for name, interval in found.items() if np.isfinite(interval).all()}


def _both(
    before: Sequence[AnswerScore], after: Sequence[AnswerScore], images: Sequence[int] | None, resamples: int, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    if len(before) != len(after):
        raise ValueError(f"{len(before)} answers before, {len(after)} after: expected the same images.")
    return (
        _bootstrap(_totals(before, images), resamples, seed),
        _bootstrap(_totals(after, images), resamples, seed),
    )


@dataclass(frozen=True)
class SceneRates:
    """Hallucination of a place's core objects in percent: `h_a` over all images, `h_s` over images of the place."""

    h_a: float
    h_s: float

    @property
    def delta(self) -> float:
        """How much more the place itself makes a model hallucinate its usual objects, in points."""
        return self.h_s - self.h_a


@dataclass(frozen=True)
class Overgeneralization:
    """The paper's Table 2 for one model: a row per kind of place, and the mean of the rows' `delta`."""

    rows: dict[str, SceneRates]
    mean_delta: Interval


Definition = Literal["response", "mention"]


def overgeneralization(
    scores: Sequence[AnswerScore], scenes: Sequence[Scene], definition: Definition = "response"
) -> Overgeneralization:
    """Compare how often a place's core objects are hallucinated everywhere and in that place (the paper's Table 2).

    The paper takes the ten most frequent objects of a scene; a place of this world has six core objects. It does not
    say how it averages, so there are two definitions:

    Args:
      scores, scenes: aligned, one per answer.
      definition: `response` is the mean over the objects of the share of answers that hallucinate the object;
        `mention` is the share of hallucinated ones among all mentions of the objects, an object counted once an
        answer, which is nearer to the paper's level.

    Raises:
      ValueError: the lengths differ, or a kind of place has no answer.
    """
    table, drawn = _core_rates(scores, scenes, definition)
    rows = {kind: SceneRates(*map(float, pair)) for kind, pair in zip(KINDS, table, strict=True)}
    return Overgeneralization(rows, _interval(_mean_delta(table), _mean_delta(drawn)))


def overgeneralization_difference(
    before: Sequence[AnswerScore], after: Sequence[AnswerScore], scenes: Sequence[Scene]
) -> Interval:
    """The mean Δ of `after` minus that of `before` on the same scenes, in points; both see the same resamples."""
    (old, old_drawn), (new, new_drawn) = (_core_rates(scores, scenes, "response") for scores in (before, after))
    return _interval(_mean_delta(new) - _mean_delta(old), _mean_delta(new_drawn) - _mean_delta(old_drawn))


def _core_rates(
    scores: Sequence[AnswerScore], scenes: Sequence[Scene], definition: Definition, resamples: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    # H_a and H_s of every kind of place: float64[kinds, 2], and the same of resampled images, [resamples, kinds, 2].
    if len(scores) != len(scenes):
        raise ValueError(f"{len(scores)} scores for {len(scenes)} scenes: expected one score per scene.")
    if missing := set(KINDS) - {scene.kind for scene in scenes}:
        raise ValueError(f"No answers about {', '.join(sorted(missing))}: H_s needs every kind of place.")
    drawn = _draws(len(scores), resamples, seed)
    weights = np.concatenate([np.ones((1, len(scores))), drawn])
    columns = []
    for kind in KINDS:
        core = set(CORE_OBJECTS[kind])
        hallucinated = np.array([len(core & {error.claim.word for error in one.objects}) for one in scores], float)
        mentioned = np.array([len(core & {mention.object.word for mention in one.mentions}) for one in scores], float)
        of = np.full(len(scores), float(len(core))) if definition == "response" else mentioned
        here = np.array([scene.kind == kind for scene in scenes])
        for mask in (np.ones_like(here), here):
            columns.append(100.0 * (weights @ (hallucinated * mask)) / np.maximum(weights @ (of * mask), 1.0))
    table = np.stack(columns, axis=1).reshape(-1, len(KINDS), 2)
    return table[0], table[1:]


def _mean_delta(table: np.ndarray) -> np.ndarray:
    return (table[..., 1] - table[..., 0]).mean(-1)


def vqa_accuracy(answers: Sequence[str], turns: Sequence[Turn]) -> dict[str, float]:
    """Percent of short answers equal to the turns' own, white space aside: `all`, and one entry per kind asked.

    Raises:
      ValueError: the lengths differ, or there is no turn.
    """
    if len(answers) != len(turns) or not turns:
        raise ValueError(f"{len(answers)} answers to {len(turns)} questions: expected one each, and at least one.")
    right = [(" ".join(said.split()) == turn.answer, turn.kind) for said, turn in zip(answers, turns, strict=True)]
    rates = {"all": [hit for hit, _ in right]}
    for hit, kind in right:
        rates.setdefault(kind, []).append(hit)
    return {name: 100.0 * sum(hits) / len(hits) for name, hits in rates.items()}


def mean_interval(values: Sequence[float], resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """The mean of one value an image, with its bootstrap interval; of differences, that of the mean difference."""
    array = np.asarray(values, float)
    return _interval(array.mean(), _draws(len(array), resamples, seed) @ array / len(array), level)


def _ratios(one: AnswerScore) -> dict[str, _Ratio]:
    mentions = len(one.mentions)
    return {
        "response_rate": _Ratio(bool(one.objects), 1),
        "mention_rate": _Ratio(len(one.objects), mentions),
        "all_rate": _Ratio(bool(one.errors), 1),
        "number_rate": _Ratio(bool(one.numbers), 1),
        "color_rate": _Ratio(bool(one.colors), 1),
        "position_rate": _Ratio(bool(one.positions), 1),
        "coverage": _Ratio(one.coverage, 1),
        "mentions": _Ratio(mentions, 1, 1.0),
        "errors": _Ratio(len(one.errors), 1, 1.0),
        "repeats": _Ratio(one.repeats, 1, 1.0),
    }


_NAMES = tuple(_ratios(AnswerScore((), (), (), (), (), (), 0, 0, 1)))


def _totals(scores: Sequence[AnswerScore], images: Sequence[int] | None) -> np.ndarray:
    # float64[images, rates, 3]: numerator, denominator and unit summed over an image's answers.
    if not scores:
        raise ValueError("There is no answer to aggregate.")
    rows = np.array([list(_ratios(one).values()) for one in scores], np.float64)
    if images is None:
        return rows
    if len(images) != len(scores):
        raise ValueError(f"{len(images)} image ids for {len(scores)} answers: expected one id per answer.")
    _, index = np.unique(np.asarray(images), return_inverse=True)
    summed = np.zeros((index.max() + 1, *rows.shape[1:]))
    np.add.at(summed, index, rows)
    summed[:, :, 2] = rows[0, :, 2]
    return summed


def _bootstrap(totals: np.ndarray, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    # A resample is how often each image was drawn, so one product with the totals gives every resampled rate.
    drawn = _draws(len(totals), resamples, seed)
    units = totals[0, :, 2]

    def rate(sums: np.ndarray) -> np.ndarray:
        return units * sums[..., 0] / np.where(sums[..., 1] > 0, sums[..., 1], 1.0)

    sums = np.tensordot(drawn, totals[:, :, :2], axes=1)
    return rate(totals[:, :, :2].sum(0)), rate(sums)


def _draws(count: int, resamples: int, seed: int) -> np.ndarray:
    # float64[resamples, count], how often each image was drawn; the same for every model, so that pairs stay pairs.
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples).astype(float)


def _interval(value: Any, draws: np.ndarray, level: float = 0.95) -> Interval:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


def _intervals(values: np.ndarray, draws: np.ndarray, level: float) -> dict[str, Interval]:
    lows, highs = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {name: Interval(*map(float, three)) for name, *three in zip(_NAMES, values, lows, highs, strict=True)}
