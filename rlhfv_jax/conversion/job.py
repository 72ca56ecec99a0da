"""A whole conversion in either direction, with its checks and its report."""

import dataclasses
import json
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rlhfv_jax import adapters, checkpoint, settings
from rlhfv_jax.conversion import layouts, sizes, to_orbax, to_torch, tokenizer_files, torch_files, verify
from rlhfv_jax.conversion.layout import Config, Hints, Layout
from rlhfv_jax.conversion.llama2c import NORM_EPS, Llama2c, is_llama2c
from rlhfv_jax.conversion.sizes import Plan
from rlhfv_jax.conversion.torch_files import Tensors
from rlhfv_jax.data import tokenizer_record
from rlhfv_jax.data.tokenizer import ADDED, Tokenizer
from rlhfv_jax.errors import UserError
from rlhfv_jax.models import llama, llava, muffin, omnilmm
from rlhfv_jax.models.llama import LlamaConfig
from rlhfv_jax.models.vlm import VlmConfig
from rlhfv_jax.streaming import StoredArrays

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
NAMED: dict[str, Callable[[], Config]] = {
    "muffin_13b": muffin.muffin_13b,
    "llava_7b": llava.llava_7b,
    "llava15_7b": llava.llava15_7b,
    "llava15_13b": llava.llava15_13b,
    "omnilmm_12b": omnilmm.omnilmm_12b,
    "llama_7b": llama.llama_7b,
    "llama_13b": llama.llama_13b,
    "stories260k": llama.stories260k,
}


@dataclass(frozen=True)
class Options:
    """What `convert` was asked for; empty strings and zeros mean: not given. The program's flags say more."""

    src: str
    dst: str = ""
    dtype: str = ""
    tokenizer: str = ""
    fast_ids: bool = False
    tower: str = ""
    queries: int = 64
    seed: int = 0
    image_size: int = 0
    model: str = ""
    layout: str = ""
    heads: int = 0
    tower_heads: int = 0
    ignore: tuple[str, ...] = ()
    shard_gb: float = 5.0
    verify: bool = False
    dry_run: bool = False


def run_to_orbax(options: Options) -> dict[str, Any]:
    """PyTorch → Orbax; the report says what was read, set aside and written."""
    started = time.perf_counter()
    source = Path(options.src)
    tensors, hints = _open(source, options)
    plan = sizes.plan(tensors.shapes, hints, options.ignore)
    dtype = _dtype(options.dtype or "float32")
    if options.dry_run:
        to_orbax.check_targets(plan)
        return _report(plan, dtype, started, options)
    _need_destination(options)
    kind = plan.config.tokenizer if isinstance(plan.config, VlmConfig) else "muffin"
    tokenizer = tokenizer_files.find(source, options.tokenizer, options.fast_ids, kind, plan.layout.tokenizer_json)
    plan = _with_tokenizer(plan, tokenizer)

    def check(folder: Path) -> int | None:
        if not options.verify:
            return None
        return verify.to_orbax_side(tensors, StoredArrays(folder), plan, Path(options.dst))

    verified = to_orbax.write(tensors, plan, Path(options.dst), dtype, meta(plan, tokenizer), check)
    return _report(plan, dtype, started, options, verified)


def run_to_torch(options: Options) -> dict[str, Any]:
    """Orbax → PyTorch; the report says what was written.

    Raises UserError for what has no form in PyTorch, and where verification fails.
    """
    started = time.perf_counter()
    record = checkpoint.read_meta(options.src)
    plan = sizes.plan_of(settings.model_of(record), options.layout)
    stored = adapters.open_arrays(options.src)
    wanted = {entry.path: entry.our_shape(plan.sizes) for entry in plan.entries}
    found = {path: stored[path].shape for path in stored}
    if wanted != found:
        path = next(p for p in (*wanted, *found) if wanted.get(p) != found.get(p))
        raise UserError(
            f"{options.src} has no form in PyTorch: {path} has shape {found.get(path)}, expected {wanted.get(path)}."
        )
    kept = {array.dtype for array in (stored[path] for path in stored)}
    dtype = _dtype(options.dtype or (kept.pop().name if len(kept) == 1 else "float32"))
    if options.dry_run:
        return _report(plan, dtype, started, options)
    _need_destination(options)
    tokenizer = tokenizer_record.from_record(record)

    def check(folder: Path) -> int | None:
        if not options.verify:
            return None
        written = torch_files.open_tensors(folder)
        if problems := sizes.check(sizes.set_aside(written.shapes, plan.layout)[0], plan.entries, plan.sizes):
            raise UserError(f"Verification failed: {problems[0]}.")
        return verify.to_torch_side(stored, written, plan, Path(options.dst))

    files, shard_bytes = _files(plan, tokenizer, dtype), int(options.shard_gb * 1e9)
    verified = to_torch.write(stored, plan, Path(options.dst), dtype, files, shard_bytes, check)
    return _report(plan, dtype, started, options, verified)


def meta(plan: Plan, tokenizer: Tokenizer) -> dict[str, Any]:
    """The checkpoint's JSON record; a LLaMA alone has only `llm` in its model."""
    model, template = dataclasses.asdict(plan.config), "muffin"
    if isinstance(plan.config, VlmConfig):
        template = plan.config.template
    else:
        model = {"llm": model}
    return {"model": model, "template": template, **tokenizer_record.to_record(tokenizer)}


