"""Tables that scroll in a box of their own, and the table of over-generalization that the paper has as its second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlhfv_jax.reporting.markup import Markup, element, join, lines, scrolling
from rlhfv_jax.reporting.numbers import number


def table(
    caption: str, heads: Markup, rows: Sequence[Markup], class_: str | None = None, foot: Markup | None = None
) -> Markup:
    """Build a table from its head, body and foot rows."""
    parts = [element("caption", caption), element("thead", heads), element("tbody", join(rows, "\n"))]
    if foot is not None:
        parts.append(element("tfoot", foot))
    return scrolling(element("table", lines(*parts), class_=class_), caption)


def column_head(name: str, title: str | None = None, arrow: str = "", class_: str | None = None) -> Markup:
    """Build a column's head; the arrow says which direction is better."""
    mark = ["\N{NO-BREAK SPACE}", element("span", arrow, class_="arrow", title=title)] if arrow else []
    return element("th", name, *mark, scope="col", class_=class_)


def scenes_heads(kinds: Sequence[str]) -> Markup:
    """Build the two head rows of a table with H_a, H_s and Δ for each kind of place."""
    top = [element("th", "Model", scope="col", rowspan=2)]
    top += [element("th", kind.capitalize(), scope="colgroup", colspan=3, class_="group") for kind in kinds]
    top.append(element("th", "Mean Δ", scope="col", rowspan=2, class_="group"))
    names = (join(["H", element("sub", "a")]), join(["H", element("sub", "s")]), "Δ")
    under = [
        element("th", name, scope="col", class_="group" if at == 0 else None)
        for _ in kinds
        for at, name in enumerate(names)
    ]
    return lines(element("tr", *top), element("tr", *under))


def scenes_table(
    caption: str,
    kinds: Sequence[str],
    rows: Mapping[str, tuple[Sequence[Sequence[float | None]], float]],
    class_: str | None = None,
) -> Markup:
    """Build that table from (H_a, H_s, Δ) for each kind of place, and the mean Δ."""
    body = []
    for model, (triples, mean) in rows.items():
        cells = [
            element("td", number(value, signed=at == 2), class_="group" if at == 0 else None)
            for triple in triples
            for at, value in enumerate(triple)
        ]
        last = element("td", number(mean, signed=True), class_="group")
        body.append(element("tr", element("th", model, scope="row"), *cells, last))
    return table(caption, scenes_heads(kinds), body, class_)
