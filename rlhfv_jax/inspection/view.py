"""One encoded row as plain values, ready for JSON, a terminal or a page."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from rlhfv_jax.data import images
from rlhfv_jax.data.encoding import EncodedExample, EncodedPair
from rlhfv_jax.data.records import SIDES, AnsweredRecord, PreferenceRecord, Segment
from rlhfv_jax.data.tokenizer import Tokenizer
from rlhfv_jax.errors import UserError
from rlhfv_jax.structs import IGNORE


def row_view(row: EncodedPair | EncodedExample, index: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """`chosen` and `rejected` (or `example`) with `tokens` (T), `pieces` (T), `labels` and `weights` (T-1), and more.

    Raises UserError where the image cannot be read.
    """
    record = row.record
    view: dict[str, Any] = {"index": index, "id": record.id, "where": record.where, "origin": record.origin}
    view["image"] = image_view(record)
    if isinstance(row, EncodedExample):
        weights = (row.labels != IGNORE).astype(np.float32)
        return view | {"example": _side(row.tokens, row.labels, weights, tokenizer)}
    pair: PreferenceRecord = row.record
    view |= {"question": pair.question, "history": pair.history}
    for i, name in enumerate(SIDES):
        text = (pair.chosen, pair.rejected)[i]
        view[name] = {"text": text, "segments": _segments(text, pair.segments[i] if pair.segments else ())}
        view[name] |= _side(row.rows[i].tokens, row.rows[i].labels, row.weights[i], tokenizer)
    return view


def _side(tokens: np.ndarray, labels: np.ndarray, weights: np.ndarray, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "tokens": tokens.tolist(),
        "pieces": [tokenizer.piece(token) for token in tokens.tolist()],
        "labels": labels.tolist(),
        "weights": [round(weight, 6) for weight in weights.tolist()],
    }


def _segments(text: str, segments: Sequence[Segment]) -> list[dict[str, Any]]:
    return [segment.__dict__ | {"text": text[segment.start : segment.end]} for segment in segments]


def image_view(record: PreferenceRecord | AnsweredRecord) -> dict[str, Any]:
    """Format, size in pixels and bytes of the record's image; raises UserError naming the row where it has none."""
    try:
        images.open_image(record.image)
    except UserError as error:
        raise UserError(f"{record.where}, image: {error}.") from error
    with Image.open(io.BytesIO(record.image)) as image:
        return {"format": image.format, "width": image.width, "height": image.height, "bytes": len(record.image)}


def sides(view: dict[str, Any]) -> list[str]:
    """The names of a view's token rows, in order."""
    return [name for name in (*SIDES, "example") if name in view]


def runs(side: dict[str, Any]) -> list[tuple[str, float, list[str]]]:
    """(kind, weight, pieces) of every stretch of alike tokens; kind: prompt, target or corrected.

    The first token is never a target. Token t + 1 is what label and weight t are about.
    """
    found: list[tuple[str, float, list[str]]] = []
    for piece, weight in zip(side["pieces"], [0.0, *side["weights"]], strict=True):
        kind = "prompt" if weight == 0 else "target" if weight == 1 else "corrected"
        if not found or found[-1][:2] != (kind, weight):
            found.append((kind, weight, []))
        found[-1][2].append(piece)
    return found


def spelled(pieces: Sequence[str]) -> str:
    """Pieces as a person reads them: spaces for their mark, repeated ones counted, line breaks and bytes spelled."""
    words: list[str] = []
    i = 0
    while i < len(pieces):
        count = 1
        while i + count < len(pieces) and pieces[i + count] == pieces[i]:
            count += 1
        text = "↵" if pieces[i] == "<0x0A>" else pieces[i].replace("▁", " ")
        words.append(f"{text}×{count}" if count > 3 else text * count)
        i += count
    return "".join(words)
