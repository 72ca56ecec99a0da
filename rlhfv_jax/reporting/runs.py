"""What a report is made of: the `scores.json` files of each run, read strictly and named."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhfv_jax.errors import UserError
from rlhfv_jax.evals.scores import Metric, Scores, read_scores

FILE = "scores.json"


@dataclass(frozen=True)
class Run:
    """One model's scores by benchmark, under the name that the page gives it."""

    name: str
    scores: Mapping[str, Scores]

    def metric(self, benchmark: str, name: str) -> Metric | None:
        """None where the run has no such benchmark or metric."""
        scores = self.scores.get(benchmark)
        return None if scores is None else scores.metrics.get(name)


@dataclass(frozen=True)
class Point:
    """One run of a data-scaling series: how many preference samples it was trained on, and its scores."""

    series: str
    samples: int
    run: Run


def read_runs(named: Sequence[str]) -> list[Run]:
    """Runs of arguments `NAME=DIR` or `DIR`, whose name is then the folder's.

    Raises:
      UserError: an argument names nothing that can be read, or two have one name.
    """
    runs = [read_run(*_named(argument)) for argument in named]
    for at, run in enumerate(runs):
        if any(run.name == other.name for other in runs[:at]):
            raise UserError(f"Two runs are named {run.name!r}; give them names of their own, as NAME=DIR.")
    return runs


def read_points(named: Sequence[str]) -> list[Point]:
    """Points of arguments `SERIES:SAMPLES=DIR`, in the order of their samples within each series.

    Raises UserError for an argument of another form, or a point given twice.
    """
    points = []
    for argument in named:
        head, equals, folder = argument.partition("=")
        series, colon, samples = head.rpartition(":")
        if not (equals and colon and series.strip() and samples.strip().isdecimal() and folder):
            raise UserError(f"--scaling={argument}: expected SERIES:SAMPLES=DIR, as RLHF-V:200=scores/rlhfv-200.")
        points.append(Point(series.strip(), int(samples), read_run(argument, folder)))
    for at, point in enumerate(points):
        if any((point.series, point.samples) == (other.series, other.samples) for other in points[:at]):
            raise UserError(f"--scaling: the series {point.series!r} has two points at {point.samples} samples.")
    order = list(dict.fromkeys(point.series for point in points))
    return sorted(points, key=lambda point: (order.index(point.series), point.samples))


def read_run(name: str, folder: str | Path) -> Run:
    """The scores in a folder: its own `scores.json`, and those one folder down.

    Raises:
      UserError: there is none, one is damaged, or a benchmark stands there twice.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder of scores {folder}; `rlhfv evaluate --out={folder}` writes one.")
    folders = sorted(path.parent for path in (*folder.glob(FILE), *folder.glob(f"*/{FILE}")))
    if not folders:
        raise UserError(f"{folder} holds no {FILE}, neither itself nor one folder down; `rlhfv evaluate` writes them.")
    found: dict[str, Scores] = {}
    for one in folders:
        scores = _checked(one)
        if scores.benchmark in found:
            raise UserError(f"{folder} holds two scores of {scores.benchmark}; a run has one of each benchmark.")
        found[scores.benchmark] = scores
    return Run(name, found)


def _named(argument: str) -> tuple[str, str]:
    name, equals, folder = argument.partition("=")
    if not equals or Path(argument).is_dir():
        return Path(argument).resolve().name, argument
    if not name.strip() or not folder:
        raise UserError(f"--runs={argument}: expected NAME=DIR, or DIR.")
    return name.strip(), folder


def _checked(folder: Path) -> Scores:
    """The folder's scores; raises UserError on anything that `evaluate` would not have written."""
    where = folder / FILE
    try:
        scores = read_scores(folder)
    except RecursionError as error:
        raise UserError(f"{where} is not a scores file (nested too deeply).") from error
    if not isinstance(scores.benchmark, str) or not scores.benchmark:
        raise UserError(f"{where}, benchmark: expected a name, found {scores.benchmark!r}.")
    if not isinstance(scores.settings, Mapping) or not (scores.judge is None or isinstance(scores.judge, str)):
        raise UserError(f"{where}: expected settings by name, and a judge's name or null.")
    for name, metric in scores.metrics.items():
        _check(metric, f"{where}, {name}")
    for row, item in enumerate(scores.items):
        if not isinstance(item, Mapping):
            raise UserError(f"{folder / 'items.jsonl'}, row {row}: expected a JSON object.")
    return scores


def _check(metric: Metric, where: str) -> None:
    known = [metric.low, metric.high]
    if not (metric.value is None or _finite(metric.value)):
        raise UserError(f"{where}, value: expected a number or null, found {metric.value!r}.")
    if not (all(map(_finite, known)) or known == [None, None]):
        raise UserError(f"{where}: expected low and high as two numbers or two nulls, found {known}.")
    if isinstance(metric.n, bool) or not isinstance(metric.n, int) or metric.n < 0:
        raise UserError(f"{where}, n: expected the number of items, found {metric.n!r}.")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
