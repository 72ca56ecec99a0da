"""Line charts as inline SVG, without a script: colors come from the page, and dashes tell the lines apart as well."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlhfv_jax.reporting.markup import Markup, element, join, lines

WIDTH, HEIGHT = 400, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 34, 44
STYLES = 6  # colors with a dash pattern each in the style sheet


@dataclass(frozen=True)
class Series:
    """Points of one line; `lows` and `highs` are error bars, `style` picks color and dashes."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    lows: Sequence[float] = ()
    highs: Sequence[float] = ()
    style: int = 0


@dataclass(frozen=True)
class _Scale:
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)


def points_chart(title: str, series: Series, x_label: str, top: float) -> Markup:
    """Draw points with error bars and their values, the y axis in percent from 0 to `top` or beyond."""
    scale = _Scale((-0.05 * (right := max(*series.xs, 1.0)), right * 1.05), (0.0, max(top, *series.highs)))
    marks = _points(series, scale, values=True)
    told = ", ".join(f"{y:.1f} at {x:g}" for x, y in zip(series.xs, series.ys, strict=True))
    return _svg(title, f"{title}: {told}.", scale, x_label, marks, list(series.xs))


def curves_chart(title: str, series: Sequence[Series], x_label: str) -> Markup:
    """Draw several lines of points with error bars, the y axis from 0."""
    xs = sorted({x for one in series for x in one.xs})
    right, top = max(*xs, 1.0), max(max(one.highs) for one in series)
    scale = _Scale((-0.05 * right, right * 1.05), (0.0, (top or 1.0) * 1.05))
    marks = [mark for one in series for mark in _points(one, scale, values=len(series) == 1)]
    told = "; ".join(
        f"{one.name}: " + ", ".join(f"{y:.1f} at {x:g}" for x, y in zip(one.xs, one.ys, strict=True)) for one in series
    )
    crowded = any(later - earlier < right / 9 for earlier, later in itertools.pairwise(xs))
    return _svg(title, f"{title}: {told}.", scale, x_label, marks, ticks(0.0, right) if crowded else xs)


def lines_chart(
    title: str, series: Sequence[Series], x_label: str, limits: tuple[float, float] | None = None
) -> Markup:
    """Draw several lines, each faint as measured and strong as a moving mean where there are many points."""
    xs = [x for one in series for x in one.xs]
    ys = [y for one in series for y in one.ys]
    low, high = limits or (min(*ys, 0.0), max(ys))
    scale = _Scale((min(xs), max(max(xs), min(xs) + 1)), (low, max(high, low + 1e-6)))
    marks: list[Markup] = []
    for one in series:
        mean = smooth(one.ys)
        if mean != list(one.ys):
            marks.append(_path(one, scale, "faint"))
        marks.append(_path(Series(one.name, one.xs, mean, style=one.style), scale))
    told = "; ".join(f"{one.name} from {one.ys[0]:.3g} to {one.ys[-1]:.3g}" for one in series)
    return _svg(title, f"{title}: {told}.", scale, x_label, marks, None)


def legend(names: Sequence[str]) -> Markup:
    """Explain the lines of charts that share their styles: the first name has style 0."""
    items = []
    for at, name in enumerate(names):
        path = element("path", d="M0 6H34", class_=f"line s{at % STYLES}")
        swatch = element("svg", path, viewBox="0 0 34 12", width=34, height=12, aria_hidden="true")
        items.append(element("li", swatch, name))
    return element("ul", join(items), class_="legend")


def smooth(values: Sequence[float]) -> list[float]:
    """Return the centered moving mean over a tenth of the points; fewer than 40 stay as they are."""
    if len(values) < 40:
        return list(values)
    reach = len(values) // 20
    windows = [values[max(at - reach, 0) : at + reach + 1] for at in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return round values within low..high, about `wanted` of them."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [at * step for at in range(first, math.floor(high / step + 1e-9) + 1)]


def _svg(
    title: str, told: str, scale: _Scale, x_label: str, marks: Sequence[Markup], x_ticks: Sequence[float] | None
) -> Markup:
    parts = [element("title", told), _text(title, 0, 16, "title", "start")]
    for value in ticks(*scale.y):
        left, up = scale.at(scale.x[0], value)
        parts.append(element("path", d=f"M{left:.1f} {up:.1f}H{WIDTH - _RIGHT}", class_="grid"))
        parts.append(_text(f"{value:g}", left - 7, up + 4, "tick", "end"))
    for value in ticks(*scale.x) if x_ticks is None else x_ticks:
        across, up = scale.at(value, scale.y[0])
        parts.append(element("path", d=f"M{across:.1f} {up:.1f}v5", class_="axis"))
        parts.append(_text(f"{value:g}", across, up + 19, "tick", "middle"))
    left, up = scale.at(scale.x[0], scale.y[0])
    parts.append(element("path", d=f"M{left:.1f} {up:.1f}H{WIDTH - _RIGHT}", class_="axis"))
    parts.append(_text(x_label, WIDTH - _RIGHT, HEIGHT - 6, "tick", "end"))
    return element("svg", lines(*parts, *marks), viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", class_="chart")


def _points(series: Series, scale: _Scale, values: bool) -> list[Markup]:
    marks = [_path(series, scale)]
    for x, y, low, high in zip(series.xs, series.ys, series.lows, series.highs, strict=True):
        (across, up), (_, under), (_, over) = scale.at(x, y), scale.at(x, low), scale.at(x, high)
        bar = f"M{across:.1f} {under:.1f}V{over:.1f}M{across - 4:.1f} {under:.1f}h8M{across - 4:.1f} {over:.1f}h8"
        marks.append(element("path", d=bar, class_=f"bar s{series.style}"))
        marks.append(element("circle", cx=f"{across:.1f}", cy=f"{up:.1f}", r=4, class_=f"dot s{series.style}"))
        if values:
            marks.append(_text(f"{y:.1f}", across, over - 7, "value", "middle"))
    return marks


def _path(series: Series, scale: _Scale, extra: str = "") -> Markup:
    points = [scale.at(x, y) for x, y in zip(series.xs, series.ys, strict=True)]
    data = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return element("path", d=data, class_=f"line s{series.style} {extra}".strip())


def _text(text: str, x: float, y: float, class_: str, anchor: str) -> Markup:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", class_=class_, text_anchor=anchor)
