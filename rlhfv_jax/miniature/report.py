"""The run's page: `report.html`, one file that needs no network and no script, told from the numbers it is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhfv_jax.miniature.page import tables
from rlhfv_jax.miniature.page.exhibits import corrections_section, gallery_section
from rlhfv_jax.miniature.page.findings import NOT_TESTED, Finding, findings, headline
from rlhfv_jax.miniature.page.plots import scaling_section, training_section
from rlhfv_jax.miniature.page.readings import (
    ALL,
    COVERAGE,
    RESPONSE,
    VQA,
    Details,
    Metric,
    difference,
    estimate,
    label,
    temperatures,
)
from rlhfv_jax.reporting import document
from rlhfv_jax.reporting.markup import Markup, element, facts, join, lines, section
from rlhfv_jax.reporting.numbers import bounds, number

TITLE = "RLHF-V in miniature"
_SYMBOLS = {
    "shown": "✓",
    "partly shown": "◐",
    "within noise": "≈",
    "mixed": "±",
    "opposite": "✗",
    "no loss found": "≈",
}


def write(path: Path, details: dict, gallery: list[dict], corrections: list[dict]) -> None:
    """Write the report of a run to `path`, whole or not at all.

    Args:
      path: the file, replaced if it is there.
      details: what was measured, all rates in percent and every interval `{"value", "low", "high"}` a 95% bootstrap
        interval as `rates.summarize` gives. `models` has the rates per model and temperature, `differences` the
        paired differences (`"ddpo-dpo"` is DDPO minus DPO) at the highest temperature; `scaling`, `curves`, `pairs`,
        `stages`, `settings`, `versions` and `seed` are what they say. What is missing is left out of the page.
      gallery: scenes with each model's answer and its `errors` as character spans.
      corrections: preference pairs with their segments as character spans.

    Raises:
      ValueError: a character span does not fit its text.
    """
    document.write(path, page(details, gallery, corrections))


def page(details: Details, gallery: Sequence[Mapping[str, Any]], corrections: Sequence[Mapping[str, Any]]) -> str:
    """Build the page; arguments as in `write`."""
    sections = (
        _results(details),
        _scenes(details),
        scaling_section(details),
        training_section(details),
        gallery_section(gallery),
        corrections_section(details, corrections),
        _honesty(details),
        _provenance(details),
    )
    return document.document(TITLE, _header(details), element("main", lines(*sections)))


def _header(details: Details) -> Markup:
    lead = "The method of the RLHF-V paper, whole and small: a model that hallucinates, corrected answers, alignment."
    notice = element(
        "p",
        element("strong", "World and annotator are synthetic."),
        " The images are drawn scenes whose content is known exactly, the questions and captions come from a grammar, "
        "and the corrections come from a program that knows the truth. No photograph and no person was involved.",
        class_="synthetic",
    )
    parts = [element("h1", TITLE), element("p", lead, class_="lead"), notice]
    if found := headline(details):
        parts += [
            element("p", found.text, ".", class_="headline"),
            element("p", found.interval, ".", class_="interval"),
        ]
        parts.append(_tiles(details))
    return element("header", lines(*parts))


def _tiles(details: Details) -> Markup:
    model = "ddpo" if estimate(details, "ddpo", RESPONSE) else "dpo"
    return element(
        "dl", lines(*(_tile(details, model, metric) for metric in (RESPONSE, ALL, COVERAGE, VQA))), class_="tiles"
    )


def _tile(details: Details, model: str, metric: Metric) -> Markup:
    old, new = estimate(details, "base", metric), estimate(details, model, metric)
    change = difference(details, model, "base", metric)
    if old is None or new is None or change is None:
        return Markup("")
    name = metric.title
    kind = "" if change.paired else "bounds "
    ends = f"{number(change.value, signed=True)} points, {kind}{bounds(change.low, change.high, signed=True)}"
    value = f"{number(old['value'])} → {number(new['value'])}%"
    small = element("small", f"{ends}; {change.reading(metric)}")
    return element("div", element("dt", f"{name}, {label('base')} → {label(model)}"), element("dd", value, small))


def _results(details: Details) -> Markup:
    levels = temperatures(details)
    if not levels:
        return Markup("")
    reading = (
        "Response rate: answers that name an object that is not there. Mention rate: such mentions of all mentions. "
        "All errors, number, position, color: answers with such an error. Coverage: share of the true objects that are "
        "named. Repeats: objects named again, which is no error and covers nothing. All in percent but these and "
        "mentions per answer; 95% bootstrap intervals in small type; the best point estimate "
        "of a column is underlined, which says nothing about noise (see the claims below)."
    )
    parts = [element("p", reading, class_="note")]
    parts += [tables.rates_table(details, level, full=at == 0) for at, level in enumerate(levels)]
    warning = (
        "The paper's figures. Another model (Muffin, 13B), other images and other benchmarks: absolute values are not "
        "comparable with the tables above, only the direction of a change and, loosely, its relative size (small "
        "type, against the paper's base). ObjHal: Object HalBench; MHE: MHumanEval; a dash was not reported."
    )
    parts.append(element("aside", element("p", warning), tables.paper_table(), class_="borrowed"))
    return section("Hallucination by model", "results", *parts)


def _scenes(details: Details) -> Markup:
    if not any("overgeneralization" in model for model in details.get("models", {}).values()):
        return Markup("")
    reading = join(
        [
            "A model that looks too little guesses what such a place usually holds. H",
            element("sub", "a"),
            ": how often a place's usual objects are hallucinated over all images; H",
            element("sub", "s"),
            ": over images of that place; Δ is the difference, large where the place itself misleads. Percent.",
        ]
    )
    warning = (
        "The paper's figures: its models on Object HalBench, ten objects per scene. Compare the sign and order of Δ."
    )
    aside = element("aside", element("p", warning), tables.paper_scenes_table(), class_="borrowed")
    return section(
        "Over-generalization", "scenes", element("p", reading, class_="note"), tables.world_scenes_table(details), aside
    )


def _honesty(details: Details) -> Markup:
    found = findings(details)
    parts = []
    if found:
        rule = (
            "Each verdict is computed from the numbers: within noise where the interval of the difference contains 0. "
            "Where no paired difference was measured, bounds from the two intervals stand in, which are wider. "
            "The intervals cover the draw of the evaluation images; another training seed would add to them."
        )
        parts = [element("p", rule, class_="note"), element("ul", lines(*map(_finding, found)), class_="findings")]
        parts.append(element("p", element("strong", "Not tested here: "), "; ".join(NOT_TESTED), "."))
    if details.get("differences"):
        chance = "A difference of nothing leaves 0 out of its interval once in twenty cells, by chance alone."
        parts += [element("p", chance, class_="note"), tables.differences_table(details)]
    return section("What this shows of the paper's claims, and what not", "claims", *parts) if parts else Markup("")


def _finding(one: Finding) -> Markup:
    badge = element("p", f"{_SYMBOLS[one.verdict]} {one.verdict}", class_="verdict " + one.verdict.replace(" ", "-"))
    evidence = element("ul", *(element("li", line) for line in one.evidence))
    paper = element("p", element("strong", "In the paper: "), one.paper, class_="note")
    body = element("div", lines(element("h3", one.claim), element("p", one.compared, class_="note"), evidence, paper))
    return element("li", badge, body, class_="finding")


def _provenance(details: Details) -> Markup:
    blocks = []
    if stages := details.get("stages"):
        blocks.append(tables.stages_table(stages))
    named = [("seed", str(details["seed"]))] if "seed" in details else []
    if versions := [*named, *((name, str(value)) for name, value in details.get("versions", {}).items())]:
        blocks.append(element("div", element("h3", "Seed and versions"), facts(versions)))
    for name, value in _grouped(details.get("settings", {})):
        blocks.append(element("div", element("h3", f"Settings: {name}"), facts(value)))
    return (
        section("Provenance", "provenance", element("div", lines(*blocks), class_="columns")) if blocks else Markup("")
    )


def _grouped(settings: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    loose = [(key, str(value)) for key, value in settings.items() if not isinstance(value, Mapping)]
    if loose:
        yield "general", loose
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield key, list(_flat(value))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
