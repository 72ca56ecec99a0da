"""The paper's Tables 1, 2 and 3 with rows measured here above the published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from rlhfv_jax.evals.scores import Metric
from rlhfv_jax.reporting import cells, published
from rlhfv_jax.reporting.markup import Markup, element, join, lines, section
from rlhfv_jax.reporting.runs import Run
from rlhfv_jax.reporting.tables import column_head, scenes_heads, table

OURS, THEIRS = "Measured here", f"Published: {published.SOURCE}"
LEXICAL = "lexical"


@dataclass(frozen=True)
class Column:
    """A column of Table 1 or 3: where its figures stand in our scores, and which way is better."""

    group: str
    head: str
    benchmark: str
    metric: str
    higher: bool = False


OBJHAL, MHE, MMHAL = "Object HalBench", "MHumanEval", "MMHal-Bench"
RATES = tuple(
    Column(MHE, head, "mhumaneval", metric)
    for head, metric in (("Object", "object"), ("Position", "position"), ("Number", "number"), ("All", "all"))
)
# People judged the paper's Resp. of MMHal-Bench, so it comes from labels and not from the judge's ratings.
RESPONSE = Column(MMHAL, "Resp.", "mhumaneval", "mmhal_resp")
VQA = Column("VQAv2", "Accuracy", "vqav2", "processed/accuracy", higher=True)
TABLE_1 = (
    Column(OBJHAL, "Resp.", "object_halbench", "resp"),
    Column(OBJHAL, "Mention", "object_halbench", "mention"),
    *RATES,
    Column(MMHAL, "Info.", "mmhal", "informativeness", higher=True),
    RESPONSE,
    *(
        Column("LLaVA-Bench", head, "llava_bench", metric, higher=True)
        for head, metric in (("Conv.", "conv"), ("Detail", "detail"), ("Comp.", "complex"))
    ),
    VQA,
)
TABLE_3 = (*RATES, RESPONSE, VQA)
SCENES_BENCHMARK, MEAN_DELTA = "over_generalization", "mean_delta"


def tables_section(runs: Sequence[Run]) -> Markup:
    """Show the three tables, each with what keeps a figure of ours from being the paper's."""
    reading = (
        "Percent; ↓ lower is better, ↑ higher is better. Measured figures have their 95 % bootstrap interval and the "
        "number of items n in small type; the paper prints neither. A dash was not measured here or not reported "
        "there; it is never a zero."
    )
    return section(
        "The paper's tables",
        "tables",
        element("p", reading, class_="note"),
        figures_table("Table 1: hallucination and helpfulness", TABLE_1, published.TABLE_1, runs),
        element("ul", *(element("li", one) for one in remarks(runs)), class_="note"),
        scenes(runs),
        figures_table("Table 3: ablations", TABLE_3, published.TABLE_3, runs),
    )


def remarks(runs: Sequence[Run]) -> list[str]:
    """What a reader has to know to compare our rows with the published ones."""
    told = [
        "The paper's VQAv2 is of test-dev, which only the test server scores; figures measured here are of val. "
        "GPT-4V's 77.2 is zero-shot.",
        "MMHal-Bench's Resp. is of people, in the paper and here; a judge's hallucination rate stands under all "
        "figures alone.",
    ]
    if any(_lexical(run, name) for run in runs for name in ("object_halbench", SCENES_BENCHMARK)):
        told.append(
            "Figures marked 'lexical' find objects by the synonym file alone; the paper has a chat model extract them "
            "first. On equal answers the two differ by several points."
        )
    for run in runs:
        judges = {name: scores.judge for name, scores in run.scores.items() if scores.judge}
        if judges:
            told.append(
                f"{run.name} was judged by: " + "; ".join(f"{name}, {who}" for name, who in judges.items()) + "."
            )
    return told


def figures_table(caption: str, columns: Sequence[Column], rows: Mapping[str, tuple], runs: Sequence[Run]) -> Markup:
    """Build Table 1 or 3; `rows` are the published ones, in the columns' order."""
    edges = _edges(columns)
    body = []
    if runs:
        body.append(cells.band(OURS, len(columns) + 1))
    for run in runs:
        found = [_cell(run, column, edge) for column, edge in zip(columns, edges, strict=True)]
        body.append(element("tr", element("th", run.name, scope="row"), *found))
    body.append(cells.band(THEIRS, len(columns) + 1))
    for model, values in rows.items():
        printed = [cells.published(value, class_=edge) for value, edge in zip(values, edges, strict=True)]
        body.append(element("tr", element("th", model, scope="row"), *printed, class_="published"))
    return table(caption, _heads(columns), body, "dense")


