"""What a benchmark gives: metrics with intervals and counts, settings, the judge, and one row an item."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlhfv_jax.errors import UserError


@dataclass(frozen=True)
class Metric:
    """A value (None: of nothing) with its 95 % interval (None where there is none) and the number of items it is of."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Scores:
    """One benchmark's result on one answer file; `judge` is None where no model judged."""

    benchmark: str
    metrics: Mapping[str, Metric]
    settings: Mapping[str, Any] = field(default_factory=dict)
    judge: str | None = None
    items: Sequence[Mapping[str, Any]] = ()


def summary(scores: Scores) -> dict[str, Any]:
    """What `scores.json` holds: all but the items."""
    return {
        "benchmark": scores.benchmark,
        "metrics": {name: asdict(metric) for name, metric in scores.metrics.items()},
        "settings": dict(scores.settings),
        "judge": scores.judge,
    }


def write_scores(scores: Scores, folder: str | Path) -> None:
    """Writes `items.jsonl`, then `scores.json`, each under a temporary name first.

    Raises UserError where they cannot be written.
    """
    folder = Path(folder)
    items = "".join(json.dumps(item, ensure_ascii=False, allow_nan=False) + "\n" for item in scores.items)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (
            ("items.jsonl", items),
            ("scores.json", json.dumps(summary(scores), indent=2, allow_nan=False) + "\n"),
        ):
            temporary = folder / (name + ".tmp")
            temporary.write_bytes(text.encode("utf-8", "surrogatepass"))
            os.replace(temporary, folder / name)
    except OSError as error:
        raise UserError(f"Cannot write scores to {folder}: {error.strerror or error}.") from error


def read_scores(folder: str | Path) -> Scores:
    """Reads back what `write_scores` wrote; items are empty where `items.jsonl` is absent.

    Raises UserError for a damaged file.
    """
    folder = Path(folder)
    path, items = folder / "scores.json", folder / "items.jsonl"
    try:
        values = json.loads(path.read_bytes())
        metrics = {name: Metric(**metric) for name, metric in values["metrics"].items()}
        lines = items.read_bytes().decode("utf-8", "surrogatepass").split("\n") if items.exists() else []
        rows = [json.loads(line) for line in lines if line]
        return Scores(values["benchmark"], metrics, values["settings"], values["judge"], rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a scores file ({error}).") from error
