"""Every figure of every scores file, the paired differences, and how each was come by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhfv_jax.errors import UserError
from rlhfv_jax.reporting import cells
from rlhfv_jax.reporting.markup import Markup, element, facts, lines, section
from rlhfv_jax.reporting.numbers import bounds, number
from rlhfv_jax.reporting.runs import Run
from rlhfv_jax.reporting.tables import column_head, table

DIGITS = 3
LISTED = 10  # members of a list that are shown


def figures_section(runs: Sequence[Run]) -> Markup:
    """Show one table a benchmark, folded, with a column a run."""
    benchmarks = list(dict.fromkeys(name for run in runs for name in run.scores))
    tables = [_benchmark(name, [run for run in runs if name in run.scores]) for name in benchmarks]
    note = "As the scores files have them, in their units: official names keep their official units."
    return section("All figures", "figures", element("p", note, class_="note"), *tables) if tables else Markup("")


def differences_section(runs: Sequence[Run]) -> Markup:
    """Show the paired differences that `evaluate --compare` found; nothing where there are none."""
    rows = [row for run in runs for row in _differences(run)]
    if not rows:
        return Markup("")
    note = (
        "This run less the other on the questions that both answer: 95 % bootstrap interval of the mean difference, "
        "two-sided p by flipping signs."
    )
    names = ("Benchmark", "Figure", "Less that of", "Difference", "p", "n")
    heads = [element("th", "Run", scope="col"), *(column_head(name) for name in names)]
    return section(
        "Paired differences",
        "differences",
        element("p", note, class_="note"),
        table("Paired differences", element("tr", *heads), rows),
    )


def provenance_section(runs: Sequence[Run]) -> Markup:
    """Show judge and settings of every score."""
    blocks = []
    for run in runs:
        for name, scores in run.scores.items():
            pairs = [("judge", scores.judge)] if scores.judge else []
            settings = {key: value for key, value in scores.settings.items() if key != "compared"}
            pairs += list(_flat(settings))
            if pairs:
                blocks.append(element("div", element("h3", f"{run.name}: {name}"), facts(pairs)))
    if not blocks:
        return Markup("")
    return section("How they were scored", "provenance", element("div", lines(*blocks), class_="columns"))


def _benchmark(name: str, runs: Sequence[Run]) -> Markup:
    metrics = list(dict.fromkeys(metric for run in runs for metric in run.scores[name].metrics))
    rows = [
        element(
            "tr",
            element("th", metric, scope="row"),
            *(cells.measured(run.metric(name, metric), DIGITS) for run in runs),
        )
        for metric in metrics
    ]
    heads = [element("th", "Figure", scope="col"), *(column_head(run.name) for run in runs)]
    count = f"{len(metrics)} figure{'' if len(metrics) == 1 else 's'}"
    return element(
        "details",
        lines(element("summary", element("b", name), f" {count}"), table(name, element("tr", *heads), rows, "figures")),
    )


def _differences(run: Run) -> Iterator[Markup]:
    for name, scores in run.scores.items():
        record = scores.settings.get("compared")
        if record is None:
            continue
        try:
            for measure, found in record["differences"].items():
                ends = bounds(float(found["low"]), float(found["high"]), DIGITS, signed=True)
                value = number(float(found["difference"]), DIGITS, signed=True)
                yield element(
                    "tr",
                    element("th", run.name, scope="row"),
                    element("td", name),
                    element("td", measure),
                    element("td", str(record["answers_file"])),
                    element("td", value, element("small", ends)),
                    element("td", f"{float(found['p']):.3g}"),
                    element("td", str(int(found["n"]))),
                )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"The scores of {run.name}, {name}: 'compared' is damaged ({error!r}).") from error


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            more = f", and {len(value) - LISTED} more" if len(value) > LISTED else ""
            yield f"{prefix}{key}", ", ".join(map(str, value[:LISTED])) + more if value else "none"
        else:
            yield f"{prefix}{key}", str(value)
