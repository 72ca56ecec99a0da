"""The paper in miniature, stage after stage: a base model that hallucinates, corrections of its own answers, DDPO.

    vision warm-up → base (noisy captions and questions) → IT-VQA (clean questions)
                          └→ its own answers → oracle's corrections → DDPO, and beside it DPO
    all of them → held-out scenes → results.json, answers/, report.html

Every stage leaves its result in the working directory and is skipped where that is complete, so a run stopped anywhere
and started again ends with the same numbers.
"""

import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from rlhfv_jax import checkpoint, experiment, settings, sharding
from rlhfv_jax.data.tokenizer import MuffinTokenizer
from rlhfv_jax.miniature import (
    captions,
    corpus,
    details,
    evaluation,
    pairs,
    pretrain,
    recipe,
    report,
    showcase,
    words,
    world,
)
from rlhfv_jax.miniature.answers import Answerer
from rlhfv_jax.models import vlm


@dataclass(frozen=True)
class World:
    """What all stages share."""

    demo: recipe.Demo
    folder: Path
    mesh: Mesh
    tokenizer: MuffinTokenizer
    model: vlm.Vlm
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
    """Runs or continues the whole pipeline of one seed in `folder`; returns what it writes to details.json."""
    folder = folder.absolute()
    w = _world(recipe.build(config), config, folder)
    with jax.set_mesh(w.mesh):
        train_base(w)
        make_pairs(w)
        for name, one in recipe.alignment_runs(w.demo).items():
            with w.stage(f"align {name}"):
                experiment.train(recipe.alignment_config(w.demo, one, folder), folder / name)
        with w.stage("evaluate"):
            scenes = evaluation.held_out(w.demo.evaluation, w.demo.seed)
            scored = {name: _evaluate(w, name, scenes) for name in recipe.models(w.demo)}
    results = {name: scored[name].results() for name in ("base", "it_vqa", "dpo", "ddpo")}
    experiment.write_json(folder / "results.json", results)
    facts = details.details(w.demo, folder, scored, scenes)
    experiment.write_json(folder / "details.json", facts)
    pairs_file = folder / "pairs" / f"{w.demo.pairs.count}.parquet"
    report.write(folder / "report.html", facts, showcase.gallery(scenes, scored), showcase.corrections(pairs_file))
    return facts


def _world(demo: recipe.Demo, config: Mapping[str, Any], folder: Path) -> World:
    folder.mkdir(parents=True, exist_ok=True)
    experiment.check_same_config(folder, config, recipe.FREE_KEYS)
    experiment.write_json(folder / "config.json", config)
    tokenizer = words.train_tokenizer()
    sizes = settings.with_vocabulary(demo.model, tokenizer.vocab_size, tokenizer.image_token)
    model = vlm.Vlm(sizes)
    mesh = sharding.make_mesh(fsdp=1)
    return World(demo, folder, mesh, tokenizer, model, Answerer(model, tokenizer), vlm.abstract_params(model.config))


def train_base(w: World) -> None:
    """The first three models: tower, base, and base tuned on clean questions (the paper's IT-VQA)."""
    d = w.demo
    training = pretrain.Pretraining(w.model, w.mesh, w.tokenizer, d.seed, d.save_every)
    with w.stage("warm up the tower"):
        tower = training.warm_up_tower(w.folder / "vision", d.vision)
    with w.stage("train base"):
        source = text_source(w, "sft", d.sft, captions.CaptionNoise(absent=d.noise.absent), d.noise.vqa)
        training.fine_tune(w.folder / "base", d.sft, lambda: training.fresh_with_tower(tower), source)
    for name, augment in (("it_vqa", "none"), *([("it_vqa_crop", "crop")] if d.ablations else [])):
        with w.stage(f"tune {name}"):
            source = text_source(w, "it_vqa", d.it_vqa, None, 0.0)
            training.fine_tune(w.folder / name, d.it_vqa, lambda: w.params("base"), source, augment)


def text_source(
    w: World, split: str, o: settings.Optim, noise: captions.CaptionNoise | None, vqa_noise: float
) -> corpus.TextSource:
    """One pass of drawn images for a stage of `o.steps` steps."""
    queries = w.model.config.image_tokens
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
        pairs.write(folder, records, [*recipe.scaling_sizes(w.demo), s.count], sampled=len(texts))


def _evaluate(w: World, name: str, scenes: Sequence[world.Scene]) -> evaluation.Evaluated:
    d = w.demo
    return evaluation.evaluate(name, w.params(name), w.answerer, scenes, d.evaluation, w.folder, d.seed)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
