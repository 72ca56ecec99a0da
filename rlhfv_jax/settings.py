"""A run's configuration as frozen dataclasses: checked once, then passed around by value.

Programs turn the ConfigDict of a file in `configs/` into `Settings`; nothing below this floor sees a ConfigDict. Every
key of a config file is a field here and every field has one meaning; a key that is neither is an error.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhfv_jax import checkpoint, losses, memory, optim
from rlhfv_jax.data import encoding, images, segments
from rlhfv_jax.data.chat import LABEL_MASKS, TEMPLATES
from rlhfv_jax.errors import UserError
from rlhfv_jax.lora import Lora
from rlhfv_jax.models.vlm import MuffinConfig
from rlhfv_jax.ops import attention
from rlhfv_jax.selection import higher_is_better


@dataclass(frozen=True)
class Data:
    """Where pairs come from and how they become rows."""

    path: str
    eval_path: str
    records: str
    origins: str
    count: int
    spans: str
    template: str
    instructions: tuple[str, ...]
    max_length: int
    too_long: str
    augment: str
    flip: str
    reference: str
    reference_augment: str
    reference_dtype: str
    buckets: int
    layout: str
    image_features: str


@dataclass(frozen=True, kw_only=True)
class Ddpo(losses.Preference):
    """The loss; which tokens are corrected (`segments.Diff`) and their weight; which are targets (`chat`)."""

    gamma: float
    hunks: str
    min_match: int
    unit: str
    diff_over: str
    autojunk: bool
    label_mask: str


@dataclass(frozen=True)
class Optim:
    """The optimizer, its schedule, and what trains."""

    name: str
    lr: float
    epochs: float
    steps: int
    batch_size: int
    warmup: float
    weight_decay: float
    b1: float
    b2: float
    eps: float
    clip: float
    trainable: str
    memory: str


@dataclass(frozen=True)
class MeshSizes:
    """Devices along each mesh axis; -1 takes what is left."""

    data: int
    fsdp: int
    tensor: int


@dataclass(frozen=True)
class Evals:
    """Questions that the model of the moment answers while it trains (`evaluators`)."""

    questions: tuple[str, ...] = ()
    image_dir: str = ""
    references: str = ""
    every: int = 0
    count: int = 0
    max_new_tokens: int = 256
    num_beams: int = 1
    batch_size: int = 32

    def files(self) -> dict[str, str]:
        """The question files by name; raises UserError where an entry is not NAME=FILE or a name stands twice."""
        found: dict[str, str] = {}
        for entry in self.questions:
            name, _, path = entry.partition("=")
            if not re.fullmatch(r"[\w-]+", name) or not path or name in METRIC_GROUPS:
                raise UserError(
                    f"config.evals.questions: {entry!r} is not NAME=FILE, with a name of letters that is none of "
                    f"{', '.join(METRIC_GROUPS)}."
                )
            if name in found:
                raise UserError(f"config.evals.questions: the name {name!r} stands twice.")
            found[name] = path
        return found


@dataclass(frozen=True)
class Settings:
    """Everything a training run depends on; the comments in `configs/ddpo.py` say what each key means."""

    task: str
    init_from: str
    model: MuffinConfig
    tokenizer: str
    dtype: str
    remat: str
    attention: str
    seed: int
    data: Data
    ddpo: Ddpo
    reference_cache: str
    optim: Optim
    lora: Lora
    mesh: MeshSizes
    gradient_accumulation: int
    workers: int
    log_every: int
    save_every: int
    eval_every: int
    eval_share: float
    best: str
    evals: Evals
    keep: int
    grace: float
    compilation_cache: str


METRIC_GROUPS = ("loss", "nll", "logps", "rewards")  # eval/... of the rows themselves
CHOICES: dict[str, tuple[str, ...]] = {
    "task": ("ddpo", "sft"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "named", "full"),
    "attention": attention.BACKENDS,
    "data.records": ("pairs", "questions"),
    "data.spans": ("auto", "diff"),
    "data.template": tuple(name for name, template in TEMPLATES.items() if template.opening is None),
    "data.too_long": encoding.TOO_LONG,
    "data.augment": tuple(images.AUGMENTATIONS),
    "data.flip": ("safe", "any"),
    "data.layout": ("rows", "packed"),
    "data.image_features": ("compute", "cached"),
    "data.reference": ("compute", "stored"),
    "data.reference_augment": tuple(images.AUGMENTATIONS),
    "data.reference_dtype": ("", "float32", "bfloat16", "float16"),
    "ddpo.loss": tuple(losses.LOSSES),
    "ddpo.hunks": segments.HUNKS,
    "ddpo.unit": segments.UNITS,
    "ddpo.diff_over": segments.OVER,
    "ddpo.label_mask": LABEL_MASKS,
    "optim.name": ("adamw", "muon"),
    "optim.trainable": tuple(optim.FROZEN),
    "optim.memory": memory.NAMES,
}
POSITIVE = (
    *("data.max_length", "data.buckets", "ddpo.gamma", "ddpo.beta", "ddpo.min_match"),
    *("optim.lr", "optim.batch_size", "keep", "log_every", "grace", "gradient_accumulation"),
    *("evals.max_new_tokens", "evals.num_beams", "evals.batch_size"),
)
NOT_NEGATIVE = (
    *("data.count", "ddpo.nll", "optim.epochs", "optim.steps", "optim.weight_decay", "lora.rank", "lora.alpha"),
    *("workers", "save_every", "eval_every", "evals.every", "evals.count"),
)


def from_dict(values: Mapping[str, Any]) -> Settings:
    """Settings from nested plain values; raises UserError naming the key that is unknown, missing or out of range.

    `model.llm.vocab_size` and `model.image_token` follow the tokenizer, so config files leave them at 0.
    """
    settings = build(Settings, values)
    for key, choices in CHOICES.items():
        if (value := get(settings, key)) not in choices:
            raise UserError(
                f"config.{key}={value!r} is not known; choose one of {', '.join(choices)}.{_near(value, choices)}"
            )
    for key in POSITIVE:
        if not get(settings, key) > 0:
            raise UserError(f"config.{key}={get(settings, key)} must be positive.")
    for key in NOT_NEGATIVE:
        if not get(settings, key) >= 0:
            raise UserError(f"config.{key}={get(settings, key)} must not be negative.")
    if not 0 <= settings.optim.warmup < 1:
        raise UserError(f"config.optim.warmup={settings.optim.warmup} is a share of the steps, in [0, 1).")
    if (settings.optim.epochs > 0) == (settings.optim.steps > 0):
        raise UserError(
            "Give the length of the run as config.optim.epochs or as config.optim.steps; set the other to 0."
        )
    _check_rows(settings)
    _check_evaluation(settings)
    _check_lora(settings)
    _check_image_features(settings)
    _check_memory(settings)
    if not 0 <= settings.ddpo.label_smoothing < 0.5:
        raise UserError(f"config.ddpo.label_smoothing={settings.ddpo.label_smoothing} is a share in [0, 0.5).")
    if settings.reference_cache and settings.data.reference == "stored":
        raise UserError("Take reference log-probs from config.reference_cache or from the data, not from both.")
    _check_model(settings.model)
    return settings


def get(settings: Any, key: str) -> Any:
    """`get(settings, "optim.lr")`."""
    for name in key.split("."):
        settings = getattr(settings, name)
    return settings


def _check_rows(s: Settings) -> None:
    """Keys about rows that exclude each other."""
    if s.task == "ddpo" and s.data.records == "questions":
        raise UserError("config.data.records=questions has no pairs; it is for config.task=sft.")
    if s.data.layout == "packed" and s.task != "ddpo":
        raise UserError("config.data.layout=packed is for pairs, config.task=ddpo; other rows share nothing.")
    if s.data.layout == "packed" and s.data.buckets > 1:
        raise UserError("config.data.buckets is for config.data.layout=rows; packed buffers choose their sizes.")
    if s.ddpo.diff_over == "row" and s.ddpo.unit != "token":
        raise UserError(f"config.ddpo.diff_over=row compares tokens; config.ddpo.unit={s.ddpo.unit} needs response.")
    if s.ddpo.label_mask == "muffin" and not TEMPLATES[s.data.template].role:
        raise UserError(f"config.ddpo.label_mask=muffin is for config.data.template=muffin, not {s.data.template}.")
    if plain := [text for text in s.data.instructions if "{question}" not in text]:
        raise UserError(f"config.data.instructions: {plain[0]!r} has no {{question}} in it.")


def _check_evaluation(s: Settings) -> None:
    if not 0 <= s.eval_share < 1:
        raise UserError(f"config.eval_share={s.eval_share} is a share of the rows, in [0, 1).")
    if s.eval_share and s.data.eval_path:
        raise UserError("Evaluate on config.data.eval_path or on config.eval_share of the data, not on both.")
    names = s.evals.files()
    asked = [name for name in names if s.best.startswith(f"eval/{name}/")]
    if s.best and (higher_is_better(s.best) is None or not (s.best in checkpoint.BEST or asked)):
        choices = [*checkpoint.BEST, *(f"eval/{name}/METRIC" for name in names)]
        raise UserError(
            f"config.best={s.best!r} is not known; choose one of {', '.join(choices)}, with a METRIC of which more is "
            f"better or worse.{_near(s.best, choices)}"
        )
    if asked:
        return
    if s.best and not (s.eval_share or s.data.eval_path):
        raise UserError(f"config.best={s.best} needs rows to evaluate on: config.data.eval_path or config.eval_share.")
    if s.best and s.task == "sft" and s.best != "eval/loss":
        raise UserError(f"config.best={s.best} is a metric of preference pairs; config.task=sft has eval/loss.")


def _check_lora(s: Settings) -> None:
    if s.lora.rank and not s.lora.alpha:
        raise UserError(
            "config.lora.alpha=0 would switch the adapters off; give a positive one, or config.lora.rank=0."
        )
    if s.lora.rank and s.init_from == "random":
        raise UserError("config.lora.rank needs a checkpoint as config.init_from: a random base is stored nowhere.")
    try:
        re.compile(s.lora.targets)
    except re.error as error:
        raise UserError(f"config.lora.targets={s.lora.targets!r} is no regular expression: {error}.") from error


def _check_image_features(s: Settings) -> None:
    """What is computed once must be the same at every step, and the reference's too."""
    if s.data.image_features != "cached":
        return
    if not s.lora.rank and s.optim.trainable not in ("frozen", "lm_only"):
        raise UserError(
            "config.data.image_features=cached needs a vision tower that does not train: config.optim.trainable=frozen "
            f"or lm_only, or LoRA, not {s.optim.trainable}."
        )
    if not s.data.augment == s.data.reference_augment == "none":
        raise UserError("config.data.image_features=cached is for images that are not augmented.")
    if s.data.reference_dtype not in ("", s.dtype):
        raise UserError("config.data.image_features=cached needs one dtype for policy and reference.")


