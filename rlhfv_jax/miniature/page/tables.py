"""The result tables: this world's rates with their intervals, and the paper's figures in tables of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhfv_jax.miniature.page.readings import (
    METRICS,
    OVERGENERALIZATION,
    VQA,
    Details,
    Difference,
    Metric,
    estimate,
    label,
    ordered,
    relative,
)
from rlhfv_jax.reporting import published
from rlhfv_jax.reporting.markup import Markup, element, join
from rlhfv_jax.reporting.numbers import bounds, number
from rlhfv_jax.reporting.tables import column_head, scenes_table, table

_HEADS = {
    "response_rate": "Response rate",
    "mention_rate": "Mention rate",
    "all_rate": "All errors",
    "number_rate": "Number",
    "position_rate": "Position",
    "color_rate": "Color",
    "coverage": "Coverage",
    "mentions": "Mentions / answer",
    "repeats": "Repeats / answer",
    "vqa": "VQA accuracy",
    "overgeneralization_delta": "Over-gen. Δ",
}
_ARROWS = {"lower": "↓", "higher": "↑", None: ""}


def _paper_row(row: published.Main | published.Ablation) -> tuple[float | None, ...]:
    """Object HalBench response and mention; MHumanEval objects, all, number, position; VQAv2."""
    objhal = (row.objhal_response, row.objhal_mention) if isinstance(row, published.Main) else (None, None)
    return (*objhal, row.mhe_object, row.mhe_all, row.mhe_number, row.mhe_position, row.vqa)


_PAPER_HEADS = ("ObjHal response", "ObjHal mention", "MHE objects", "MHE all", "MHE number", "MHE position", "VQAv2")
_PAPER_ROWS: dict[str, tuple[float | None, ...]] = {
    "Muffin (base)": _paper_row(published.TABLE_1["Muffin"]),
    "IT-VQA only": _paper_row(published.TABLE_3["w/ IT-VQA only"]),
    "Vanilla DPO": _paper_row(published.TABLE_3["w/ vanilla DPO"]),
    "RLHF-V (DDPO)": _paper_row(published.TABLE_1["RLHF-V"]),
}


def rates_table(details: Details, temperature: str, full: bool) -> Markup:
    """Build the table of one temperature; `full` adds what has none, VQA accuracy and over-generalization."""
    models = [name for name in ordered(details["models"]) if _row(details, name, temperature)]
    metrics = [one for one in METRICS if any(estimate(details, name, one, temperature) for name in models)]
    if full:
        whole = (VQA, OVERGENERALIZATION)
        metrics += [one for one in whole if any(estimate(details, name, one) for name in models)]
    columns = [_column(details, models, metric, temperature) for metric in metrics]
    heads = [_head(metric) for metric in metrics]
    rows = [
        element("tr", element("th", label(name), scope="row"), *(column[at] for column in columns))
        for at, name in enumerate(models)
    ]
    caption = f"Hallucination by model at T = {temperature}"
    return table(caption, element("tr", element("th", "Model", scope="col"), *heads), rows)


def paper_table() -> Markup:
    """Build the paper's Tables 1 and 3, the change relative to its base model in small type."""
    base = _PAPER_ROWS["Muffin (base)"]
    heads = [element("th", "Model (13B)", scope="col"), *(column_head(name) for name in _PAPER_HEADS)]
    rows = []
    for name, values in _PAPER_ROWS.items():
        cells = []
        for value, before in zip(values, base, strict=True):
            change = relative(before, value) if value is not None and before is not None and values != base else None
            small = [] if change is None else [element("small", f"{number(change, signed=True)}%")]
            cells.append(element("td", number(value), *small))
        rows.append(element("tr", element("th", name, scope="row"), *cells))
    return table("The paper's Tables 1 and 3", element("tr", *heads), rows, "paper")


def world_scenes_table(details: Details) -> Markup:
    """Build the over-generalization table, a group of columns per kind of place."""
    entries = {name: details["models"][name].get("overgeneralization") for name in ordered(details["models"])}
    present = {name: entry for name, entry in entries.items() if entry}
    kinds = list(dict.fromkeys(kind for entry in present.values() for kind in entry["kinds"]))
    rows: dict[str, tuple[Sequence[Sequence[float | None]], float]] = {}
    for name, entry in present.items():
        cells = [[entry["kinds"].get(kind, {}).get(key) for key in ("h_a", "h_s", "delta")] for kind in kinds]
        rows[label(name)] = (cells, entry["mean_delta"]["value"])
    return scenes_table("Over-generalization per kind of place", kinds, rows)


