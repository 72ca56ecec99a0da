"""The run's table on a terminal: what the report tells at greater length."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from rlhfv_jax.miniature.page.findings import headline
from rlhfv_jax.miniature.page.readings import (
    METRICS,
    OVERGENERALIZATION,
    VQA,
    Details,
    Metric,
    bounds,
    estimate,
    label,
    number,
    ordered,
    temperatures,
)

_COLUMNS = {
    "response_rate": "response",
    "mention_rate": "mention",
    "all_rate": "all errors",
    "coverage": "coverage",
    "mentions": "mentions",
    "repeats": "repeats",
    "vqa": "VQA",
    "overgeneralization_delta": "over-gen. Δ",
}
_SHOWN = [one for one in (*METRICS, VQA, OVERGENERALIZATION) if one.key in _COLUMNS]


def print_results(details: Details, report: str) -> None:
    """Prints the models' rates at the sampling temperature with 95% intervals, the headline, and where the page is."""
    console = _console()
    table = _table(f"Held-out scenes, temperature {temperatures(details)[0]}; percent, 95% intervals")
    for model in ordered(details["models"]):
        table.add_row(label(model), *(_cell(estimate(details, model, metric), metric) for metric in _SHOWN))
    console.print(table)
    if found := headline(details):
        console.print(f"{found.text}. {found.interval}.", highlight=False)
    console.print(f"World and annotator are synthetic. The whole story, with pictures: {report}", highlight=False)


def print_seeds(summary: Mapping[str, Any]) -> None:
    """Prints the means over several seeds with the lowest and highest seed, as `seeds.json` has them."""
    seeds: Sequence[int] = summary["seeds"]
    table = _table(f"Means over the seeds {', '.join(map(str, seeds))}, and the range over them")
    for model in ordered(summary["models"]):
        row = summary["models"][model]
        table.add_row(label(model), *(_cell(row.get(metric.key), metric) for metric in _SHOWN))
    _console().print(table)


def _console() -> Console:
    # In a pipe there is no width to fit; the table must not be cut to 80 columns there.
    console = Console()
    return console if console.is_terminal else Console(width=160)


def _table(title: str) -> Table:
    table = Table("model", title=title)
    for metric in _SHOWN:
        table.add_column(_COLUMNS[metric.key], justify="right")
    return table


def _cell(entry: Mapping[str, float] | None, metric: Metric) -> str:
    if entry is None:
        return "–"
    return f"{number(entry['value'], metric.digits)}\n{bounds(entry['low'], entry['high'], metric.digits)}"
