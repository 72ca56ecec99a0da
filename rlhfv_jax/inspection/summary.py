"""A whole data set in numbers: how long, how much corrected, what would be left out or cut, which images fail."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhfv_jax.data.encoding import EncodedExample, EncodedPair
from rlhfv_jax.data.records import SIDES
from rlhfv_jax.errors import UserError
from rlhfv_jax.inspection.view import image_view
from rlhfv_jax.structs import IGNORE

SHOWN = 5  # messages about images that fail


def summary(
    rows: Sequence[EncodedPair] | Sequence[EncodedExample], max_length: int, bounds: Sequence[int]
) -> dict[str, Any]:
    """Plain values, ready for JSON; `rows` are encoded without a limit, `bounds` are the static lengths.

    Lengths are tokens, of the longer row of a pair. `too_long` counts rows beyond `max_length`, `padding` the share of
    a bucket's tokens that are padding.
    """
    lengths = np.asarray([row.longest for row in rows])
    values: dict[str, Any] = {"rows": len(rows), "lengths": _spread(lengths)}
    values["too_long"] = {"rows": int((lengths > max_length).sum()), "share": float((lengths > max_length).mean())}
    values["origins"] = dict(Counter(row.record.origin or "(none)" for row in rows).most_common())
    pairs = [row for row in rows if isinstance(row, EncodedPair)]
    if pairs:
        values |= _corrections(pairs)
    else:
        targets = [int((row.labels != IGNORE).sum()) for row in rows if isinstance(row, EncodedExample)]
        values["targets"] = {"example": float(np.mean(targets))}
    values["padding"] = padding(rows, np.minimum(lengths, max_length), bounds)
    values["images"] = _images(rows)
    return values


def _spread(numbers: np.ndarray) -> dict[str, float]:
    names = ("min", "median", "p95", "max")
    return {name: float(value) for name, value in zip(names, np.percentile(numbers, (0, 50, 95, 100)), strict=True)} | {
        "mean": float(numbers.mean())
    }


def _corrections(pairs: Sequence[EncodedPair]) -> dict[str, Any]:
    targets = np.asarray([[(row.labels != IGNORE).sum() for row in pair.rows] for pair in pairs])
    marked = np.asarray([[((w != 0) & (w != 1)).sum() for w in pair.weights] for pair in pairs])
    without = int((marked.sum(axis=1) == 0).sum())
    types = Counter(s.type or "(none)" for p in pairs for side in p.record.segments or () for s in side)
    return {
        "targets": dict(zip(SIDES, targets.mean(axis=0).tolist(), strict=True)),
        "corrected": dict(zip(SIDES, marked.mean(axis=0).tolist(), strict=True)),
        "corrected_share": float(marked.sum() / targets.sum()),
        "without_corrected_tokens": {"rows": without, "share": without / len(pairs)},
        "with_segments": sum(pair.record.segments is not None for pair in pairs),
        "types": dict(types.most_common()),
    }


def padding(rows: Sequence[Any], lengths: np.ndarray, bounds: Sequence[int]) -> list[dict[str, Any]]:
    """Of each bucket its static length, rows and share of padding, the shorter row of a pair counted too."""
    bucket = np.searchsorted(bounds, lengths)
    found = []
    for i, bound in enumerate(bounds):
        members = [rows[j] for j in np.flatnonzero(bucket == i).tolist()]
        tokens = [len(row.tokens) for m in members for row in (m.rows if isinstance(m, EncodedPair) else (m,))]
        filled = sum(min(count, bound) for count in tokens)
        share = 1 - filled / (bound * len(tokens)) if tokens else 0.0
        found.append({"length": int(bound), "rows": len(members), "share": share})
    return found


def _images(rows: Sequence[Any]) -> dict[str, Any]:
    failed, sizes = [], []
    for row in rows:
        try:
            view = image_view(row.record)
            sizes.append(view["width"] * view["height"])
        except UserError as error:
            failed.append(str(error))
    return {"failed": len(failed), "messages": failed[:SHOWN], "largest_pixels": max(sizes, default=0)}


def lines(values: Mapping[str, Any], max_length: int) -> list[tuple[str, str]]:
    """(name, value) for a table on a terminal."""
    spread, long = values["lengths"], values["too_long"]
    table = [
        ("rows", str(values["rows"])),
        ("origins", _counts(values["origins"])),
        ("tokens of the longer row", ", ".join(f"{name} {value:.0f}" for name, value in spread.items())),
        (f"longer than max_length={max_length}", f"{long['rows']} ({long['share']:.1%})"),
        ("targets a row", ", ".join(f"{name} {value:.1f}" for name, value in values["targets"].items())),
    ]
    if "corrected" in values:
        none = values["without_corrected_tokens"]
        table += [
            ("corrected tokens a row", ", ".join(f"{name} {value:.1f}" for name, value in values["corrected"].items())),
            ("corrected of all targets", f"{values['corrected_share']:.1%}"),
            ("pairs without corrected tokens", f"{none['rows']} ({none['share']:.1%})"),
            ("pairs with annotators' segments", str(values["with_segments"])),
            ("segments by type", _counts(values["types"])),
        ]
    for bucket in values["padding"]:
        table.append((f"padding at length {bucket['length']}", f"{bucket['share']:.1%} of {bucket['rows']} rows"))
    images = values["images"]
    table.append(("images that fail", str(images["failed"])))
    return table + [("", message) for message in images["messages"]]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
