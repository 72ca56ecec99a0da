"""The sections that are charts: the scaling curve and the curves of preference training."""

from __future__ import annotations

from rlhfv_jax.miniature.page.readings import COVERAGE, RESPONSE, Details, label
from rlhfv_jax.miniature.page.tables import scaling_table
from rlhfv_jax.reporting.charts import STYLES, Series, legend, lines_chart, points_chart
from rlhfv_jax.reporting.markup import Markup, element, section

_PANELS: tuple[tuple[str, str, tuple[float, float] | None], ...] = (
    ("loss", "Loss", None),
    ("rewards/margins", "Reward margin", None),
    ("rewards/accuracies", "Rewards accuracy", (0.0, 1.0)),
)


def scaling_section(details: Details) -> Markup:
    """Show the response rate and coverage against the number of pairs, as the paper's Fig. 2."""
    points = sorted(details.get("scaling", []), key=lambda point: point["pairs"])
    charts = []
    for metric, title in ((RESPONSE, "Response rate, %"), (COVERAGE, "Coverage, %")):
        with_it = [point for point in points if metric.key in point]
        if with_it:
            values, lows, highs = ([point[metric.key][key] for point in with_it] for key in ("value", "low", "high"))
            series = Series(metric.label, [point["pairs"] for point in with_it], values, lows, highs)
            charts.append(points_chart(title, series, "preference pairs", top=100.0 if metric is COVERAGE else 80.0))
    if not charts:
        return Markup("")
    note = "DDPO with growing shares of the pairs, as the paper's Fig. 2; bars are 95% intervals. 0 pairs is the base."
    body = element("div", *charts, scaling_table(details), class_="charts")
    return section("More pairs", "scaling", element("p", note, class_="note"), body)


def training_section(details: Details) -> Markup:
    """Show loss, reward margin and rewards accuracy of every preference run."""
    runs = {name: rows for name, rows in details.get("curves", {}).items() if rows}
    charts = []
    for key, title, limits in _PANELS:
        series = []
        for at, (name, rows) in enumerate(runs.items()):
            with_it = [row for row in rows if key in row]
            if with_it:
                steps, values = [row["step"] for row in with_it], [row[key] for row in with_it]
                series.append(Series(label(name), steps, values, style=at % STYLES))
        if series:
            charts.append(lines_chart(title, series, "step", limits))
    if not charts:
        return Markup("")
    note = (
        "One line per preference run: faint as measured per batch, strong as the moving mean over a tenth of the run."
    )
    names = legend([label(name) for name in runs])
    return section(
        "Preference training",
        "training",
        element("p", note, class_="note"),
        names,
        element("div", *charts, class_="charts"),
    )
