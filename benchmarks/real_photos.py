"""DPO and DDPO side by side on real photos: what a small model with a trained language model learns, and what it keeps.

    python benchmarks/real_photos.py --data=coco_pairs/pairs.jsonl --llm=stories260K/stories260K.bin \\
        --tokenizer=stories260K/tok512.model --workdir=runs/real_photos

The pairs are split by photo, so no photo that is evaluated on was trained on. The model is a small Muffin whose tower
is random and whose language model is the given llama2.c checkpoint, converted by `convert`. Each method trains from the
same base with the seeds 0, 1, ...; the first run of each is made twice and has to give the same metrics bit for bit.
Prints a table, or JSON with --format=json.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from rich.console import Console
from rich.table import Table

from rlhfv_jax import checkpoint, cli, experiment, metrics, prepare, streaming
from rlhfv_jax.conversion import job
from rlhfv_jax.data import sources
from rlhfv_jax.data.tokenizer import MuffinTokenizer
from rlhfv_jax.models import llama, muffin, vlm
from rlhfv_jax.structs import TrainState

METHODS = ("ddpo", "dpo")
EPOCHS, EPOCH, BATCH = 12, 9, 9  # 81 training pairs are nine batches an epoch


def split_by_photo(data: Path, folder: Path, every: int = 3) -> dict[str, int]:
    """Writes train.parquet and held_out.parquet: every third photo, with all its pairs, is held out."""
    photos = [json.loads(line)["image"] for line in data.read_text().splitlines()]
    held = set(sorted(set(photos))[::every])
    records = sources.read(data)
    parts = {
        "train": [record for record, photo in zip(records, photos, strict=True) if photo not in held],
        "held_out": [record for record, photo in zip(records, photos, strict=True) if photo in held],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        sources.write_parquet(part, folder / f"{name}.parquet")
    return {name: len(part) for name, part in parts.items()}


def make_base(llm: Path, tokenizer_file: Path, folder: Path) -> muffin.MuffinConfig:
    """A checkpoint of a small Muffin with the trained language model; added tokens start as the mean of the others."""
    job.run_to_orbax(job.Options(src=str(llm), dst=str(folder / "llm"), tokenizer=str(tokenizer_file)))
    tokenizer = MuffinTokenizer.from_file(str(tokenizer_file))
    mini = muffin.muffin_mini(tokenizer.vocab_size, tokenizer.image_token)
    config = dataclasses.replace(mini, llm=dataclasses.replace(llama.stories260k(), vocab_size=tokenizer.vocab_size))
    model = vlm.Vlm(config)
    params = jax.device_get(jax.jit(lambda key: vlm.init(model, key))(jax.random.key(0)))
    stored = streaming.StoredArrays(folder / "llm")
    known = llama.stories260k().vocab_size
    for path in stored:
        *groups, name = path.split("/")
        node = params
        for group in groups:
            node = node[group]
        values = stored[path].read()
        if path in ("llm/embed/embedding", "llm/head/kernel"):
            rows = values if name == "embedding" else values.T
            added = np.repeat(rows[:known].mean(0, keepdims=True), node[name].shape[name == "kernel"] - known, axis=0)
            rows = np.concatenate([rows[:known], added])
            values = rows if name == "embedding" else rows.T
        assert values.shape == node[name].shape, path
        node[name] = values
    meta = prepare.checkpoint_meta(model, tokenizer, "words")
    with checkpoint.Checkpoints(folder / "base/checkpoints") as checkpoints:
        checkpoints.save(TrainState(np.int32(0), params, {"count": np.int32(0)}), meta)
    return config


def configuration(method: str, seed: int, folder: Path, model: muffin.MuffinConfig, steps: int) -> dict[str, Any]:
    """The shipped config of the method with this experiment's model, data and length."""
    config = cli._load(f"{cli.config_folder() / method}.py:mini")
    changes = {
        "init_from": str(folder / "base"),
        "tokenizer": "",
        "seed": seed,
        "data.path": str(folder / "train.parquet"),
        "data.eval_path": str(folder / "held_out.parquet"),
        "data.template": "words",
        "optim.lr": 5e-4,
        "optim.steps": steps,
        "optim.batch_size": BATCH,
        "mesh.fsdp": 1,
        "log_every": EPOCH,
        "save_every": 0,
        "keep": 1,
    }
    config.update_from_flattened_dict(changes)
    return config.to_dict() | {"model": dataclasses.asdict(model)}