def _open(source: Path, options: Options) -> tuple[Tensors, Hints]:
    """The tensors under the names of the table, with what is known besides their shapes."""
    heads = {name: value for name, value in (("heads", options.heads), ("tower_heads", options.tower_heads)) if value}
    given = heads
    if options.model:
        if options.model not in NAMED:
            raise UserError(f"--model={options.model} is not known; choose one of {', '.join(NAMED)}.")
        given = sizes.plan_of(NAMED[options.model]()).sizes | heads
    if is_llama2c(source):
        _check_family(layouts.LLAMA_ALONE, options)
        small = Llama2c(source)
        _check_heads(small.sizes, heads, source)
        return small, Hints(small.sizes | given, norm_eps=NORM_EPS)
    tensors = torch_files.open_tensors(source)
    config = _config_beside(source)
    if options.image_size:
        config.pop("mm_vision_tower", None)  # its name states the old size
    layout = layouts.recognize(tensors.shapes)
    tensors = layout.spelled(tensors)
    changed: dict[str, int] = {}
    if options.tower:
        tower = torch_files.open_tensors(Path(options.tower))
        layout = layouts.of_tower(tower.shapes, layout)
        tensors, changed = layout.with_tower(tensors, tower, options.queries, options.seed)
    _check_family(layout, options)
    layout.check(tensors)
    _check_heads(layout.known_sizes(config), heads, source)
    hints = sizes.hints_from_config(config, given, layout)
    known = {size: length + changed.get(size, 0) for size, length in hints.sizes.items()}
    if options.image_size:
        tensors, resized = layout.resized(tensors, options.image_size)
        known |= resized
    return tensors, dataclasses.replace(hints, sizes=known)


def _check_family(found: Layout, options: Options) -> None:
    """Raises UserError where --model names a model of another family: its sizes may well be those of a part."""
    if options.model and (wanted := layouts.of_config(NAMED[options.model]())).family != found.family:
        raise UserError(
            f"{options.src} is a {found.name} by the names of its tensors, and --model={options.model} a {wanted.name}."
        )


def _check_heads(told: Mapping[str, int], given: Mapping[str, int], source: Path) -> None:
    """Raises UserError where --heads or --tower_heads is not what the weights' own files say."""
    for size, count in given.items():
        if told.get(size, count) != count:
            raise UserError(f"--{size}={count}, but {source} comes with {told[size]}; leave the flag out.")


def _config_beside(source: Path) -> dict[str, Any]:
    """config.json of a directory or of the one that a file of weights is in; nothing where there is none."""
    beside = (source if source.is_dir() else source.parent) / "config.json"
    return torch_files.read_json(beside) if beside.is_file() and source.suffix != ".txt" else {}


def _with_tokenizer(plan: Plan, tokenizer: Tokenizer) -> Plan:
    """The plan with the tokenizer's image token; raises UserError where the vocabularies do not fit."""
    if isinstance(plan.config, LlamaConfig):
        if tokenizer.vocab_size - len(ADDED) > plan.config.vocab_size:
            raise UserError(
                f"The tokenizer has {tokenizer.vocab_size - len(ADDED)} tokens, the model {plan.config.vocab_size}."
            )
        return plan
    rows = plan.config.llm.vocab_size
    tokens = tokenizer.vocab_size - (tokenizer.pad_id == rows)  # padding needs no row: it is never attended
    if plan.config.embeds_image_tokens and tokens != rows:
        raise UserError(f"The tokenizer has {tokenizer.vocab_size} tokens, added ones included, but the model {rows}.")
    if tokenizer.vocab_size - len(ADDED) > rows:
        raise UserError(f"The tokenizer has {tokenizer.vocab_size - len(ADDED)} tokens, but the model {rows}.")
    return plan._replace(config=dataclasses.replace(plan.config, image_token=tokenizer.image_token))


def _files(plan: Plan, tokenizer: Tokenizer, dtype: np.dtype) -> dict[str, bytes]:
    config = plan.layout.hf_config(plan.config, dtype)
    generation = {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"], "pad_token_id": 0}
    if not isinstance(plan.config, LlamaConfig):
        generation = {"_from_model_config": True} | generation
    texts = {"config.json": config, "generation_config.json": generation}
    encoded = {name: (json.dumps(value, indent=2) + "\n").encode() for name, value in texts.items()}
    added = isinstance(plan.config, VlmConfig) and plan.config.embeds_image_tokens
    return encoded | tokenizer_files.files(tokenizer, added)


def _report(
    plan: Plan, dtype: np.dtype, started: float, options: Options, verified: int | None = None
) -> dict[str, Any]:
    """Counts of both sides; every tensor of the table is used exactly once, or the plan would not stand."""
    names = {name for entry in plan.entries for name in entry.names(plan.sizes)}
    shapes = [entry.torch_shape(plan.sizes) for entry in plan.entries for _ in entry.names(plan.sizes)]
    return {
        "model": plan.layout.name,
        "dry_run": options.dry_run,
        "tensors": len(names),
        "ignored": sorted(plan.ignored),
        "parameters": len(plan.entries),
        "scalars": sum(int(np.prod(shape)) for shape in shapes),
        "dtype": dtype.name,
        "sizes": dict(sorted(plan.sizes.items())),
        "seconds": round(time.perf_counter() - started, 2),
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "destination": "" if options.dry_run else options.dst,
        **({} if verified is None else {"verified": verified}),
    }


def _dtype(name: str) -> np.dtype:
    if name not in DTYPES:
        raise UserError(f"--dtype={name} is not known; choose one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def _need_destination(options: Options) -> None:
    if not options.dst:
        raise UserError("No destination: give the directory to write as --dst=DIR, or check only with --dry_run.")
