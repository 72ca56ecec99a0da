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
    evaluators,
    flops,
    loop,
    lora,
    optim,
    preemption,
    prepare,
    processes,
    profiling,
    selection,
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
FREE_KEYS = (
    *("workers", "log_every", "save_every", "eval_every", "keep", "mesh"),
    *("grace", "compilation_cache", "gradient_accumulation"),
)
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
    model: vlm.Vlm
    rows: prepare.Rows
    eval_rows: prepare.Rows | None
    total_steps: int


def train(config: Mapping[str, Any], workdir: Path, resume: str = "auto", profiled: range = range(0)) -> TrainState:
    """Trains as the plain nested `config` says, with DDPO or SFT on preference pairs.

    The working directory gets config.json, manifest.json, metrics.jsonl, TensorBoard events and checkpoints. `resume`:
    "auto" continues a run found there, "never" refuses to, anything else is a checkpoint to start from. `profiled`:
    steps of which a profiler trace is written to `workdir`/profile.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    job = prepare_job(settings.from_dict(config))
    processes.check_shared(workdir)
    found = processes.from_first("the starting point", lambda: str(_starting_point(workdir, resume, config) or ""))
    start = Path(found) if found else None
    s, mesh = job.settings, job.mesh
    with jax.set_mesh(mesh):
        updater = make_updater(s.optim, abstract_params(job), job.total_steps)
        meta = prepare.checkpoint_meta(job.model, job.tokenizer, s.data.template)
        if s.lora.rank:
            meta["lora"] = adapters.record(s.init_from, s.lora)
            _check_same_base(start, meta)
        asked = None
        if s.evals.questions:
            if jax.process_count() > 1:
                raise UserError(
                    "config.evals answers questions in a run of one process alone; leave its questions out."
                )
            asked = evaluators.Evaluators(s, job.model.config, job.tokenizer, mesh, workdir / "evals")
            if start is not None and (workdir / "manifest.json").exists():
                asked.check_same(_read_json(workdir / "manifest.json").get("evals"))
        state = None if start is None else _restored(job, updater, start)
        params = _fresh_params(job) if state is None else state.params
        processes.barrier("the parameters are there")
        source, eval_source, manifest = _sources(job, workdir, params, start)
        state = updater.place(params, mesh) if state is None else state
        updater.check(state, mesh)
        manifest |= _facts(job, config, updater, state)
        if asked is not None:
            manifest["evals"] = asked.facts()
        if processes.is_first():
            write_json(workdir / "config.json", config)
            write_json(workdir / "manifest.json", manifest)
        loss_fn = _loss(s, job.model)
        measure = processes.together("the evaluation", steps.evaluation(loss_fn))
        on_rows = eval_source and (lambda params: evaluation.evaluate(measure, params, eval_source, s, mesh))
        every, evaluate = evaluators.together(s, on_rows, asked, job.total_steps)
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
            grace=s.grace,
            best=s.best,
            stored=_without_base if s.lora.rank else updater.to_checkpoint,
            parts=s.gradient_accumulation,
            augment=s.data.augment,
            bounds=job.rows.bounds(s.data.buckets),
            workers=s.workers,
            trace=profiling.Trace(profiled, workdir / "profile"),
            ideal=_ideal_seconds(job, updater, state),
            log_every=s.log_every,
            save_every=s.save_every,
            eval_every=every,
            check_first=(lambda metrics: evaluation.check_reference(metrics, s)) if prepare.comparable(s) else None,
            evaluate=evaluate,
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
    grace: float = 300.0,
    best: str = "",
    stored: Callable[[TrainState], TrainState] | None = None,
    parts: int = 1,
    augment: str = "none",
    bounds: Sequence[int] = (),
    workers: int = 0,
    **loop_options: Any,
) -> TrainState:
    """Trains up to `total_steps` on shuffled batches of the source, with metrics and checkpoints in `workdir`.

    Call within `jax.set_mesh(mesh)`. `augment` names one of `images.AUGMENTATIONS`, `bounds` and `workers` are those
    of `pipeline.train_batches`, `grace` that of `preemption.Watch`, `parts` that of `steps.gradient`; `loop_options` go
    to `loop.train`. With `best`, a metric that `selection` knows, the state that is best by it is kept in
    `workdir`/best. `stored` gives what checkpoints hold of a state, where that is not all of it.
    """
    start = int(state.step)
    batches = pipeline.train_batches(
        source,
        batch_size,
        seed,
        start=start,
        shares=pipeline.Shares(sharding.shares_here(mesh), sharding.ways(mesh)),
        augment=images.AUGMENTATIONS[augment],
        bounds=bounds,
        workers=workers,
    )
    keeper = checkpoint.Best(workdir / "best", best, bool(selection.higher_is_better(best))) if best else None
    stored = stored or (lambda state: state)
    with preemption.Watch(grace) as watch, checkpoint.Checkpoints(workdir / "checkpoints", keep) as checkpoints:
        writer = MetricsWriter(workdir, start, writes=processes.is_first())
        state = loop.train(
            state,
            processes.together("the step", updater.step(loss_fn, mesh, state, parts)),
            (sharding.put(batch, mesh) for batch in batches),
            writer,
            lambda state: checkpoints.save(stored(state), meta),
            steps=total_steps,
            pairs_per_step=batch_size,
            preempted=watch.due,
            evaluated=None if keeper is None else lambda state, values: keeper.offer(stored(state), values, meta),
            **loop_options,
        )
    writer.close()
    return state


def _loss(s: Settings, model: vlm.Vlm) -> steps.LossFn:
    loss_fn = steps.preference_loss(model, s.ddpo) if s.task == "ddpo" else steps.sft_loss(model)
    return lora.at_scale(loss_fn, s.lora.scale) if s.lora.rank else loss_fn


def _ideal_seconds(job: Job, updater: steps.Updater, state: TrainState) -> Callable[[Any], float] | None:
    """A batch's matrix products, nothing recomputed, at the devices' peak; None where that is not known."""
    peak = flops.peak(job.mesh.devices.flat[0].device_kind)
    if peak is None:
        return None
    loss_fn = _loss(job.settings, job.model.clone(remat="none"))
    trainable, frozen = trees.split(jax.eval_shape(lambda: state.params), updater.mask)
    known: dict[Any, float] = {}

    def seconds(batch: Any) -> float:
        shapes = tuple(field.shape for field in batch)
        if shapes not in known:
            traced = jax.make_jaxpr(steps.gradient(loss_fn, job.mesh))(trainable, frozen, batch)
            known[shapes] = flops.dot_flops(traced.jaxpr) / (peak * job.mesh.size)
        return known[shapes]

    return seconds


def make_updater(o: settings.Optim, abstract_params: Any, total_steps: int) -> steps.Updater:
    """The optimizer of the settings over the parameters they let train."""
    schedule = optim.schedule(o.lr, total_steps, o.warmup)
    if o.name == "muon":
        optimizer = optim.muon(schedule, b2=o.b2, eps=o.eps, clip=o.clip)
    else:
        optimizer = optim.adamw(schedule, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay, clip=o.clip)
    return steps.Updater(optimizer, schedule, optim.trainable_mask(abstract_params, o.trainable), o.memory)


def initial_state(
    updater: steps.Updater, abstract_params: Any, init: Callable[[], Any], start: Path | None, mesh: Mesh
) -> TrainState:
    """The state of the checkpoint `start` or, without one, the parameters of `init()` with a fresh optimizer."""
    if start is None:
        return updater.place(init(), mesh)
    return updater.from_checkpoint(
        checkpoint.restore(start, jax.eval_shape(updater.stored_init, abstract_params), mesh)
    )


def abstract_params(job: Job) -> Any:
    """Shapes and dtypes of everything in the run's parameters, adapters included."""
    base = vlm.abstract_params(job.model.config)
    return jax.eval_shape(lambda base: prepare.with_adapters(job.settings, base), base)


