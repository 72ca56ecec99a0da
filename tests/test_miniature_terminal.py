"""The table on the terminal: whole at any usual width, and the same numbers as the record."""

import io

import pytest
from rich.console import Console

from rlhfv_jax.miniature import terminal


def entry(value):
    return {"value": value, "low": value - 3.21, "high": value + 3.21}


ROWS = {
    model: {metric.key: entry(10.0 * row + column) for column, metric in enumerate(terminal._SHOWN)}
    for row, model in enumerate(("base", "it_vqa", "ddpo_literal", "ddpo_1400"), 2)
}


@pytest.mark.parametrize("width", [80, 100, 130, 200])
def test_nothing_is_cut_at_any_usual_width(width):
    console = Console(width=width, file=io.StringIO())
    console.print(terminal._table("title", "95% intervals", ROWS, width))
    printed = console.file.getvalue()
    assert "…" not in printed
    assert all(word in printed for word in terminal._COLUMNS.values())
    wide = width >= terminal.WIDE
    assert ("95% intervals" in printed) == wide
    for row in ROWS.values():
        for metric in terminal._SHOWN:
            one = row[metric.key]
            assert f"{one['value']:.{metric.digits}f}" in printed
            assert (f"{one['low']:.{metric.digits}f}–{one['high']:.{metric.digits}f}" in printed) == wide
