"""What a PyTorch checkpoint's names and shapes say about the model, and what is wrong with them.

Every axis of every tensor votes for the size it stands for, so one wrong tensor is outvoted and named. What shapes
cannot tell (how many heads share a width, say) comes from the checkpoint's config.json or from the user.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rlhfv_jax.conversion.table import IGNORED, LLAMA, MUFFIN, Entry, axes
from rlhfv_jax.errors import UserError
from rlhfv_jax.models import beit3, vlm
from rlhfv_jax.models.beit3 import Beit3Config
from rlhfv_jax.models.llama import LlamaConfig

Shapes = Mapping[str, tuple[int, ...] | None]  # None where only the name is known
MODEL_ROOTS = ("model.vision_tower.", "model.mm_projector.", "model.query")


@dataclass(frozen=True)
class Hints:
    """What shapes cannot tell. `sizes` are known otherwise; shapes that say something else are wrong."""

    sizes: Mapping[str, int] = field(default_factory=dict)
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0


class Plan(NamedTuple):
    """A checkpoint understood: its table, sizes and configuration, and the names set aside."""

    entries: Sequence[Entry]
    sizes: dict[str, int]
    config: vlm.MuffinConfig | LlamaConfig
    ignored: list[str]


def plan(shapes: Shapes, hints: Hints, extra_ignored: Iterable[str] = ()) -> Plan:
    """Recognises Muffin or LLaMA by its names, infers the sizes, and holds every name and shape to them.

    Raises UserError that names each tensor that is missing, unknown or misshapen.
    """
    kept, ignored = set_aside(shapes, extra_ignored)
    muffin = any(name.startswith(MODEL_ROOTS) for name in kept)
    entries: Sequence[Entry] = MUFFIN if muffin else LLAMA
    if "lm_head.weight" not in kept and not muffin:  # tied: the embedding is the head too
        entries = [e if e.path != "llm/head/kernel" else e._replace(name="model.embed_tokens.weight") for e in entries]
    sizes = _infer(kept, entries, hints.sizes, _rotary(shapes))
    if problems := check(kept, entries, sizes):
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(f"The checkpoint does not fit: {'; '.join(problems[:8])}{more}.")
    llm = llama_config(sizes, hints)
    if not muffin:
        return Plan(entries, sizes, llm, ignored)
    # The released added tokens: [PAD], <im_patch>, <im_start>, <im_end>, the last four.
    return Plan(entries, sizes, vlm.MuffinConfig(tower_config(sizes), llm, sizes["vocab"] - 3), ignored)


def set_aside(shapes: Shapes, extra: Iterable[str] = ()) -> tuple[Shapes, list[str]]:
    """The tensors without, and the names of, those that stand on the ignore list or match an `extra` pattern."""
    patterns = [re.compile(pattern) for pattern in (*IGNORED, *extra)]
    ignored = [name for name in shapes if any(pattern.fullmatch(name) for pattern in patterns)]
    aside = set(ignored)
    return {name: shape for name, shape in shapes.items() if name not in aside}, ignored


def check(shapes: Shapes, entries: Sequence[Entry], sizes: Mapping[str, int]) -> list[str]:
    """One line for each tensor that is missing, misshapen or unknown."""
    expected = {name: entry.torch_shape(sizes) for entry in entries for name in entry.names(sizes)}
    lines = [f"{name} is unknown" for name in shapes if name not in expected]
    lines += [f"{name} is missing (expected {shape})" for name, shape in expected.items() if name not in shapes]
    for name, shape in expected.items():
        found = shapes.get(name)
        if found is not None and tuple(found) != shape:
            lines.append(f"{name} has shape {tuple(found)}, expected {shape}")
    return lines


def _infer(shapes: Shapes, entries: Sequence[Entry], known: Mapping[str, int], head: int | None) -> dict[str, int]:
    votes: dict[str, Counter[int]] = defaultdict(Counter)
    voters: dict[tuple[str, int], list[str]] = defaultdict(list)
    for entry in entries:
        pattern = re.compile(re.sub(r"\\{\w+\\}", r"(\\d+)", re.escape(entry.name)))
        found = [(name, match) for name in shapes if (match := pattern.fullmatch(name))]
        if entry.stack and found:
            votes[entry.stack][1 + max(int(match.group(1)) for _, match in found)] += 1
        for name, _ in found:
            shape, dims = shapes[name], axes(entry.axes)[0]
            if shape is None or len(shape) != len(dims):
                continue
            for axis, length in zip(dims, shape, strict=True):
                votes[" ".join(axis)][length] += 1
                voters[" ".join(axis), length].append(name)
    sizes: dict[str, int] = {}
    for size, counter in votes.items():
        if size == "" or size in known:
            continue
        (winner, most), *others = counter.most_common(2)
        if others and others[0][1] == most:
            names = f"{voters[size, winner][0]} ({winner}) and {voters[size, others[0][0]][0]} ({others[0][0]})"
            raise UserError(f"The checkpoint does not fit: {names} disagree on the size {size}.")
        sizes[size] = winner
    sizes |= known
    _split_heads(sizes, head)
    wanted = {name for entry in entries for axis in axes(entry.axes)[0] for name in axis}
    wanted |= {entry.stack for entry in entries if entry.stack}
    if missing := sorted(wanted - sizes.keys()):
        tell = [entry for entry in entries if entry.stack == missing[0] or (missing[0],) in axes(entry.axes)[0]]
        raise UserError(f"The checkpoint does not fit: {tell[0].name} is missing, and with it the size {missing[0]}.")
    return {name: length for name, length in sizes.items() if " " not in name}


def _rotary(shapes: Shapes) -> int | None:
    """Twice the length of the rotary tables that older checkpoints carry: the head size."""
    lengths = Counter(shape[0] for name, shape in shapes.items() if name.endswith("rotary_emb.inv_freq") and shape)
    return 2 * lengths.most_common(1)[0][0] if lengths else None


def _split_heads(sizes: dict[str, int], head: int | None) -> None:
    """Fills in heads and head sizes, which only ever appear multiplied."""
    if "width" in sizes:
        if "heads" in sizes:
            head = sizes["width"] // sizes["heads"]
        if head is None or head < 1 or sizes["width"] % head or sizes["width"] % sizes.get("heads", 1):
            raise UserError(
                f"The number of attention heads of the language model (width {sizes['width']}) cannot be told from "
                "shapes: give it as --heads."
            )
        sizes.setdefault("heads", sizes["width"] // head)
        sizes["head"] = head
        sizes.setdefault("kv_heads", sizes.get("kv_heads head", sizes["width"]) // head)
    if "tower_width" in sizes:
        width = sizes["tower_width"]
        if "tower_heads" not in sizes and width in (beit3.base().width, beit3.large().width):
            sizes["tower_heads"] = width // 64  # as BEiT-3 base and large
        if "tower_heads" not in sizes or width % sizes["tower_heads"]:
            raise UserError(
                f"The number of attention heads of the vision tower (width {width}) cannot be told from shapes: give "
                "it as --tower_heads."
            )
        sizes["tower_head"] = width // sizes["tower_heads"]
        sizes["color"] = 3


def llama_config(sizes: Mapping[str, int], hints: Hints) -> LlamaConfig:
    """The language model of these sizes."""
    return LlamaConfig(
        vocab_size=sizes["vocab"],
        width=sizes["width"],
        layers=sizes["layers"],
        heads=sizes["heads"],
        kv_heads=sizes["kv_heads"],
        ffn=sizes["ffn"],
        norm_eps=hints.norm_eps,
        rope_theta=hints.rope_theta,
    )


def tower_config(sizes: Mapping[str, int]) -> Beit3Config:
    """The vision tower of these sizes; raises UserError where the patches form no square or the windows are none."""
    side = math.isqrt(sizes["image_positions"] - 3)
    root = "model.vision_tower.beit3"
    if side**2 != sizes["image_positions"] - 3:
        name = f"{root}.encoder.embed_positions.A.weight"
        raise UserError(f"{name} has {sizes['image_positions']} rows; expected 3 more than a square number of patches.")
    if sizes["patch_x"] != sizes["patch_y"]:
        name = f"{root}.vision_embed.proj.weight"
        raise UserError(f"{name} has windows of {sizes['patch_y']} by {sizes['patch_x']} pixels; expected squares.")
    if sizes["query_positions"] < sizes["queries"] + beit3.POSITION_OFFSET:
        name = f"{root}.encoder.embed_positions.B.weight"
        raise UserError(
            f"{name} has {sizes['query_positions']} rows, too few for the {sizes['queries']} queries of model.query."
        )
    return Beit3Config(
        image_size=side * sizes["patch_x"],
        patch=sizes["patch_x"],
        width=sizes["tower_width"],
        layers=sizes["tower_layers"],
        heads=sizes["tower_heads"],
        ffn=sizes["tower_ffn"],
        queries=sizes["queries"],
        query_positions=sizes["query_positions"],
    )


def sizes_of(config: vlm.MuffinConfig | LlamaConfig) -> dict[str, int]:
    """Every size that the table speaks of."""
    llm = config if isinstance(config, LlamaConfig) else config.llm
    sizes = {
        "vocab": llm.vocab_size,
        "width": llm.width,
        "layers": llm.layers,
        "heads": llm.heads,
        "head": llm.head_size,
        "kv_heads": llm.kv_heads,
        "ffn": llm.ffn,
    }
    if isinstance(config, LlamaConfig):
        return sizes
    tower = config.tower
    return sizes | {
        "image_positions": tower.patches + 3,
        "query_positions": tower.query_positions,
        "queries": tower.queries,
        "patch_x": tower.patch,
        "patch_y": tower.patch,
        "color": 3,
        "tower_width": tower.width,
        "tower_layers": tower.layers,
        "tower_heads": tower.heads,
        "tower_head": tower.width // tower.heads,
        "tower_ffn": tower.ffn,
    }


HF_SIZES = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "intermediate_size": "ffn",
    "vocab_size": "vocab",
    "num_query": "queries",
}


def hints_from_config(config: Mapping[str, Any], given: Mapping[str, int]) -> Hints:
    """Hints of a Hugging Face config.json; `given` sizes come from the user and win.

    Raises UserError for a feature that this LLaMA does not have.
    """
    sizes = {ours: int(config[theirs]) for theirs, ours in HF_SIZES.items() if config.get(theirs) is not None}
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"config.json asks for rotary positions of type {kind!r}; only plain ones are supported.")
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(f"config.json asks for the activation {config['hidden_act']!r}; only silu is supported.")
    if config.get("head_dim") not in (None, sizes.get("width", 0) // max(sizes.get("heads", 1), 1)):
        raise UserError(
            f"config.json has head_dim={config['head_dim']}; only hidden_size / num_attention_heads is supported."
        )
    named = re.fullmatch(r"beit3_(base|large)_patch(\d+)_(\d+)", str(config.get("mm_vision_tower", "")))
    if named:
        tower = beit3.SIZES[named.group(1)](int(named.group(3)))
        sizes |= {"tower_layers": tower.layers, "tower_width": tower.width, "tower_heads": tower.heads}
        sizes |= {"tower_ffn": tower.ffn, "image_positions": tower.patches + 3, "patch_x": int(named.group(2))}
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    return Hints(sizes | dict(given), float(config.get("rms_norm_eps", 1e-6)), float(theta))
