"""A training run: from a configuration and a working directory to checkpoints."""

import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rlhfv_jax import checkpoint, loop, optim, prepare, settings, sharding, steps, trees
from rlhfv_jax.data import images, pipeline
from rlhfv_jax.data.tokenizer import MuffinTokenizer
from rlhfv_jax.errors import UserError
from rlhfv_jax.metrics import MetricsWriter
from rlhfv_jax.models import vlm
from rlhfv_jax.settings import Settings
from rlhfv_jax.structs import TrainState

# May change when a run continues: they move work about, not results.
FREE_KEYS = ("workers", "log_every", "save_every", "eval_every", "keep", "mesh")
PACKAGES = (
    "rlhfv_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "pillow",
    "sentencepiece",
)


@dataclass(frozen=True)
class Job:
    """What a run is made of before it has a state."""

    settings: Settings
    workdir: Path
    mesh: Mesh
    tokenizer: MuffinTokenizer
    model: vlm.Muffin
    rows: prepare.Rows
    eval_rows: prepare.Rows | None
    total_steps: int


def train(config: Mapping[str, Any], workdir: Path, resume: str = "auto") -> TrainState:
    """Trains as the plain nested `config` says, with DDPO or SFT on preference pairs.

    The working directory gets config.json, manifest.json, metrics.jsonl, TensorBoard events and checkpoints. `resume`:
    "auto" continues a run found there, "never" refuses to, anything else is a checkpoint to start from.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    job = _prepare(settings.from_dict(config), workdir)
    start = _starting_point(workdir, resume, config)
    s, mesh = job.settings, job.mesh
    with jax.set_mesh(mesh):
        abstract = prepare.abstract_params(job.model)
        updater = make_updater(s.optim, abstract, job.total_steps)
        state = initial_state(updater, abstract, lambda: prepare.init_params(s, job.model, mesh), start, mesh)
        source, eval_source, manifest = _sources(job, state, start)
        manifest |= _facts(job, config, updater)
        write_json(workdir / "config.json", config)
        write_json(workdir / "manifest.json", manifest)
        ddpo = s.task == "ddpo"
        loss_fn = steps.ddpo_loss(job.model, s.ddpo.beta, s.ddpo.average) if ddpo else steps.sft_loss(job.model)
        evaluation = steps.evaluation(loss_fn)
        return fit(
            updater,
            loss_fn,
            state,
            source,
            mesh,
            workdir,
            prepare.checkpoint_meta(job.model, job.tokenizer, s.data.template),
            total_steps=job.total_steps,
            batch_size=s.optim.batch_size,
            seed=s.seed,
            keep=s.keep,
            augment=s.data.augment,
            bounds=job.rows.bounds(s.data.buckets),
            workers=s.workers,
            log_every=s.log_every,
            save_every=s.save_every,
            eval_every=s.eval_every,
            check_first=(lambda metrics: check_reference(metrics, s.dtype)) if ddpo and prepare.comparable(s) else None,
            evaluate=eval_source and (lambda params: evaluate(evaluation, params, eval_source, s, mesh)),
        )


def fit(
    updater: steps.Updater,
    loss_fn: steps.LossFn,
    state: TrainState,
    source: Any,
    mesh: Mesh,
    workdir: Path,
    meta: dict[str, Any],
    *,
    total_steps: int,
    batch_size: int,
    seed: int,
    keep: int = 1,
    augment: str = "none",
    bounds: Sequence[int] = (),
    workers: int = 0,
    **loop_options: Any,
) -> TrainState:
    """Trains up to `total_steps` on shuffled batches of the source, with metrics and checkpoints in `workdir`.

    Call within `jax.set_mesh(mesh)`. `augment` names one of `images.AUGMENTATIONS`, `bounds` and `workers` are those
    of `pipeline.train_batches`; `loop_options` go to `loop.train`.
    """
    start = int(state.step)
    batches = pipeline.train_batches(
        source,
        batch_size,
        seed,
        start=start,
        process=jax.process_index(),
        processes=jax.process_count(),
        augment=images.AUGMENTATIONS[augment],
        bounds=bounds,
        workers=workers,
    )
    writer = MetricsWriter(workdir, start)
    with checkpoint.Checkpoints(workdir / "checkpoints", keep) as checkpoints:
        state = loop.train(
            state,
            updater.step(loss_fn, mesh, state),
            (sharding.put(batch, mesh) for batch in batches),
            writer,
            lambda state: checkpoints.save(state, meta),
            steps=total_steps,
            pairs_per_step=batch_size,
            **loop_options,
        )
    writer.close()
    return state


def make_updater(o: settings.Optim, abstract_params: Any, total_steps: int) -> steps.Updater:
    """The optimizer of the settings over the parameters they let train."""
    schedule = optim.schedule(o.lr, total_steps, o.warmup)
    if o.name == "muon":
        optimizer = optim.muon(schedule, b2=o.b2, eps=o.eps, clip=o.clip)
    else:
        optimizer = optim.adamw(schedule, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay, clip=o.clip)
    return steps.Updater(optimizer, schedule, optim.trainable_mask(abstract_params, o.trainable))


def initial_state(
    updater: steps.Updater, abstract_params: Any, init: Callable[[], Any], start: Path | None, mesh: Mesh
) -> TrainState:
    """The state of the checkpoint `start` or, without one, the parameters of `init()` with a fresh optimizer."""
    if start is None:
        params = init()
        where = sharding.shardings(jax.eval_shape(updater.init, params), mesh)
        return jax.jit(updater.init, out_shardings=where, donate_argnums=0)(params)
    return checkpoint.restore(start, jax.eval_shape(updater.init, abstract_params), mesh)


def _prepare(s: Settings, workdir: Path) -> Job:
    prepare.check_inputs(s)
    mesh = sharding.make_mesh(s.mesh.data, s.mesh.fsdp, s.mesh.tensor)
    sharding.check_batch_size(s.optim.batch_size, mesh)
    tokenizer = prepare.load_tokenizer(s)
    model = prepare.build_model(s, tokenizer)
    rows = prepare.load_rows(s.data.path, s, tokenizer, selected=True)
    eval_rows = prepare.load_rows(s.data.eval_path, s, tokenizer) if s.data.eval_path else None
    total = s.optim.steps or math.ceil(s.optim.epochs * len(rows.encoded) / s.optim.batch_size)
    return Job(s, workdir, mesh, tokenizer, model, rows, eval_rows, total)


def _starting_point(workdir: Path, resume: str, config: Mapping[str, Any]) -> Path | None:
    """The checkpoint to continue from, None for a fresh start. Refuses to continue a run of another configuration."""
    if resume not in ("auto", "never"):
        if checkpoint.exists(workdir):
            raise UserError(f"{workdir} already holds a run; --resume={resume} needs an unused --workdir.")
        found = checkpoint.find(resume)
        shutil.copytree(found.parents[1] / "reference", workdir / "reference", dirs_exist_ok=True)
        return found
    if not checkpoint.exists(workdir):
        return None
    if resume == "never":
        raise UserError(f"{workdir} already holds a run, and --resume=never; choose another --workdir.")
    check_same_config(workdir, config)
    return checkpoint.find(workdir)


def check_same_config(workdir: Path, config: Mapping[str, Any], free: Sequence[str] = FREE_KEYS) -> None:
    """Raises UserError where `workdir` holds a run of another configuration; the `free` keys may differ."""
    if not (workdir / "config.json").exists():
        return
    before = {k: v for k, v in _read_json(workdir / "config.json").items() if k not in free}
    now = {k: v for k, v in json.loads(json.dumps(config)).items() if k not in free}
    if lines := settings.differences(before, now):
        raise UserError(
            f"{workdir} holds a run with another configuration ({'; '.join(lines)}); choose another --workdir, or give "
            "the same settings to continue it."
        )


def _sources(job: Job, state: TrainState, start: Path | None) -> tuple[Any, Any, dict[str, Any]]:
    """Sources for training and evaluation, with reference log-probs for DDPO, and what the manifest says of them."""
    s = job.settings
    row_sets = [job.rows] if job.eval_rows is None else [job.rows, job.eval_rows]
    facts: dict[str, Any] = {"data": job.rows.facts()}
    if job.eval_rows is not None:
        facts["eval_data"] = job.eval_rows.facts()
    if s.task == "sft":
        examples = [prepare.make_source(rows, s, job.tokenizer) for rows in row_sets]
        return examples[0], examples[1] if job.eval_rows else None, facts
    if start is None:
        digest = trees.digest(state.params)
    else:
        digest = _read_json(start.parents[1] / "manifest.json")["reference"]["params"]
    facts["reference"] = prepare.reference_facts(s, job.model, job.tokenizer, digest)
    forward = steps.reference(prepare.reference_model(s, job.model))
    params = state.params if start is None else None
    built = []
    for pairs in row_sets:
        logps = prepare.reference_log_probs(
            pairs, s, job.tokenizer, facts["reference"], job.workdir / "reference", job.mesh, forward, params
        )
        built.append(prepare.make_source(pairs, s, job.tokenizer, logps))
    return built[0], built[1] if job.eval_rows else None, facts


def _facts(job: Job, config: Mapping[str, Any], updater: steps.Updater) -> dict[str, Any]:
    """The manifest's general part: what ran, on what, with which versions."""
    params = prepare.abstract_params(job.model)
    trainable, _ = trees.split(params, updater.mask)
    return {
        "recipe": config,
        "steps": job.total_steps,
        "row_lengths": job.rows.bounds(job.settings.data.buckets),
        "parameters": {"all": trees.count(params), "trainable": trees.count(trainable)},
        "tokenizer": job.tokenizer.digest,
        "devices": [device.device_kind for device in job.mesh.devices.flat],
        "versions": {name: metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "command": sys.argv,
    }


def check_reference(metrics: Mapping[str, float], dtype: str) -> None:
    """Before the first update the policy is the reference: rewards are 0 and the loss is ln 2.

    Raises UserError on anything else, which is a wrong cache or a wrong model and would be trained towards.
    """
    tolerance = 1e-3 if dtype == "float32" else 2e-2
    off = max(abs(metrics["loss"] - math.log(2)), abs(metrics["rewards/chosen"]), abs(metrics["rewards/rejected"]))
    if not off <= tolerance:
        raise UserError(
            f"The policy does not agree with its own reference log-probs before the first update (loss "
            f"{metrics['loss']:.6f} instead of ln 2, rewards {metrics['rewards/chosen']:.2e} and "
            f"{metrics['rewards/rejected']:.2e} instead of 0). Delete the run's reference/ directory and start again."
        )


def evaluate(evaluation: Callable, params: Any, source: Any, s: Settings, mesh: Mesh) -> dict[str, float]:
    """Means over all rows of the source, as `eval/...`; a batch counts with its valid rows (or scored tokens)."""
    totals: dict[str, float] = {}
    weight = 0.0
    for batch in pipeline.ordered_batches(source, s.optim.batch_size):
        metrics = jax.device_get(evaluation(params, sharding.put(batch, mesh)))
        share = float(metrics.get("tokens", np.sum(batch.valid)))
        weight += share
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + share * float(value)
    return {f"eval/{name}": total / weight for name, total in totals.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path}, which every run has ({error}).") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)
