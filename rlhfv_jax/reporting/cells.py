"""Table cells: a figure measured here with its interval and count, a published one, and what is absent."""

from rlhfv_jax.evals.scores import Metric
from rlhfv_jax.reporting.markup import Markup, element
from rlhfv_jax.reporting.numbers import bounds, number

ABSENT = "–"


def measured(
    metric: Metric | None, digits: int = 1, signed: bool = False, remark: str = "", class_: str | None = None
) -> Markup:
    """Build the cell of a metric: value, interval, number of items; a dash where it was not measured.

    A metric of nothing (no value, though it was looked for) has its dash beside the number of items.
    """
    if metric is None:
        return absent("not measured", class_)
    small = []
    if metric.value is not None and metric.low is not None and metric.high is not None:
        small.append(element("small", bounds(metric.low, metric.high, digits, signed)))
    small.append(element("small", f"n = {metric.n}"))
    if remark:
        small.append(element("small", remark))
    return element("td", number(metric.value, digits, signed), *small, class_=class_)


def published(value: float | None, signed: bool = False, class_: str | None = None) -> Markup:
    """Build the cell of a figure that the paper prints, or has a dash for."""
    if value is None:
        return absent("not reported", class_)
    return element("td", number(value, signed=signed), class_=class_)


def absent(why: str, class_: str | None = None) -> Markup:
    """Build a dash that says why it stands there, to ears too."""
    return element("td", element("span", ABSENT, title=why, role="img", aria_label=why), class_=class_)


def band(text: str, columns: int) -> Markup:
    """Build a row that heads the rows under it."""
    return element(
        "tr", element("th", element("span", text), scope="rowgroup", colspan=columns, class_="band"), class_="band"
    )
