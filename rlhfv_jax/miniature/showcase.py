"""The report's pictures: held-out scenes with answers, and corrected pairs. The first ones of each, nothing picked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhfv_jax.data import sources
from rlhfv_jax.miniature import evaluation, world

SCENES, PAIRS = 12, 8


def gallery(scenes: Sequence[world.Scene], scored: Mapping[str, evaluation.Evaluated]) -> list[dict[str, Any]]:
    """The first held-out scenes with the sampled answers of base and DDPO, wrong words located."""
    items = []
    for row, scene in enumerate(scenes[:SCENES]):
        answers = {}
        for name in ("base", "ddpo"):
            errors = [
                {"start": e.claim.start, "end": e.claim.end, "type": e.claim.type, "expected": ", ".join(e.expected)}
                for e in scored[name].sampled[row].errors
            ]
            answers[name] = {"text": scored[name].texts[row], "errors": errors}
        items.append(
            {
                "id": str(row),
                "image_png": world.png_bytes(world.draw(scene)),
                "truth": f"{scene.kind}: " + ", ".join(" ".join(group.words) for group in scene.groups),
                "answers": answers,
            }
        )
    return items


def corrections(path: Path) -> list[dict[str, Any]]:
    """The first corrected pairs of a preference file."""
    items = []
    for record in sources.read(path)[:PAIRS]:
        chosen, rejected = record.segments or ((), ())
        items.append(
            {
                "id": record.id,
                "image_png": record.image,
                "rejected": record.rejected,
                "chosen": record.chosen,
                "rejected_segments": [segment.__dict__ for segment in rejected],
                "chosen_segments": [segment.__dict__ for segment in chosen],
            }
        )
    return items
