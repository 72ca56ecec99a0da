"""The run's table on a terminal: what the report tells at greater length."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from rlhfv_jax.miniature.page.findings import headline
from rlhfv_jax.miniature.page.readings import (
    METRICS,
    OVERGENERALIZATION,
    VQA,
    Details,
    Metric,
    estimate,
    label,
    ordered,
    temperatures,
)
from rlhfv_jax.reporting.numbers import bounds, number

_COLUMNS = {
    "response_rate": "response",
    "mention_rate": "mention",
    "all_rate": "errors",
    "coverage": "coverage",
    "mentions": "mentions",
    "repeats": "repeats",
    "vqa": "VQA",
    "overgeneralization_delta": "Δ",
}
WIDE = 120  # columns of a terminal that has room for intervals
_SHOWN = [one for one in (*METRICS, VQA, OVERGENERALIZATION) if one.key in _COLUMNS]


def print_results(details: Details, report: str) -> None:
    """Prints the models' rates at the sampling temperature with 95% intervals, the headline, and where the page is."""
    console = _console()
    rows = {
        model: {metric.key: estimate(details, model, metric) for metric in _SHOWN}
        for model in ordered(details["models"])
    }
    title = f"Held-out scenes, temperature {temperatures(details)[0]}; percent, Δ: over-generalization"
    console.print(_table(title, "95% intervals", rows, console.width))
    if found := headline(details):
        console.print(f"{found.text}. {found.interval}.", highlight=False)
    console.print(f"World and annotator are synthetic. The whole story, with pictures: {report}", highlight=False)


def print_seeds(summary: Mapping[str, Any]) -> None:
    """Prints the means over several seeds with the lowest and highest seed, as `seeds.json` has them."""
    console, rows = _console(), summary["models"]
    title = f"Means over the seeds {', '.join(map(str, summary['seeds']))}"
    console.print(_table(title, "ranges over them", {model: rows[model] for model in ordered(rows)}, console.width))


def _console() -> Console:
    # In a pipe there is no width to fit; the table must not be cut to 80 columns there.
    console = Console()
    return console if console.is_terminal else Console(width=160)


def _table(title: str, ends: str, rows: Mapping[str, Mapping[str, Any]], width: int) -> Table:
    """Rates by model; `ends` names the low and high ends of the entries, which a narrow terminal has no room for."""
    wide = width >= WIDE
    table = Table("model", title=f"{title}, {ends}" if wide else title, box=box.HEAVY_HEAD if wide else box.SIMPLE_HEAD)
    table.padding = (0, 1) if wide else (0, 0, 0, 1)
    for metric in _SHOWN:
        table.add_column(_COLUMNS[metric.key], justify="right")
    for model, row in rows.items():
        table.add_row(label(model), *(_cell(row.get(metric.key), metric, wide) for metric in _SHOWN))
    return table


def _cell(entry: Mapping[str, float] | None, metric: Metric, wide: bool) -> str:
    if entry is None:
        return "–"
    ends = f"\n{bounds(entry['low'], entry['high'], metric.digits)}" if wide else ""
    return f"{number(entry['value'], metric.digits)}{ends}"
