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
from jax.sharding import Mesh

from rlhfv_jax import (
    adapters,
    checkpoint,
    evaluation,
    loop,
    lora,
    optim,
    prepare,
    settings,
    sharding,
    steps,
    trees,
)
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
    job = prepare_job(settings.from_dict(config))
    start = _starting_point(workdir, resume, config)
    s, mesh = job.settings, job.mesh
    with jax.set_mesh(mesh):
        updater = make_updater(s.optim, abstract_params(job), job.total_steps)
        meta = prepare.checkpoint_meta(job.model, job.tokenizer, s.data.template)
        if s.lora.rank:
            meta["lora"] = adapters.record(s.init_from, s.lora)
            _check_same_base(start, meta)
        state = _state(job, updater, start)
        updater.check(state, mesh)
        source, eval_source, manifest = _sources(job, workdir, state, start)
        manifest |= _facts(job, config, updater, state)
        write_json(workdir / "config.json", config)
        write_json(workdir / "manifest.json", manifest)
        ddpo = s.task == "ddpo"
        loss_fn = steps.preference_loss(job.model, s.ddpo) if ddpo else steps.sft_loss(job.model)
        if s.lora.rank:
            loss_fn = lora.at_scale(loss_fn, s.lora.scale)
        measure = steps.evaluation(loss_fn)
        return fit(
            updater,
            loss_fn,
            state,
            source,
            mesh,
            workdir,
            meta,
            total_steps=job.total_steps,
            batch_size=s.optim.batch_size,
            seed=s.seed,
            keep=s.keep,
            best=s.best,
            stored=_without_base if s.lora.rank else None,
            augment=s.data.augment,
            bounds=job.rows.bounds(s.data.buckets),
            workers=s.workers,
            log_every=s.log_every,
            save_every=s.save_every,
            eval_every=s.eval_every,
            check_first=(lambda metrics: evaluation.check_reference(metrics, s)) if prepare.comparable(s) else None,
            evaluate=eval_source and (lambda params: evaluation.evaluate(measure, params, eval_source, s, mesh)),
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
    best: str = "",
    stored: Callable[[TrainState], TrainState] | None = None,
    augment: str = "none",
    bounds: Sequence[int] = (),
    workers: int = 0,
    **loop_options: Any,
) -> TrainState:
    """Trains up to `total_steps` on shuffled batches of the source, with metrics and checkpoints in `workdir`.

    Call within `jax.set_mesh(mesh)`. `augment` names one of `images.AUGMENTATIONS`, `bounds` and `workers` are those
    of `pipeline.train_batches`; `loop_options` go to `loop.train`. With `best`, a metric of `checkpoint.BEST`, the
    state that is best by it is kept in `workdir`/best. `stored` gives what checkpoints hold of a state, where that is
    not all of it.
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
    keeper = checkpoint.Best(workdir / "best", best) if best else None
    stored = stored or (lambda state: state)
    with checkpoint.Checkpoints(workdir / "checkpoints", keep) as checkpoints:
        state = loop.train(
            state,
            updater.step(loss_fn, mesh, state),
            (sharding.put(batch, mesh) for batch in batches),
            writer,
            lambda state: checkpoints.save(stored(state), meta),
            steps=total_steps,
            pairs_per_step=batch_size,
            evaluated=None if keeper is None else lambda state, values: keeper.offer(stored(state), values, meta),
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


def abstract_params(job: Job) -> Any:
    """Shapes and dtypes of everything in the run's parameters, adapters included."""
    base = prepare.abstract_params(job.model)
    return jax.eval_shape(lambda base: prepare.with_adapters(job.settings, base), base)


def _state(job: Job, updater: steps.Updater, start: Path | None) -> TrainState:
    """The run's initial state; a LoRA run's checkpoint holds its adapters alone, so its base is read beside it."""
    s, mesh, abstract = job.settings, job.mesh, abstract_params(job)

    def init() -> Any:
        return prepare.init_params(s, job.model, mesh)

    if not s.lora.rank:
        return initial_state(updater, abstract, init, start, mesh)
    if start is None:
        place = jax.jit(lambda base: prepare.with_adapters(s, base), out_shardings=sharding.shardings(abstract, mesh))
        return initial_state(updater, abstract, lambda: place(init()), start, mesh)
    state = checkpoint.restore(start, _without_base(jax.eval_shape(updater.init, abstract)), mesh)
    return state._replace(params=lora.attach(init(), state.params))


