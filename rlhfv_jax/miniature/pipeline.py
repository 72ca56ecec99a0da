"""The paper in miniature, stage after stage: a base model that hallucinates, corrections of its own answers, DDPO.

    vision warm-up → base (noisy captions and questions) → IT-VQA (clean questions)
                          └→ its own answers → oracle's corrections → DDPO, and beside it DPO
    all of them → held-out scenes → results.json, answers/, report.html

Every stage leaves its result in the working directory and is skipped where that is complete, so a run stopped anywhere
and started again ends with the same numbers.
"""

import dataclasses
import functools
import json
import platform
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from rlhfv_jax import checkpoint, experiment, metrics, prepare, settings, sharding
from rlhfv_jax.data.tokenizer import MuffinTokenizer
from rlhfv_jax.miniature import captions, corpus, evaluation, pairs, pretrain, rates, report, showcase, words, world
from rlhfv_jax.miniature.answers import Answerer
from rlhfv_jax.models import vlm

SCALING = (200, 400, 800)  # pairs, besides all of them: the paper's Fig. 2


@dataclass(frozen=True)
class Noise:
    """How careless the base model's training text is; see `captions.CaptionNoise` and `captions.vqa_turns`."""

    absent: float
    vqa: float


@dataclass(frozen=True)
class Align:
    """One preference run: equation 5's γ and averaging, β, and the learning rate."""

    gamma: float
    beta: float
    average: bool
    lr: float


@dataclass(frozen=True)
class Demo:
    """Everything the miniature depends on; the comments in `configs/demo.py` say what each key means."""

    task: str
    seed: int
    model: vlm.MuffinConfig
    noise: Noise
    vision: settings.Optim
    sft: settings.Optim
    it_vqa: settings.Optim
    pairs: pairs.PairSettings
    ddpo: Align
    ddpo_literal: Align
    dpo: Align
    align: settings.Optim
    scaling: bool
    evaluation: evaluation.EvaluationSettings


@dataclass(frozen=True)
class World:
    """What all stages share."""

    demo: Demo
    folder: Path
    mesh: Mesh
    tokenizer: MuffinTokenizer
    model: vlm.Muffin
    answerer: Answerer
    abstract: Any  # shapes of the model's parameters

    def params(self, name: str) -> Any:
        """The trained parameters of a stage."""
        return checkpoint.restore_params(self.folder / name, self.abstract, self.mesh)

    @contextmanager
    def stage(self, name: str) -> Any:
        """Says what happens and adds its seconds to `stages.json`."""
        print(f"── {name}", file=sys.stderr, flush=True)
        start, cpu = time.perf_counter(), _cpu_seconds()
        yield
        path = self.folder / "stages.json"
        stages = json.loads(path.read_text()) if path.exists() else {}
        before = stages.get(name, {"seconds": 0.0, "cpu_seconds": 0.0})
        spent = {"seconds": time.perf_counter() - start, "cpu_seconds": _cpu_seconds() - cpu}
        stages[name] = {key: before[key] + spent[key] for key in spent}
        experiment.write_json(path, stages)


