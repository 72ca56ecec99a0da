"""The page of `report`: what runs scored, beside what the paper prints."""

from __future__ import annotations

from collections.abc import Sequence

from rlhfv_jax.reporting.document import document
from rlhfv_jax.reporting.examples import examples_section
from rlhfv_jax.reporting.figures import differences_section, figures_section, provenance_section
from rlhfv_jax.reporting.markup import Markup, element, join, lines
from rlhfv_jax.reporting.paper import tables_section
from rlhfv_jax.reporting.runs import Point, Run
from rlhfv_jax.reporting.scaling import scaling_section

ANCHORS = {
    "tables": "The paper's tables",
    "scaling": "Fig. 2",
    "differences": "Paired differences",
    "examples": "Worst answers",
    "figures": "All figures",
    "provenance": "How they were scored",
}


def page(runs: Sequence[Run], points: Sequence[Point], title: str, examples: int) -> str:
    """Build the whole page; `examples` answers of each run and benchmark are shown.

    Raises:
      UserError: a scores file has a part that the page cannot show.
    """
    sections = {
        "tables": tables_section(runs),
        "scaling": scaling_section(points),
        "differences": differences_section(runs),
        "examples": examples_section(runs, examples),
        "figures": figures_section(runs),
        "provenance": provenance_section(runs),
    }
    there = {name: part for name, part in sections.items() if part}
    links = [element("li", element("a", ANCHORS[name], href=f"#{name}")) for name in there]
    nav = element("nav", element("ul", *links), aria_label="Sections")
    return document(title, element("header", lines(*_head(runs, title), nav)), element("main", lines(*there.values())))


def _head(runs: Sequence[Run], title: str) -> list[Markup]:
    parts = [element("h1", title)]
    for run in runs:
        names = [element("b", run.name), ": ", ", ".join(run.scores)]
        parts.append(element("p", join(names), class_="lead"))
    return parts