def run(config: dict[str, Any], workdir: Path) -> dict[str, Any]:
    """Trains and reads off: first and last loss, accuracy over the last epoch, and everything held out."""
    experiment.train(config, workdir)
    lines = metrics.read(workdir / "metrics.jsonl")
    training, evaluations = [line for line in lines if "loss" in line], [line for line in lines if "eval/loss" in line]
    last = training[-EPOCH:]
    figures = {
        "first_loss": training[0]["loss"],
        "last_loss": float(np.mean([line["loss"] for line in last])),
        "train_accuracy": float(np.mean([line["rewards/accuracies"] for line in last])),
        "held_out_accuracy": evaluations[-1]["eval/rewards/accuracies"],
        "held_out_loss": evaluations[-1]["eval/loss"],
    }
    timeless = [{name: value for name, value in line.items() if name not in metrics.TIMING} for line in lines]
    return figures | {"lines": timeless}


def compare(
    data: Path, llm: Path, tokenizer: Path, folder: Path, seeds: int, steps: int, methods: tuple[str, ...]
) -> dict[str, Any]:
    """All runs; `methods` maps each name to its figures, one for each seed."""
    counts = split_by_photo(data, folder)
    model = make_base(llm, tokenizer, folder)
    report: dict[str, Any] = {"pairs": counts, "steps": steps, "methods": {}, "repeated_bitwise": {}}
    for method in methods:
        runs = [
            run(configuration(method, seed, folder, model, steps), folder / f"{method}_{seed}") for seed in range(seeds)
        ]
        again = run(configuration(method, 0, folder, model, steps), folder / f"{method}_0_again")
        report["repeated_bitwise"][method] = again["lines"] == runs[0]["lines"]
        report["methods"][method] = [{name: one[name] for name in one if name != "lines"} for one in runs]
    return report


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)
    folder = Path(_WORKDIR.value)
    inputs = [Path(flag.value) for flag in (_DATA, _LLM, _TOKENIZER)]
    report = compare(*inputs, folder, _SEEDS.value, _STEPS.value, tuple(_METHODS.value))
    if _FORMAT.value == "json":
        print(json.dumps(report))
        return
    names = list(report["methods"][_METHODS.value[0]][0])
    table = Table("method", "seed", *(name.replace("_", " ") for name in names))
    for method, runs in report["methods"].items():
        for seed, figures in enumerate(runs):
            table.add_row(method, str(seed), *(f"{figures[name]:.3f}" for name in names))
    console = Console()
    console.print(f"{report['pairs']}, {report['steps']} steps; repeated bit for bit: {report['repeated_bitwise']}")
    console.print(table)


if __name__ == "__main__":
    _DATA = flags.DEFINE_string("data", None, "coco_pairs/pairs.jsonl.", required=True)
    _LLM = flags.DEFINE_string("llm", None, "A llama2.c checkpoint with the sizes of stories260K.", required=True)
    _TOKENIZER = flags.DEFINE_string("tokenizer", None, "Its sentencepiece .model file.", required=True)
    _WORKDIR = flags.DEFINE_string("workdir", "runs/real_photos", "Where the runs go; must not exist.")
    _METHODS = flags.DEFINE_list("methods", list(METHODS), "Shipped configs to train with.")
    _SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each method.")
    _STEPS = flags.DEFINE_integer("steps", EPOCHS * EPOCH, "Updates of each run.")
    _FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "How to print the figures.")
    app.run(main)
