"""Numbers as pages print them."""

from __future__ import annotations


def number(value: float | None, digits: int = 1, signed: bool = False) -> str:
    """Write a number with a true minus sign, and a plus where `signed`; a dash where there is none."""
    if value is None or value != value:
        return "–"
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    # A rounded zero has no sign.
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def bounds(low: float, high: float, digits: int = 1, signed: bool = False) -> str:
    """Write an interval's ends."""
    between = "–" if low >= 0 and not signed else " to "
    return number(low, digits, signed) + between + number(high, digits, signed)