def _without_base(state: TrainState) -> TrainState:
    return state._replace(params=lora.adapters_of(state.params))


def _check_same_base(start: Path | None, meta: Mapping[str, Any]) -> None:
    """Raises UserError where the adapters of `start` were trained on other parameters than this run's base."""
    before = checkpoint.read_meta(start).get("lora", {}) if start else meta["lora"]
    if before.get("base_digest") != meta["lora"]["base_digest"]:
        raise UserError(f"{start} belongs to another base than {meta['lora']['base']}, or its base has changed.")


def prepare_job(s: Settings) -> Job:
    """Reads and checks everything that a run needs before it has a state."""
    prepare.check_inputs(s)
    mesh = sharding.make_mesh(s.mesh.data, s.mesh.fsdp, s.mesh.tensor)
    sharding.check_batch_size(s.optim.batch_size, mesh)
    tokenizer = prepare.load_tokenizer(s)
    model = prepare.build_model(s, tokenizer)
    rows = prepare.load_rows(s.data.path, s, tokenizer, selected=True)
    eval_rows = prepare.load_rows(s.data.eval_path, s, tokenizer) if s.data.eval_path else None
    if s.eval_share:
        rows, eval_rows = prepare.hold_out(rows, s.eval_share)
    total = s.optim.steps or math.ceil(s.optim.epochs * len(rows.encoded) / s.optim.batch_size)
    return Job(s, mesh, tokenizer, model, rows, eval_rows, total)


def _starting_point(workdir: Path, resume: str, config: Mapping[str, Any]) -> Path | None:
    """The checkpoint to continue from, None for a fresh start. Refuses to continue a run of another configuration."""
    if resume not in ("auto", "never"):
        if checkpoint.exists(workdir):
            raise UserError(f"{workdir} already holds a run; --resume={resume} needs an unused --workdir.")
        found = checkpoint.find(resume)
        if (reference := found.parents[1] / "reference").is_dir():  # not where the log-probs were given, or not needed
            shutil.copytree(reference, workdir / "reference", dirs_exist_ok=True)
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


def _sources(job: Job, workdir: Path, state: TrainState, start: Path | None) -> tuple[Any, Any, dict[str, Any]]:
    """Sources for training and evaluation, with reference log-probs for DDPO, and what the manifest says of them."""
    s = job.settings
    row_sets = [job.rows] if job.eval_rows is None else [job.rows, job.eval_rows]
    facts: dict[str, Any] = {"data": job.rows.facts()}
    if job.eval_rows is not None:
        facts["eval_data"] = job.eval_rows.facts()
    base = lora.base_of(state.params)  # without adapters the whole
    features = prepare.image_features(row_sets, s, job.model, state.params, workdir / "features", job.mesh)
    if s.task == "sft" or s.ddpo.reference_free:
        examples = [prepare.make_source(rows, s, job.tokenizer, mesh=job.mesh, features=features) for rows in row_sets]
        return examples[0], examples[1] if job.eval_rows else None, facts
    if start is None:
        digest = trees.digest(base)
    else:
        before = _read_json(start.parents[1] / "manifest.json").get("reference")
        if before is None:
            raise UserError(f"{start} is of a run without a reference; start from it with config.init_from instead.")
        digest = before["params"]
    facts["reference"] = prepare.reference_facts(s, job.model, job.tokenizer, digest)
    forward = steps.reference(prepare.reference_model(s, job.model))
    params = base if start is None or s.lora.rank else None
    built = []
    for pairs in row_sets:
        logps = prepare.reference_log_probs(
            pairs, s, job.tokenizer, facts["reference"], workdir / "reference", job.mesh, forward, params, features
        )
        built.append(prepare.make_source(pairs, s, job.tokenizer, logps, job.mesh, features))
    return built[0], built[1] if job.eval_rows else None, facts


def _facts(job: Job, config: Mapping[str, Any], updater: steps.Updater, state: TrainState) -> dict[str, Any]:
    """The manifest's general part: what ran, on what, with which versions."""
    trainable, _ = trees.split(state.params, updater.mask)
    return {
        "recipe": config,
        "steps": job.total_steps,
        "row_lengths": job.rows.bounds(job.settings.data.buckets),
        "parameters": {"all": trees.count(state.params), "trainable": trees.count(trainable)},
        "optimizer_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state)),
        "tokenizer": job.tokenizer.digest,
        "devices": [device.device_kind for device in job.mesh.devices.flat],
        "versions": {name: metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "command": sys.argv,
    }


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