def run(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Runs or continues the whole pipeline in `folder`; returns what it writes to results.json."""
    w = _world(settings.build(Demo, config), config, folder)
    with jax.set_mesh(w.mesh):
        train_base(w)
        make_pairs(w)
        runs = alignment_runs(w.demo)
        for name, (align, count) in runs.items():
            with w.stage(f"align {name}"):
                experiment.train(alignment_config(w, align, count), folder / name)
        with w.stage("evaluate"):
            scenes = evaluation.held_out(w.demo.evaluation, w.demo.seed)
            names = ["base", "it_vqa", *runs]
            scored = {name: _evaluate(w, name, scenes) for name in names}
    results = {name: scored[name].results() for name in ("base", "it_vqa", "dpo", "ddpo")}
    experiment.write_json(folder / "results.json", results)
    facts = json.loads(json.dumps(details(w, scored, runs)))
    experiment.write_json(folder / "details.json", facts)
    pairs_file = folder / "pairs" / f"{w.demo.pairs.count}.parquet"
    report.write(folder / "report.html", facts, showcase.gallery(scenes, scored), showcase.corrections(pairs_file))
    return results


def _world(demo: Demo, config: Mapping[str, Any], folder: Path) -> World:
    folder.mkdir(parents=True, exist_ok=True)
    experiment.check_same_config(folder, config)
    experiment.write_json(folder / "config.json", config)
    if not jax.config.values["jax_compilation_cache_dir"]:
        # The alignment runs differ in data and share their programs; a second process finds them too.
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    tokenizer = words.train_tokenizer()
    sizes = settings.with_vocabulary(demo.model, tokenizer.vocab_size, tokenizer.image_token)
    model = vlm.Muffin(sizes)
    mesh = sharding.make_mesh(fsdp=1)
    return World(demo, folder, mesh, tokenizer, model, Answerer(model, tokenizer), prepare.abstract_params(model))


def train_base(w: World) -> None:
    """The first three models: tower, base, and base tuned on clean questions (the paper's IT-VQA)."""
    d = w.demo
    fine_tune = functools.partial(pretrain.fine_tune, model=w.model, mesh=w.mesh, tokenizer=w.tokenizer, seed=d.seed)
    with w.stage("vision warm-up"):
        images = d.vision.steps * d.vision.batch_size
        tower = pretrain.warm_up_tower(w.folder / "vision", d.vision, w.model, images, w.mesh, w.tokenizer, d.seed)
    with w.stage("train the base model"):
        noise = captions.CaptionNoise(absent=d.noise.absent)
        source = text_source(w, "sft", d.sft, noise, d.noise.vqa)
        fresh = functools.partial(pretrain.fresh_with_tower, w.model, tower, d.seed)
        fine_tune(w.folder / "base", d.sft, init=fresh, source=source)
    with w.stage("IT-VQA"):
        source = text_source(w, "it_vqa", d.it_vqa, None, 0.0)
        fine_tune(w.folder / "it_vqa", d.it_vqa, init=lambda: w.params("base"), source=source)


def text_source(
    w: World, split: str, o: settings.Optim, noise: captions.CaptionNoise | None, vqa_noise: float
) -> corpus.TextSource:
    """One pass of drawn images for a stage of `o.steps` steps."""
    queries = w.model.config.tower.queries
    length = corpus.row_length(w.tokenizer, queries)
    size = o.steps * o.batch_size
    return corpus.TextSource(w.demo.seed, split, size, w.tokenizer, queries, length, noise, vqa_noise)


def make_pairs(w: World) -> None:
    """The base's own answers at a temperature, corrected by the oracle, as preference pairs on disk."""
    s = w.demo.pairs
    folder = w.folder / "pairs"
    if (folder / "summary.json").exists():
        return
    with w.stage("sample and correct"):
        scenes = corpus.scenes(w.demo.seed, pairs.SPLIT, s.prompts)
        texts = w.answerer.describe(w.params("base"), scenes, s.temperature, w.demo.seed + 1)
        records = pairs.correct_answers(texts, scenes, s, w.demo.seed)
        pairs.write(folder, records, [*scaling_sizes(w.demo), s.count], sampled=len(texts))


def scaling_sizes(d: Demo) -> list[int]:
    """Numbers of pairs below the full set."""
    return [size for size in SCALING if size < d.pairs.count] if d.scaling else []


def alignment_runs(d: Demo) -> dict[str, tuple[Align, int]]:
    """Name → what to train and on how many pairs."""
    full = d.pairs.count
    runs = {"ddpo": (d.ddpo, full), "dpo": (d.dpo, full), "ddpo_literal": (d.ddpo_literal, full)}
    return runs | {f"ddpo_{size}": (d.ddpo, size) for size in scaling_sizes(d)}


def alignment_config(w: World, align: Align, count: int) -> dict[str, Any]:
    """The configuration of a preference run, as `configs/ddpo.py` would give it."""
    optimizer = dataclasses.asdict(w.demo.align) | {"lr": align.lr}
    return {
        "task": "ddpo",
        "init_from": str(w.folder / "base"),
        "model": dataclasses.asdict(w.demo.model),
        "tokenizer": "",
        "dtype": "float32",
        "remat": "none",
        "seed": w.demo.seed,
        "data": {
            "path": str(w.folder / "pairs" / f"{count}.parquet"),
            "eval_path": "",
            "spans": "auto",
            "template": "words",
            "max_length": 64,
            "too_long": "error",
        },
        "ddpo": {"gamma": align.gamma, "beta": align.beta, "average": align.average},
        "optim": optimizer,
        "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
        "log_every": 20,
        "save_every": 50,
        "eval_every": 0,
        "keep": 1,
    }


def _evaluate(w: World, name: str, scenes: Sequence[world.Scene]) -> evaluation.Evaluated:
    d = w.demo
    return evaluation.evaluate(name, w.params(name), w.answerer, scenes, d.evaluation, w.folder, d.seed)


def details(
    w: World, scored: Mapping[str, evaluation.Evaluated], runs: Mapping[str, tuple[Align, int]]
) -> dict[str, Any]:
    """Everything the report shows besides pictures."""
    d = w.demo
    summaries = {name: rates.summarise(one.sampled) for name, one in scored.items()}

    def difference(after: str, before: str) -> dict[str, Any]:
        return evaluation.intervals(rates.paired_difference(scored[before].sampled, scored[after].sampled))

    curve = [("base", 0), *((name, count) for name, (_, count) in runs.items() if name.startswith("ddpo_"))]
    curve = [(name, count) for name, count in curve if name != "ddpo_literal"] + [("ddpo", d.pairs.count)]
    stages = json.loads((w.folder / "stages.json").read_text())
    return {
        "seed": d.seed,
        "versions": {name: metadata.version(name) for name in experiment.PACKAGES}
        | {"python": platform.python_version()},
        "settings": dataclasses.asdict(d),
        "stages": [{"name": name, **spent} for name, spent in stages.items()],
        "models": {name: one.details() for name, one in scored.items()},
        "differences": {
            f"{after}-{before}": difference(after, before)
            for after, before in (("ddpo", "base"), ("dpo", "base"), ("it_vqa", "base"), ("ddpo", "dpo"))
        },
        "scaling": [
            {"pairs": count} | {key: summaries[name][key]._asdict() for key in ("response_rate", "coverage")}
            for name, count in curve
        ],
        "curves": {name: metrics.read(w.folder / name / "metrics.jsonl") for name in ("ddpo", "dpo", "ddpo_literal")},
        "pairs": json.loads((w.folder / "pairs" / "summary.json").read_text()),
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