def paper_scenes_table() -> Markup:
    """Build the paper's Table 2."""
    return scenes_table("The paper's Table 2", published.SCENES, published.TABLE_2, "paper")


def differences_table(details: Details) -> Markup:
    """Build the table of all paired differences, each within noise or not."""
    given = details["differences"]
    every = (*METRICS, VQA, OVERGENERALIZATION)
    metrics = [one for one in every if any(one.key in entry for entry in given.values())]
    rows = []
    for pair, entry in given.items():
        after, _, before = pair.partition("-")
        name = f"{label(after)} − {label(before)}" if before else pair
        cells = [_difference_cell(entry.get(metric.key), metric) for metric in metrics]
        rows.append(element("tr", element("th", name, scope="row"), *cells))
    heads = [element("th", "Difference", scope="col"), *(_head(metric) for metric in metrics)]
    return table("Paired differences, in points", element("tr", *heads), rows)


def scaling_table(details: Details) -> Markup:
    """Build the numbers behind the scaling curve."""
    points = sorted(details["scaling"], key=lambda point: point["pairs"])
    keys = [key for key in ("response_rate", "coverage") if any(key in point for point in points)]
    rows = []
    for point in points:
        cells = [_estimate_cell(point.get(key), 1, best=False) for key in keys]
        rows.append(element("tr", element("th", str(point["pairs"]), scope="row"), *cells))
    heads = [element("th", "Pairs", scope="col"), *(column_head(_HEADS[key]) for key in keys)]
    return table("Rates by number of pairs", element("tr", *heads), rows)


def stages_table(stages: Sequence[Mapping[str, Any]]) -> Markup:
    """Build the table of stage times with their sum."""
    rows = [_stage(str(one["name"]), one["seconds"], one["cpu_seconds"]) for one in stages]
    total = _stage("Total", sum(one["seconds"] for one in stages), sum(one["cpu_seconds"] for one in stages))
    heads = [column_head(name) for name in ("Wall seconds", "CPU seconds")]
    return table("Stage times", element("tr", element("th", "Stage", scope="col"), *heads), rows, foot=total)


def _stage(name: str, *seconds: float) -> Markup:
    return element("tr", element("th", name, scope="row"), *(element("td", number(one)) for one in seconds))


def _row(details: Details, model: str, temperature: str) -> Any:
    return details["models"][model].get("temperatures", {}).get(temperature)


def _column(details: Details, models: Sequence[str], metric: Metric, temperature: str) -> list[Markup]:
    entries = [estimate(details, name, metric, temperature) for name in models]
    # Ties are judged as they are printed.
    shown = [None if entry is None else round(entry["value"], metric.digits) for entry in entries]
    pick: dict[str | None, Callable[..., float]] = {"lower": min, "higher": max}
    known = [value for value in shown if value is not None]
    best = pick[metric.better](known) if metric.better and len(known) > 1 else None
    return [
        _estimate_cell(entry, metric.digits, best=value is not None and value == best)
        for entry, value in zip(entries, shown, strict=True)
    ]


def _estimate_cell(entry: Mapping[str, float] | None, digits: int, best: bool) -> Markup:
    if entry is None:
        return element("td", "–")
    small = element("small", bounds(entry["low"], entry["high"], digits))
    return element("td", _value(number(entry["value"], digits), best), small)


def _value(text: str, best: bool) -> Markup:
    return element("strong", text, title="best point estimate of the column") if best else join([text])


def _difference_cell(entry: Mapping[str, float] | None, metric: Metric) -> Markup:
    if entry is None:
        return element("td", "–")
    change = Difference(entry["value"], entry["low"], entry["high"])
    reading = change.reading(metric)
    small = element("small", bounds(change.low, change.high, metric.digits, signed=True))
    word = element("small", reading, class_="reading " + reading.replace(" ", "-"))
    return element("td", number(change.value, metric.digits, signed=True), small, word)


def _head(metric: Metric) -> Markup:
    arrow = _ARROWS[metric.better]
    return column_head(_HEADS[metric.key], f"{metric.better} is better" if metric.better else None, arrow)
