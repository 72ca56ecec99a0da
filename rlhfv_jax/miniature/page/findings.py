"""What the numbers say about the paper's claims; nothing here is written in advance but the claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from rlhfv_jax.miniature.page.readings import (
    ALL,
    COVERAGE,
    MENTIONS,
    OVERGENERALIZATION,
    REPEATS,
    RESPONSE,
    VQA,
    Details,
    Difference,
    Metric,
    difference,
    estimate,
    label,
    relative,
    temperatures,
)
from rlhfv_jax.reporting.numbers import bounds, number

Verdict = Literal["shown", "partly shown", "within noise", "mixed", "opposite", "no loss found"]
NOT_TESTED = (
    "people as annotators and photographs as images",
    "overall ranking labels in place of corrections (the other curve of the paper's Fig. 2)",
    "transfer of the feedback to another base model",
)


@dataclass(frozen=True)
class Finding:
    """A claim of the paper, what the paper measured, what is compared here, and what the comparison says."""

    claim: str
    paper: str
    compared: str
    verdict: Verdict
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class Headline:
    """The report's first sentence, and the interval behind it."""

    text: str
    interval: str


def headline(details: Details) -> Headline | None:
    """Say what alignment did to the response-level hallucination rate; None where it was not measured."""
    model = next((name for name in ("ddpo", "dpo") if estimate(details, name, RESPONSE)), None)
    before = estimate(details, "base", RESPONSE)
    after = estimate(details, model, RESPONSE) if model else None
    change = difference(details, model, "base", RESPONSE) if model else None
    if model is None or before is None or after is None or change is None:
        return None
    percent = relative(before["value"], after["value"])
    share = "" if percent is None else f" ({number(percent, signed=True)}%)"
    span = f"from {number(before['value'])}% to {number(after['value'])}%{share}"
    if change.within_noise:
        text = f"{label(model)} moves the response-level hallucination rate {span}: within noise"
    else:
        verb = "lowers" if change.value < 0 else "raises"
        text = f"{label(model)} {verb} the response-level hallucination rate {span}"
    kind = "95% interval of the paired difference" if change.paired else "bounds of the difference"
    ends = bounds(change.low, change.high, signed=True)
    level = temperatures(details)[0]
    interval = f"At T = {level}: {number(change.value, signed=True)} points; {kind}: {ends}"
    if ratio := details.get("relative", {}).get(f"{model}-base", {}).get(RESPONSE.key):
        interval += f"; in percent of the base's rate: {bounds(ratio['low'], ratio['high'], signed=True)}"
    return Headline(text, interval)


def findings(details: Details) -> list[Finding]:
    """Hold each claim of the paper that the input can speak to against the numbers, in the paper's order."""
    every = (
        _reduction(details),
        _helpfulness(details),
        _overgeneralization(details),
        _scaling(details),
        _dense_against_vanilla(details),
        _it_vqa(details),
        _full_recipe(details),
        _cropping(details),
    )
    return [one for one in every if one is not None]


def _reduction(details: Details) -> Finding | None:
    paper = "Response rate 50.5 → 12.2 on Object HalBench, all errors 74.7 → 55.5 on MHumanEval (Table 1)."
    claim = "Learning from segment-level corrections reduces hallucination."
    return _compared(details, claim, paper, "ddpo", "base", (RESPONSE, ALL))


def _dense_against_vanilla(details: Details) -> Finding | None:
    paper = "Objects 21.9 against 21.9, all errors 55.5 against 57.5 on MHumanEval (Table 3)."
    claim = "DDPO hallucinates less than vanilla DPO on the same pairs."
    found = _compared(details, claim, paper, "ddpo", "dpo", (RESPONSE, ALL))
    extra = _evidence(details, "ddpo", "dpo", (COVERAGE, MENTIONS, VQA))
    return found and replace(found, evidence=(*found.evidence, *extra))


def _it_vqa(details: Details) -> Finding | None:
    paper = "Objects 33.6 → 34.3, numbers 26.0 → 17.1, all errors 74.7 → 65.1 on MHumanEval (Table 3)."
    claim = "Tuning on clean short answers (IT-VQA) alone already reduces hallucination."
    return _compared(details, claim, paper, "it_vqa", "base", (RESPONSE, ALL))


def _full_recipe(details: Details) -> Finding | None:
    paper = "Objects 34.3 → 21.9, all errors 65.1 → 55.5 on MHumanEval when DDPO follows IT-VQA (Table 3)."
    claim = "DDPO after IT-VQA, the paper's whole recipe, reduces what IT-VQA leaves."
    return _compared(details, claim, paper, "full", "it_vqa", (RESPONSE, ALL))


def _cropping(details: Details) -> Finding | None:
    paper = "With cropping all errors 55.5 → 59.6 on MHumanEval, VQAv2 80.0 → 77.1 (Table 3)."
    claim = "Leaving cropping out of training helps (cropping in both stages hurts)."
    return _compared(details, claim, paper, "full", "full_crop", (ALL, VQA))


def _compared(
    details: Details, claim: str, paper: str, after: str, before: str, metrics: Sequence[Metric]
) -> Finding | None:
    readings = [change.reading(one) for one in metrics if (change := difference(details, after, before, one))]
    if not readings:
        return None
    return Finding(claim, paper, _pair(before, after), _verdict(readings), _evidence(details, after, before, metrics))


