"""What a PyTorch checkpoint's names and shapes say about the model, and what is wrong with them.

Every axis of every tensor votes for the size it stands for, so one wrong tensor is outvoted and named. What shapes
cannot tell (how many heads share a width, say) comes from the checkpoint's config.json or from the user.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rlhfv_jax.conversion import layouts
from rlhfv_jax.conversion.layout import Config, Hints, Layout
from rlhfv_jax.conversion.table import Entry, axes
from rlhfv_jax.errors import UserError

Shapes = Mapping[str, tuple[int, ...] | None]  # None where only the name is known


class Plan(NamedTuple):
    """A checkpoint understood: its form, table, sizes and configuration, and the names set aside."""

    layout: Layout
    entries: Sequence[Entry]
    sizes: dict[str, int]
    config: Config
    ignored: list[str]


def plan(shapes: Shapes, hints: Hints, extra_ignored: Iterable[str] = ()) -> Plan:
    """Recognizes the form by its names, infers the sizes, and holds every name and shape to them.

    Raises UserError that names each tensor that is missing, unknown or misshapen.
    """
    layout = layouts.recognize(shapes)
    kept, ignored = set_aside(shapes, layout, extra_ignored)
    entries: Sequence[Entry] = layout.entries
    if "lm_head.weight" not in kept and not layout.family:  # tied: the embedding is the head too
        entries = [e if e.path != "llm/head/kernel" else e._replace(name="model.embed_tokens.weight") for e in entries]
    sizes = _infer(kept, layout, entries, hints.sizes, _rotary(shapes))
    if problems := check(kept, entries, sizes):
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(f"The checkpoint does not fit: {'; '.join(problems[:8])}{more}.")
    return Plan(layout, entries, sizes, layout.config(sizes, hints), ignored)


def plan_of(config: Config, name: str = "") -> Plan:
    """The form called `name` of a model that is ours, by default its family's first."""
    layout = layouts.of_config(config, name)
    return Plan(layout, layout.entries, layout.sizes(config), config, [])


def set_aside(shapes: Shapes, layout: Layout, extra: Iterable[str] = ()) -> tuple[Shapes, list[str]]:
    """The tensors without, and the names of, those that stand on the ignore list or match an `extra` pattern."""
    patterns = [_expression(pattern) for pattern in (*layout.ignored, *extra)]
    ignored = [name for name in shapes if any(pattern.fullmatch(name) for pattern in patterns)]
    aside = set(ignored)
    return {name: shape for name, shape in shapes.items() if name not in aside}, ignored


def _expression(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"--ignore={pattern} is no regular expression: {error}.") from error


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


def _infer(
    shapes: Shapes, layout: Layout, entries: Sequence[Entry], known: Mapping[str, int], head: int | None
) -> dict[str, int]:
    votes: dict[str, Counter[int]] = defaultdict(Counter)
    voters: dict[tuple[str, int], list[str]] = defaultdict(list)
    for entry in entries:
        pattern = entry.pattern
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
    _split_heads(sizes, head, layout)
    sizes |= layout.derived(sizes)
    wanted = {name for entry in entries for axis in axes(entry.axes)[0] for name in axis}
    wanted |= {entry.stack for entry in entries if entry.stack}
    if missing := sorted(wanted - sizes.keys()):
        tell = [entry for entry in entries if entry.stack == missing[0] or (missing[0],) in axes(entry.axes)[0]]
        if any(shape is None and tell[0].pattern.fullmatch(name) for name, shape in shapes.items()):
            raise UserError(
                f"The shape of {tell[0].name} is not known, and with it the size {missing[0]}: give the shards, a list "
                "with shapes, or --model."
            )
        raise UserError(f"The checkpoint does not fit: {tell[0].name} is missing, and with it the size {missing[0]}.")
    return {name: length for name, length in sizes.items() if " " not in name}


def _rotary(shapes: Shapes) -> int | None:
    """Twice the length of the rotary tables that older checkpoints carry: the head size."""
    lengths = Counter(shape[0] for name, shape in shapes.items() if name.endswith("rotary_emb.inv_freq") and shape)
    return 2 * lengths.most_common(1)[0][0] if lengths else None


def _split_heads(sizes: dict[str, int], head: int | None, layout: Layout) -> None:
    """Fills in heads and head sizes, which only ever appear multiplied."""
    if "width" in sizes:
        if "heads" in sizes:
            head = _head_size("language model", sizes["width"], sizes["heads"], "--heads")
        if head is None or head < 1 or sizes["width"] % head:
            raise UserError(
                f"The number of attention heads of the language model (width {sizes['width']}) cannot be told from "
                "shapes: give it as --heads."
            )
        sizes.setdefault("heads", sizes["width"] // head)
        sizes["head"] = head
        sizes.setdefault("kv_heads", sizes.get("kv_heads head", sizes["width"]) // head)
    if "tower_width" in sizes:
        width = sizes["tower_width"]
        if "tower_heads" not in sizes and layout.tower_heads(width):
            sizes["tower_heads"] = layout.tower_heads(width)
        if "tower_heads" not in sizes:
            raise UserError(
                f"The number of attention heads of the vision tower (width {width}) cannot be told from shapes: give "
                "it as --tower_heads."
            )
        sizes["tower_head"] = _head_size("vision tower", width, sizes["tower_heads"], "--tower_heads")


def _head_size(part: str, width: int, heads: int, flag: str) -> int:
    if heads < 1 or width % heads:
        raise UserError(f"The {part}'s width {width} cannot be cut into {heads} attention heads: give another {flag}.")
    return width // heads


def hints_from_config(config: Mapping[str, Any], given: Mapping[str, int], layout: Layout) -> Hints:
    """Hints of a Hugging Face config.json; `given` sizes come from the user and win.

    Raises UserError for a feature that this LLaMA does not have.
    """
    sizes = layout.known_sizes(config)
    config = layout.llm_json(config)
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
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    return Hints(sizes | dict(given), float(config.get("rms_norm_eps", 1e-6)), float(theta), window or 0)
