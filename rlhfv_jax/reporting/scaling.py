"""The paper's Fig. 2: hallucination rate and number of hallucinated segments against the number of samples."""

from __future__ import annotations

from collections.abc import Sequence

from rlhfv_jax.errors import UserError
from rlhfv_jax.evals.scores import Metric
from rlhfv_jax.reporting import cells
from rlhfv_jax.reporting.charts import STYLES, Series, curves_chart, legend
from rlhfv_jax.reporting.markup import Markup, element, lines, section
from rlhfv_jax.reporting.runs import Point
from rlhfv_jax.reporting.tables import column_head, table

BENCHMARK = "mhumaneval"
PANELS = (("all", "Hallucination rate, %", 1), ("segments", "Hallucinated segments", 0))  # metric, title, digits


def scaling_section(points: Sequence[Point]) -> Markup:
    """Show both panels with one line a series, and the numbers behind them; nothing where there is no point.

    Raises:
      UserError: a point has no MHumanEval figures, without which it has no place in the figure.
    """
    if not points:
        return Markup("")
    names = list(dict.fromkeys(point.series for point in points))
    if len(names) > STYLES:
        raise UserError(f"--scaling: {len(names)} series; the figure can tell {STYLES} apart.")
    charts = [
        curves_chart(title, [_series(points, name, at, key) for at, name in enumerate(names)], "preference samples")
        for key, title, _ in PANELS
    ]
    told = (
        "MHumanEval, all types of hallucination, as the paper's Fig. 2; bars are 95 % bootstrap intervals. The paper "
        "prints no figures for its two lines, so none are drawn; it says that 200 of its samples do what 2.2k rankings "
        "of LLaVA-RLHF do."
    )
    counts = {_metric(point, "all").n for point in points}
    if len(counts) > 1:
        told += " The points are of different numbers of answers, so their numbers of segments do not compare."
    return section(
        "Fig. 2: more samples",
        "scaling",
        element("p", told, class_="note"),
        legend(names),
        element("div", lines(*charts), class_="charts"),
        _table(points),
    )


def _series(points: Sequence[Point], name: str, style: int, key: str) -> Series:
    mine = [point for point in points if point.series == name]
    found = [_metric(point, key) for point in mine]
    values = [metric.value or 0.0 for metric in found]  # _metric has checked that there is one
    lows = [value if metric.low is None else metric.low for metric, value in zip(found, values, strict=True)]
    highs = [value if metric.high is None else metric.high for metric, value in zip(found, values, strict=True)]
    return Series(name, [point.samples for point in mine], values, lows, highs, style)


def _metric(point: Point, key: str) -> Metric:
    metric = point.run.metric(BENCHMARK, key)
    if metric is None or metric.value is None:
        raise UserError(f"--scaling={point.run.name} has no {key!r} of {BENCHMARK}, which the figure is drawn from.")
    return metric


def _table(points: Sequence[Point]) -> Markup:
    rows = [
        element(
            "tr",
            element("th", point.series, scope="row"),
            element("td", str(point.samples)),
            *(cells.measured(_metric(point, key), digits) for key, _, digits in PANELS),
        )
        for point in points
    ]
    heads = [
        element("th", "Series", scope="col"),
        column_head("Samples"),
        *(column_head(title) for _, title, _ in PANELS),
    ]
    return table("The numbers behind Fig. 2", element("tr", *heads), rows)