def _pair(before: str, after: str) -> str:
    return f"{label(before)} → {label(after)}"


def _verdict(readings: Sequence[str]) -> Verdict:
    good, bad = "better" in readings, "worse" in readings
    if good and bad:
        return "mixed"
    if bad:
        return "opposite"
    if good:
        return "shown" if set(readings) == {"better"} else "partly shown"
    return "within noise"


def _helpfulness(details: Details) -> Finding | None:
    metrics = (COVERAGE, MENTIONS, REPEATS, VQA)
    changes = [(one, change) for one in metrics if (change := difference(details, "ddpo", "base", one))]
    if not changes:
        return None
    evidence = list(_evidence(details, "ddpo", "base", metrics))
    lost = [_is_lost(one, change) for one, change in changes]
    for level in temperatures(details)[1:]:
        evidence += [f"At T = {level}: {line}" for line in _evidence(details, "ddpo", "base", metrics[:3], level)]
        greedy = [(one, difference(details, "ddpo", "base", one, level)) for one in metrics[:3]]
        lost += [_is_lost(one, change) for one, change in greedy if change]
    gained = any(one.better and change.reading(one) == "better" for one, change in changes)
    kept: Verdict = "shown" if gained else "no loss found"
    verdict: Verdict = "opposite" if all(lost) else "mixed" if any(lost) else kept
    paper = "Informativeness 33.4 → 40.0 on MMHal-Bench, conversation 89.3 → 93.1 on LLaVA Bench (Table 1)."
    claim = "The answers stay as helpful: they do not hallucinate less by saying less, or the same twice."
    return Finding(claim, paper, _pair("base", "ddpo"), verdict, tuple(evidence))


def _is_lost(metric: Metric, change: Difference) -> bool:
    return change.reading(metric) in ("worse", "lower")


def _overgeneralization(details: Details) -> Finding | None:
    paper = "Mean Δ +1.7 for RLHF-V, the smallest of five models; +9.2 for LLaVA-1.5, +5.0 for GPT-4V (Table 2)."
    claim = "Alignment curbs over-generalization from a scene to its usual objects."
    found = _compared(details, claim, paper, "ddpo", "base", (OVERGENERALIZATION,))
    if found is None:
        return None
    before, after = (details["models"][name]["overgeneralization"]["kinds"] for name in ("base", "ddpo"))
    shared = [kind for kind in before if kind in after]
    smaller = [kind for kind in shared if abs(after[kind]["delta"]) < abs(before[kind]["delta"])]
    kinds = f"Δ is nearer to 0 in {len(smaller)} of {len(shared)} kinds of place"
    return replace(found, evidence=(*found.evidence, kinds))


def _scaling(details: Details) -> Finding | None:
    points: list[Any] = sorted(details.get("scaling", []), key=lambda point: point["pairs"])
    if len(points) < 2:
        return None
    rates = [point["response_rate"] for point in points]
    total = Difference.between(rates[0], rates[-1])
    evidence = [_change_text(RESPONSE, rates[0], rates[-1], total)]
    first = rates[1]["value"] - rates[0]["value"]
    if len(points) > 2 and total.value < 0 and not total.within_noise:
        share = 100 * first / total.value
        evidence.append(f"The first {points[1]['pairs']} pairs bring {number(share, 0)}% of that change")
    steps = [Difference.between(one, two) for one, two in pairwise(rates)]
    names = [f"{one['pairs']} → {two['pairs']}" for one, two in pairwise(points)]
    noisy = [name for name, step in zip(names, steps, strict=True) if step.within_noise]
    if noisy and len(points) > 2:
        evidence.append("Within noise, one step against the next: " + ", ".join(noisy))
    verdict = _verdict([total.reading(RESPONSE)])
    if verdict == "shown" and any(step.reading(RESPONSE) == "worse" for step in steps):
        verdict = "mixed"
    paper = "Hallucination falls significantly and rapidly as pairs are added, up to 1.4k (Fig. 2)."
    span = f"{points[0]['pairs']} → {points[-1]['pairs']} pairs"
    return Finding("More preference pairs mean less hallucination.", paper, span, verdict, tuple(evidence))


def _evidence(
    details: Details, after: str, before: str, metrics: Sequence[Metric], temperature: str | None = None
) -> tuple[str, ...]:
    found = []
    for metric in metrics:
        change = difference(details, after, before, metric, temperature)
        old, new = (estimate(details, model, metric, temperature) for model in (before, after))
        if change is not None:
            found.append(_change_text(metric, old, new, change))
    return tuple(found)


def _change_text(metric: Metric, old: Any, new: Any, change: Difference) -> str:
    values = ""
    if old is not None and new is not None:
        values = f"{number(old['value'], metric.digits)} → {number(new['value'], metric.digits)}, "
    size = f"{number(change.value, metric.digits, signed=True)} {metric.unit}"
    ends = bounds(change.low, change.high, metric.digits, signed=True)
    kind = "" if change.paired else "bounds "
    name = metric.title
    return f"{name}: {values}{size} ({kind}{ends}): {change.reading(metric)}"
