"""How the report reads its input: names, order and units of the rates, and differences with their intervals."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Details = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """A rate's `key` in the input, its `label`, the `unit` of a difference, and the `better` direction if any."""

    key: str
    label: str
    better: Literal["lower", "higher"] | None = "lower"
    digits: int = 1
    unit: str = "points"

    @property
    def title(self) -> str:
        """The label at the start of a line."""
        return self.label[0].upper() + self.label[1:]


RESPONSE = Metric("response_rate", "response rate")
ALL = Metric("all_rate", "all-error rate")
COVERAGE = Metric("coverage", "coverage", "higher")
MENTIONS = Metric("mentions", "mentions per answer", None, 2, "mentions")
REPEATS = Metric("repeats", "repeats per answer", "lower", 2, "repeats")
VQA = Metric("vqa", "VQA accuracy", "higher")
OVERGENERALIZATION = Metric("overgeneralization_delta", "over-generalization Δ", digits=2)
METRICS = (
    RESPONSE,
    Metric("mention_rate", "mention rate"),
    ALL,
    Metric("number_rate", "number"),
    Metric("position_rate", "position"),
    Metric("color_rate", "color"),
    COVERAGE,
    MENTIONS,
    REPEATS,
)
"""The rates of a table row, in its order."""

_LABELS = {
    "base": "Base",
    "it_vqa": "IT-VQA",
    "dpo": "DPO",
    "ddpo": "DDPO",
    "ddpo_literal": "DDPO, literal eq. 5",
    "full": "IT-VQA + DDPO",
    "full_dpo": "IT-VQA + DPO",
    "it_vqa_crop": "IT-VQA, cropped",
    "full_crop": "IT-VQA + DDPO, cropped",
}


def label(model: str) -> str:
    """A model's name as people write it; an unknown one without its underscores."""
    if (found := re.fullmatch(r"ddpo_(\d+)", model)) is not None:
        return f"DDPO, {found.group(1)} pairs"
    return _LABELS.get(model, model.replace("_", " "))


def ordered(models: Mapping[str, Any]) -> list[str]:
    """The models as the tables list them: base, IT-VQA, DPO, DDPO, then any other as given."""
    return sorted(models, key=lambda model: list(_LABELS).index(model) if model in _LABELS else len(_LABELS))


def temperatures(details: Details) -> list[str]:
    """The decoding temperatures of any model, as written in the input, the highest first."""
    found = {key for model in details.get("models", {}).values() for key in model.get("temperatures", {})}
    return sorted(found, key=float, reverse=True)


def estimate(
    details: Details, model: str, metric: Metric, temperature: str | None = None
) -> Mapping[str, float] | None:
    """A model's interval of one rate, by default at the highest temperature; None where it was not measured."""
    entry = details.get("models", {}).get(model, {})
    if metric is VQA:
        return entry.get("vqa")
    if metric is OVERGENERALIZATION:
        return entry.get("overgeneralization", {}).get("mean_delta")
    levels = temperatures(details)
    if not levels:
        return None
    return entry.get("temperatures", {}).get(temperature or levels[0], {}).get(metric.key)


@dataclass(frozen=True)
class Difference:
    """A change with its interval: a paired bootstrap's, or else bounds from the two estimates' own intervals.

    The bounds are wider than a paired interval: they leave out 0 only where the two intervals do not meet.
    """

    value: float
    low: float
    high: float
    paired: bool = True

    @property
    def within_noise(self) -> bool:
        """Whether the interval contains 0."""
        return self.low <= 0 <= self.high

    @classmethod
    def between(cls, before: Mapping[str, float], after: Mapping[str, float]) -> Difference:
        """Compare two estimates that come without a paired difference."""
        value = after["value"] - before["value"]
        return cls(value, after["low"] - before["high"], after["high"] - before["low"], paired=False)

    def reading(self, metric: Metric) -> Literal["better", "worse", "within noise", "lower", "higher"]:
        """What the change is worth; where the metric has no good direction, which way it went."""
        if self.within_noise:
            return "within noise"
        direction: Literal["lower", "higher"] = "lower" if self.value < 0 else "higher"
        if metric.better is None:
            return direction
        return "better" if direction == metric.better else "worse"


def difference(
    details: Details, after: str, before: str, metric: Metric, temperature: str | None = None
) -> Difference | None:
    """The change of a rate from model `before` to model `after`; None where either was not measured.

    The input's paired differences belong to the highest temperature; any other is compared by its intervals.
    """
    if temperature is None or temperature == temperatures(details)[0]:
        paired = details.get("differences", {}).get(f"{after}-{before}", {}).get(metric.key)
        if paired is not None:
            return Difference(paired["value"], paired["low"], paired["high"])
    old, new = (estimate(details, model, metric, temperature) for model in (before, after))
    return None if old is None or new is None else Difference.between(old, new)


def relative(before: float, after: float) -> float | None:
    """The change in percent of `before`; None where that is 0."""
    return 100.0 * (after / before - 1.0) if before else None
