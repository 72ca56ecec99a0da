"""What the miniature trains: its settings, and each preference run as the configuration of an ordinary run."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhfv_jax import settings
from rlhfv_jax.data.chat import WORDS as TEMPLATE
from rlhfv_jax.errors import UserError
from rlhfv_jax.miniature import evaluation, pairs
from rlhfv_jax.models.muffin import MuffinConfig

FREE_KEYS = (
    "scaling",
    "ablations",
    "save_every",
    "compilation_cache",
)  # may change when a run continues: they add models, no more
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
    seeds: int
    model: MuffinConfig
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
    ablations: bool
    save_every: int
    compilation_cache: str
    evaluation: evaluation.EvaluationSettings


@dataclass(frozen=True)
class Run:
    """One preference run: what it optimizes, on how many pairs, from which model (its reference), on which images."""

    align: Align
    count: int
    start: str = "base"
    augment: str = "none"


def build(config: Mapping[str, Any]) -> Demo:
    """The settings of a plain nested configuration; raises UserError naming the key that is wrong."""
    demo = settings.build(Demo, config)
    if demo.evaluation.split not in ("dev", "test"):
        raise UserError(f"config.evaluation.split={demo.evaluation.split!r} is not known; choose dev or test.")
    if demo.evaluation.temperature <= 0:
        raise UserError("config.evaluation.temperature must be positive; greedy answers are evaluated in any case.")
    for key in ("seeds", "save_every", "pairs.prompts", "pairs.count", "evaluation.scenes"):
        if settings.get(demo, key) < 1:
            raise UserError(f"config.{key}={settings.get(demo, key)} must be positive.")
    return demo


def scaling_sizes(d: Demo) -> list[int]:
    """Numbers of pairs below the full set."""
    return [size for size in SCALING if size < d.pairs.count]


def alignment_runs(d: Demo) -> dict[str, Run]:
    """Name → preference run, in the order in which they are trained."""
    full = d.pairs.count
    runs = {"ddpo": Run(d.ddpo, full), "dpo": Run(d.dpo, full), "ddpo_literal": Run(d.ddpo_literal, full)}
    if d.scaling:
        runs |= {f"ddpo_{size}": Run(d.ddpo, size) for size in scaling_sizes(d)}
    if d.ablations:  # the paper's Table 3; its RLHF-V is IT-VQA, then DDPO
        runs |= {
            "full": Run(d.ddpo, full, "it_vqa"),
            "full_dpo": Run(d.dpo, full, "it_vqa"),
            "full_crop": Run(d.ddpo, full, "it_vqa_crop", "crop"),
        }
    return runs


def scaling_curve(d: Demo) -> dict[int, str]:
    """Number of pairs → model, from the base to all pairs."""
    between = {size: f"ddpo_{size}" for size in scaling_sizes(d)} if d.scaling else {}
    return {0: "base"} | between | {d.pairs.count: "ddpo"}


def models(d: Demo) -> list[str]:
    """Every model that is evaluated, the unaligned ones first."""
    return ["base", "it_vqa", *(["it_vqa_crop"] if d.ablations else []), *alignment_runs(d)]


def comparisons(d: Demo) -> list[tuple[str, str]]:
    """(after, before) of every difference that is reported."""
    every = [("ddpo", "base"), ("dpo", "base"), ("ddpo_literal", "base"), ("it_vqa", "base"), ("ddpo", "dpo")]
    if d.ablations:
        every += [("full", "it_vqa"), ("full", "full_dpo"), ("full", "full_crop")]
    return every


def alignment_config(d: Demo, run: Run, folder: Path) -> dict[str, Any]:
    """The configuration of a preference run in the miniature's `folder`, as `configs/ddpo.py` would give it."""
    return {
        "task": "ddpo",
        "init_from": str(folder / run.start),
        "model": dataclasses.asdict(d.model),
        "tokenizer": "",
        "dtype": "float32",
        "remat": "none",
        "attention": "xla",
        "seed": d.seed,
        "data": {
            "path": str(folder / "pairs" / f"{run.count}.parquet"),
            "eval_path": "",
            "records": "pairs",
            "origins": "",
            "count": 0,
            "spans": "auto",
            "template": TEMPLATE.name,
            "instructions": (),
            "max_length": 64,
            "too_long": "error",
            "augment": run.augment,
            "flip": "safe",
            "reference": "compute",
            "reference_augment": "none",
            "reference_dtype": "",
            "buckets": 1,
            "layout": "rows",
            "image_features": "compute",
            "fit": "",
        },
        "ddpo": {
            "gamma": run.align.gamma,
            "beta": run.align.beta,
            "average": run.align.average,
            "loss": "sigmoid",
            "label_smoothing": 0.0,
            "reference_free": False,
            "nll": 0.0,
            "hunks": "all",
            "min_match": 1,
            "unit": "token",
            "diff_over": "response",
            "autojunk": False,
            "label_mask": "answer",
        },
        "reference_cache": "",
        "optim": dataclasses.asdict(d.align) | {"lr": run.align.lr},
        "lora": {"rank": 0, "alpha": 1.0, "targets": ""},
        "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
        "gradient_accumulation": 1,
        "workers": 0,
        "log_every": 20,
        "save_every": d.save_every,
        "eval_every": 0,
        "eval_share": 0.0,
        "best": "",
        "evals": dataclasses.asdict(settings.Evals()),
        "keep": 1,
        "grace": 300.0,
        "compilation_cache": d.compilation_cache,
    }