def scenes(runs: Sequence[Run]) -> Markup:
    """Build Table 2, or say that no run has its figures and show the published ones."""
    with_it = [run for run in runs if SCENES_BENCHMARK in run.scores]
    width = 3 * len(published.SCENES) + 2
    body = []
    if with_it:
        body.append(cells.band(OURS, width))
    for run in with_it:
        found = [
            cells.measured(
                run.metric(SCENES_BENCHMARK, name), 1, at == 2, remark(run, SCENES_BENCHMARK), None if at else "group"
            )
            for scene in published.SCENES
            for at, name in enumerate(scene_metrics(scene))
        ]
        delta = run.metric(SCENES_BENCHMARK, MEAN_DELTA)
        mean = cells.measured(delta, 1, True, remark(run, SCENES_BENCHMARK), "group")
        body.append(element("tr", element("th", run.name, scope="row"), *found, mean))
    body.append(cells.band(THEIRS, width))
    for model, (triples, average) in published.TABLE_2.items():
        printed = [
            cells.published(value, signed=at == 2, class_="group" if at == 0 else None)
            for triple in triples
            for at, value in enumerate(triple)
        ]
        last = cells.published(average, signed=True, class_="group")
        body.append(element("tr", element("th", model, scope="row"), *printed, last, class_="published"))
    caption = "Table 2: over-generalization, by scene"
    told = join(
        [
            "How often a scene's frequent objects are hallucinated over all answers (H",
            element("sub", "a"),
            ") and over answers about that scene (H",
            element("sub", "s"),
            "); Δ is the difference.",
            _defined(with_it) if with_it or not runs else " No run here has these figures.",
        ]
    )
    return lines(table(caption, scenes_heads(published.SCENES), body), element("p", told, class_="note"))


def _defined(runs: Sequence[Run]) -> str:
    """Which reading of the paper's text the measured figures are of."""
    names = {str(run.scores[SCENES_BENCHMARK].settings.get("definition", "")) for run in runs} - {""}
    return (
        f" Measured by definition {', '.join(sorted(names))} of docs/evaluate.md; the paper gives none."
        if names
        else ""
    )


def scene_metrics(scene: str) -> tuple[str, str, str]:
    """The metrics of one scene in our scores: H_a, H_s, Δ."""
    return f"{scene}/h_a", f"{scene}/h_s", f"{scene}/delta"


def _edges(columns: Sequence[Column]) -> list[str | None]:
    """The class of each column's cells: those that begin a group have a line before them."""
    before = [None, *columns[:-1]]
    return [
        "group" if last is None or last.group != column.group else None
        for last, column in zip(before, columns, strict=True)
    ]


def _cell(run: Run, column: Column, class_: str | None) -> Markup:
    metric: Metric | None = run.metric(column.benchmark, column.metric)
    return cells.measured(metric, remark=remark(run, column.benchmark), class_=class_)


def remark(run: Run, benchmark: str) -> str:
    """What a cell of this benchmark says of itself, where its figure is not quite the paper's."""
    return LEXICAL if _lexical(run, benchmark) else "val" if benchmark == "vqav2" else ""


def _lexical(run: Run, benchmark: str) -> bool:
    scores = run.scores.get(benchmark)
    return scores is not None and scores.settings.get("path") == LEXICAL


def _heads(columns: Sequence[Column]) -> Markup:
    top = [element("th", "Model", scope="col", rowspan=2)]
    for group, members in groupby(columns, key=lambda column: column.group):
        top.append(element("th", group, scope="colgroup", colspan=len(list(members)), class_="group"))
    under = [
        column_head(
            column.head,
            "higher is better" if column.higher else "lower is better",
            "↑" if column.higher else "↓",
            edge,
        )
        for column, edge in zip(columns, _edges(columns), strict=True)
    ]
    return lines(element("tr", *top), element("tr", *under))