def _fresh_params(job: Job) -> Any:
    """The parameters that the run starts from, adapters included, on the mesh."""
    s, base = job.settings, prepare.init_params(job.settings, job.model, job.mesh)
    if not s.lora.rank:
        return base
    where = sharding.shardings(abstract_params(job), job.mesh)
    return jax.jit(lambda base: prepare.with_adapters(s, base), out_shardings=where)(base)


def _restored(job: Job, updater: steps.Updater, start: Path) -> TrainState:
    """The state of a checkpoint; a LoRA run's holds its adapters alone, so its base is read beside it."""
    abstract = abstract_params(job)
    if not job.settings.lora.rank:
        return initial_state(updater, abstract, lambda: None, start, job.mesh)
    state = checkpoint.restore(start, _without_base(jax.eval_shape(updater.init, abstract)), job.mesh)
    return state._replace(params=lora.attach(prepare.init_params(job.settings, job.model, job.mesh), state.params))


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
    sharding.check_batch_size(s.optim.batch_size, mesh, s.gradient_accumulation)
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


def _sources(job: Job, workdir: Path, params: Any, start: Path | None) -> tuple[Any, Any, dict[str, Any]]:
    """Sources for training and evaluation, with reference log-probs for DDPO, and what the manifest says of them."""
    s = job.settings
    row_sets = [job.rows] if job.eval_rows is None else [job.rows, job.eval_rows]
    facts: dict[str, Any] = {"data": job.rows.facts()}
    if job.eval_rows is not None:
        facts["eval_data"] = job.eval_rows.facts()
    base = lora.base_of(params)  # without adapters the whole
    features = prepare.image_features(row_sets, s, job.model, params, workdir / "features", job.mesh)
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
    forward = processes.together("the reference", steps.reference(prepare.reference_model(s, job.model)))
    reference = base if start is None or s.lora.rank else None
    built = []
    for pairs in row_sets:
        logps = prepare.reference_log_probs(
            pairs, s, job.tokenizer, facts["reference"], workdir / "reference", job.mesh, forward, reference, features
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
    """Writes a JSON file under a temporary name, then renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)