def _check_memory(s: Settings) -> None:
    if s.optim.memory == "fp32":
        return
    for key, wanted in (("dtype", "bfloat16"), ("optim.name", "adamw"), ("lora.rank", 0)):
        if get(s, key) != wanted:
            raise UserError(f"config.optim.memory={s.optim.memory} needs config.{key}={wanted}.")


def _check_model(model: MuffinConfig) -> None:
    tower, llm = model.tower, model.llm
    divisions = (
        ("model.tower.image_size", tower.image_size, "model.tower.patch", tower.patch),
        ("model.tower.width", tower.width, "model.tower.heads", tower.heads),
        ("model.llm.width", llm.width, "model.llm.heads", llm.heads),
        ("model.llm.heads", llm.heads, "model.llm.kv_heads", llm.kv_heads),
    )
    for name, value, by, divisor in divisions:
        if divisor < 1 or value < 1 or value % divisor:
            raise UserError(f"config.{name}={value} is not a positive multiple of config.{by}={divisor}.")
    if llm.head_size % 2:
        raise UserError(
            f"config.model.llm.width / heads = {llm.head_size} is odd; rotary positions need an even head size."
        )


def build(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """A frozen dataclass from nested plain values; raises UserError on an unknown, missing or mistyped key."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise UserError(f"config.{prefix}{name} is not a known setting.{_near(name, fields)}")
    hints = typing.get_type_hints(cls)
    arguments = {}
    for name in fields:
        if name not in values:
            raise UserError(f"config.{prefix}{name} is missing from the configuration.")
        kind, value = hints[name], values[name]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise UserError(f"config.{prefix}{name} is a group of settings; set its members instead.")
            arguments[name] = build(typing.cast(type, kind), value, f"{prefix}{name}.")
        else:
            arguments[name] = _typed(kind, value, f"{prefix}{name}")
    return cls(**arguments)


def _typed(kind: Any, value: Any, key: str) -> Any:
    if typing.get_origin(kind) is tuple:  # tuple[str, ...], a list once it has been JSON
        item, _ = typing.get_args(kind)
        if not isinstance(value, tuple | list) or not all(isinstance(one, item) for one in value):
            raise UserError(f"config.{key}={value!r}: expected a list of {item.__name__}.")
        return tuple(value)
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and type(None) in kinds:
        return None
    wanted = next(k for k in kinds if k is not type(None))
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise UserError(f"config.{key}={value!r}: expected {wanted.__name__}.")
    return value


def _near(name: Any, names: Any) -> str:
    close = difflib.get_close_matches(str(name), [str(n) for n in names], n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""


def with_vocabulary(model: MuffinConfig, vocab_size: int, image_token: int) -> MuffinConfig:
    """The model's config with what the tokenizer decides filled in."""
    llm = dataclasses.replace(model.llm, vocab_size=vocab_size)
    return dataclasses.replace(model, llm=llm, image_token=image_token)


def differences(first: Any, second: Any, prefix: str = "") -> list[str]:
    """Keys at which two nested plain configurations differ, as `optim.lr: 5e-07 against 1e-06`."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        lines = []
        for name in sorted({*first, *second}):
            lines += differences(first.get(name), second.get(name), f"{prefix}{name}.")
        return lines
    return [] if first == second else [f"{prefix[:-1]}: {first!r} against {second!r}"]
