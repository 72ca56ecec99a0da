"""A run's numbers in one record: rates with intervals, differences, curves, times and settings, for details.json."""

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rlhfv_jax import experiment, metrics
from rlhfv_jax.miniature import evaluation, rates, recipe, world


def details(
    d: recipe.Demo, folder: Path, scored: Mapping[str, evaluation.Evaluated], scenes: Sequence[world.Scene]
) -> dict[str, Any]:
    """Everything the report shows besides pictures, as `report.write` wants it: plain values, ready for JSON."""
    compared = {f"{after}-{before}": (scored[before], scored[after]) for after, before in recipe.comparisons(d)}
    curve = recipe.scaling_curve(d)
    sampled = {name: rates.summarize(scored[name].sampled) for name in curve.values()}
    stages = json.loads((folder / "stages.json").read_text())
    found = {
        "seed": d.seed,
        "versions": {name: metadata.version(name) for name in experiment.PACKAGES}
        | {"python": platform.python_version()},
        "settings": dataclasses.asdict(d),
        "stages": [{"name": name, **spent} for name, spent in stages.items()],
        "models": {name: one.details() for name, one in scored.items()},
        "differences": {name: evaluation.differences(*two, scenes) for name, two in compared.items()},
        "relative": {name: evaluation.relative_changes(*two) for name, two in compared.items()},
        "scaling": [
            {"pairs": count} | {key: sampled[name][key]._asdict() for key in ("response_rate", "coverage")}
            for count, name in curve.items()
        ],
        "curves": {name: metrics.read(folder / name / "metrics.jsonl") for name in ("ddpo", "dpo", "ddpo_literal")},
        "pairs": json.loads((folder / "pairs" / "summary.json").read_text()),
    }
    return json.loads(json.dumps(found))  # tuples and lists are one thing there
