"""The miniature once or on several seeds: each seed is a whole pipeline in a folder of its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhfv_jax import experiment
from rlhfv_jax.miniature import pipeline, recipe, terminal
from rlhfv_jax.miniature.page.readings import METRICS, OVERGENERALIZATION, RESPONSE, VQA, Details, estimate


def run(config: Mapping[str, Any], folder: Path) -> None:
    """Runs or continues the miniature as `configs/demo.py` describes it and prints its table.

    With one seed everything lies in `folder`; with more, `folder/seed-N` holds each pipeline and `folder/seeds.json`
    their summary.
    """
    demo = recipe.build(config)
    if demo.seeds == 1:
        terminal.print_results(pipeline.run(config, folder), str(folder / "report.html"))
        return
    found = {}
    for seed in range(demo.seed, demo.seed + demo.seeds):
        one = folder / f"seed-{seed}"
        found[seed] = pipeline.run({**config, "seed": seed, "seeds": 1}, one)
        terminal.print_results(found[seed], str(one / "report.html"))
    summary = summarize(found)
    experiment.write_json(folder / "seeds.json", summary)
    terminal.print_seeds(summary)


def summarize(found: Mapping[int, Details]) -> dict[str, Any]:
    """`models`: name → rate → mean over the seeds (`value`) with the lowest and highest; `changes` of DDPO per seed.

    The range over seeds is no confidence interval; each seed's intervals, over its images, are in `changes`.
    """
    first = next(iter(found.values()))
    models: dict[str, Any] = {}
    for model in first["models"]:
        rows = {}
        for metric in (*METRICS, VQA, OVERGENERALIZATION):
            entries = [estimate(one, model, metric) for one in found.values()]
            rows[metric.key] = _range([entry["value"] for entry in entries if entry is not None])
        models[model] = rows
    changes = {
        str(seed): {
            "points": one["differences"]["ddpo-base"],
            "percent": one["relative"]["ddpo-base"].get(RESPONSE.key),
        }
        for seed, one in found.items()
    }
    return {"seeds": list(found), "models": models, "changes": changes}


def _range(values: Sequence[float]) -> dict[str, float]:
    return {"value": sum(values) / len(values), "low": min(values), "high": max(values)}
