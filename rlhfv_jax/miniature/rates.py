"""Hallucination rates over many answers, with intervals, and the paper's Table 2 in miniature. Rates are percent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

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


def summarise(
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

    Arguments, keys and units as in `summarise`. Raises ValueError also where the two have different lengths.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} answers before, {len(after)} after: expected the same images.")
    old_values, old_draws = _bootstrap(_totals(before, images), resamples, seed)
    new_values, new_draws = _bootstrap(_totals(after, images), resamples, seed)
    return _intervals(new_values - old_values, new_draws - old_draws, level)


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
    """The paper's Table 2 for one model: a row per kind of place."""

    rows: dict[str, SceneRates]

    @property
    def mean_delta(self) -> float:
        """The mean of the rows' `delta`."""
        return sum(row.delta for row in self.rows.values()) / len(self.rows)


def overgeneralization(
    scores: Sequence[AnswerScore],
    scenes: Sequence[Scene],
    definition: Literal["response", "mention"] = "response",
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
    if len(scores) != len(scenes):
        raise ValueError(f"{len(scores)} scores for {len(scenes)} scenes: expected one score per scene.")
    if missing := set(KINDS) - {scene.kind for scene in scenes}:
        raise ValueError(f"No answers about {', '.join(sorted(missing))}: H_s needs every kind of place.")
    rows = {}
    for kind in KINDS:
        here = [one for one, scene in zip(scores, scenes, strict=True) if scene.kind == kind]
        rows[kind] = SceneRates(*(_core_rate(part, set(CORE_OBJECTS[kind]), definition) for part in (scores, here)))
    return Overgeneralization(rows)


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
    """The mean of one value an image, with its bootstrap interval."""
    array = np.asarray(values, float)
    picks = np.random.default_rng(seed).integers(0, len(array), (resamples, len(array)))
    low, high = np.quantile(array[picks].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(array.mean()), float(low), float(high))


def _core_rate(scores: Sequence[AnswerScore], core: set[str], definition: str) -> float:
    hallucinated = sum(len(core & {error.claim.word for error in one.objects}) for one in scores)
    if definition == "response":
        return 100.0 * hallucinated / (len(core) * len(scores))
    mentioned = sum(len(core & {mention.object.word for mention in one.mentions}) for one in scores)
    return 100.0 * hallucinated / max(mentioned, 1)


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
    count = len(totals)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    units = totals[0, :, 2]

    def rate(sums: np.ndarray) -> np.ndarray:
        return units * sums[..., 0] / np.where(sums[..., 1] > 0, sums[..., 1], 1.0)

    sums = np.tensordot(drawn.astype(np.float64), totals[:, :, :2], axes=1)
    return rate(totals[:, :, :2].sum(0)), rate(sums)


def _intervals(values: np.ndarray, draws: np.ndarray, level: float) -> dict[str, Interval]:
    lows, highs = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {name: Interval(*map(float, three)) for name, *three in zip(_NAMES, values, lows, highs, strict=True)}
