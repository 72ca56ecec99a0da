"""Preference pairs from the model's own answers: sample, let the oracle correct, write the published schema."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhfv_jax.data import sources
from rlhfv_jax.errors import UserError
from rlhfv_jax.miniature import captions, corpus, oracle, world

SPLIT = "prompts"


@dataclass(frozen=True)
class PairSettings:
    """How many answers are sampled, how many pairs are kept, at which temperature; how wrong objects are corrected."""

    prompts: int
    count: int
    temperature: float
    deletions: bool


def correct_answers(texts: Sequence[str], scenes: Sequence[world.Scene], s: PairSettings, seed: int) -> list[Any]:
    """Preference records of the first `count` answers that the oracle corrects, with its typed segments.

    Raises UserError where there are fewer.
    """
    records = []
    for row, (text, scene) in enumerate(zip(texts, scenes, strict=True)):
        correction = oracle.correct(text, scene, corpus.rng_of(seed, SPLIT, row, stream=3), s.deletions)
        if correction is None:
            continue
        sides = (correction.chosen_segments, correction.rejected_segments)
        spans = tuple(tuple(sources.Segment(**segment) for segment in side) for side in sides)
        records.append(
            sources.PreferenceRecord(
                id=str(row),
                image=world.png_bytes(world.draw(scene)),
                question=captions.prompt(scene.kind),
                chosen=correction.chosen,
                rejected=correction.rejected,
                segments=(spans[0], spans[1]),
                origin="miniature",
            )
        )
        if len(records) == s.count:
            return records
    raise UserError(
        f"Only {len(records)} of {len(texts)} sampled answers could be corrected, {s.count} pairs are wanted; raise "
        "config.pairs.prompts."
    )


def write(folder: Path, records: Sequence[Any], sizes: Sequence[int], sampled: int) -> None:
    """Writes `<size>.parquet` (the first pairs) with its segments for every size, and `summary.json` last."""
    folder.mkdir(parents=True, exist_ok=True)
    for size in sizes:
        sources.write_parquet(records[:size], folder / f"{size}.parquet", ds_name="miniature")
    types = Counter(segment.type for record in records for segment in record.segments[1])
    total = sum(types.values())
    summary = {
        "pairs": len(records),
        "sampled": sampled,
        "segments_per_pair": total / len(records),
        "types": {name: 100.0 * count / total for name, count in types.most_common()},
    }
    temporary = folder / "summary.json.tmp"
    temporary.write_text(json.dumps(summary, indent=2) + "\n")
    os.replace(temporary, folder / "summary.json")
