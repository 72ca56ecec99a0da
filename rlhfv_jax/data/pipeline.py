"""Records to batches: encode once, then shuffle, decode images and stack, with static shapes, through grain.

The batch at step t is a function of (records, seed, batch size, t) alone, so the step counter is the data cursor.
With n processes each takes every n-th pair of the stream, and the global batch at step t has the same pairs for any n.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from rlhfv_jax.data import images, segments, sources
from rlhfv_jax.data.chat import Row, Template, encode_row
from rlhfv_jax.data.tokenizer import MuffinTokenizer, find_reserved
from rlhfv_jax.errors import UserError
from rlhfv_jax.structs import IGNORE, PairBatch, SftBatch

BUCKET = 8  # row lengths round up to this: what kernels like, and one shape a data set


@dataclass(frozen=True)
class EncodedPair:
    """A pair ready for padding: (chosen, rejected) rows and credit float32[T-1] of each, unpadded."""

    record: sources.PreferenceRecord
    rows: tuple[Row, Row]
    weights: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class EncodingStats:
    """What encoding found, for the manifest: pairs read, dropped as too long, without any corrected token, longest."""

    pairs: int
    too_long: int
    without_corrected_tokens: int
    longest_row: int


def encode_pairs(
    records: Sequence[sources.PreferenceRecord],
    tokenizer: MuffinTokenizer,
    template: Template,
    queries: int,
    *,
    gamma: float,
    spans: str = "auto",
    max_length: int = 2048,
    too_long: str = "error",
) -> tuple[list[EncodedPair], EncodingStats]:
    """Tokens, targets and credit of every pair; raises UserError naming file, row and field.

    Corrected tokens get `gamma`: those in the annotator's segments where the record has them and spans is "auto", else
    those that differ between the answers (spans="diff" always does this). A pair longer than `max_length` is an error,
    or left out and counted with too_long="drop".
    """
    pairs: list[EncodedPair] = []
    dropped = 0
    for record in records:
        rows = [_encode(record, side, tokenizer, template, queries) for side in ("chosen", "rejected")]
        longest = max(len(row.tokens) for row in rows)
        if longest > max_length:
            if too_long == "drop":
                dropped += 1
                continue
            raise UserError(
                f"{record.where}: the pair takes {longest} tokens, data.max_length is {max_length}. Raise it, or set "
                "data.too_long=drop to leave such pairs out."
            )
        marks = _corrected(record, rows, use_segments=spans == "auto")
        weights = tuple(_credit(row, mark, gamma) for row, mark in zip(rows, marks, strict=True))
        pairs.append(EncodedPair(record, (rows[0], rows[1]), (weights[0], weights[1])))
    if not pairs:
        raise UserError(
            f"All {dropped} pairs are longer than data.max_length={max_length}; nothing is left to train on."
        )
    plain = sum(not any(_marked(row, weights) for row, weights in zip(p.rows, p.weights, strict=True)) for p in pairs)
    longest = max(len(row.tokens) for pair in pairs for row in pair.rows)
    return pairs, EncodingStats(len(pairs), dropped, plain if gamma != 1 else 0, longest)


def _encode(
    record: sources.PreferenceRecord, side: str, tokenizer: MuffinTokenizer, template: Template, queries: int
) -> Row:
    if token := find_reserved(record.question):
        raise UserError(f"{record.where}, question: the text contains the reserved token {token}.")
    try:
        return encode_row(tokenizer, template, record.question, getattr(record, side), queries)
    except UserError as error:
        raise UserError(f"{record.where}, {side}: {error}.") from error


def _corrected(record: sources.PreferenceRecord, rows: Sequence[Row], use_segments: bool) -> list[list[bool]]:
    """For (chosen, rejected), a mark for each token of the answer."""
    if use_segments and record.segments is not None:
        return [
            segments.inside(row.spans, [_without_space(text, segment) for segment in side])
            for row, text, side in zip(rows, (record.chosen, record.rejected), record.segments, strict=True)
        ]
    chosen, rejected = (row.tokens[row.answer].tolist() for row in rows)
    marks = segments.changed(rejected, chosen)
    return [marks[1], marks[0]]


def _without_space(text: str, segment: sources.Segment) -> tuple[int, int]:
    """The segment's characters without white space around them: a double click also takes the space after a word,
    which is part of the next word's token."""
    words = text[segment.start : segment.end]
    lead = len(words) - len(words.lstrip())
    return segment.start + lead, segment.start + max(lead, len(words.rstrip()))


def _credit(row: Row, corrected: Sequence[bool], gamma: float) -> np.ndarray:
    """float32[T-1]: 1 on every target, gamma on the corrected tokens of the answer, 0 elsewhere."""
    weights = (row.labels != IGNORE).astype(np.float32)
    weights[row.answer.start - 1 : row.answer.stop - 1][np.asarray(corrected, bool)] = gamma
    return weights


def _marked(row: Row, weights: np.ndarray) -> bool:
    return bool(((row.labels != IGNORE) & (weights != 1)).any())


def bucket(length: int) -> int:
    """The static row length for rows of up to `length` tokens."""
    return -(-length // BUCKET) * BUCKET


class PairSource:
    """Random access to padded pairs: `source[row]` is a PairBatch without its leading axis (a grain data source).

    `ref_logps` is float32[pairs, 2, T-1], or None where they are not known yet (zeros then).
    """

    def __init__(self, pairs: Sequence[EncodedPair], image_size: int, pad_id: int, length: int, ref_logps: Any = None):
        self._pairs, self._image_size, self._pad_id, self._length = pairs, image_size, pad_id, length
        self._ref_logps = ref_logps

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, row: Any) -> PairBatch:
        pair = self._pairs[int(row)]
        t = self._length
        return PairBatch(
            image=decode_image(pair.record, self._image_size),
            tokens=np.stack([pad(r.tokens, t, self._pad_id) for r in pair.rows]),
            labels=np.stack([pad(r.labels, t - 1, IGNORE) for r in pair.rows]),
            weights=np.stack([pad(w, t - 1, 0.0) for w in pair.weights]),
            lengths=np.asarray([len(r.tokens) for r in pair.rows], np.int32),
            ref_logps=np.zeros((2, t - 1), np.float32) if self._ref_logps is None else self._ref_logps[int(row)],
            row=np.int32(row),
            valid=np.bool_(True),
        )


class ChosenSource:
    """The chosen answers of pairs as supervised examples: `source[row]` is an SftBatch of one row an image."""

    def __init__(self, pairs: PairSource):
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, row: Any) -> SftBatch:
        pair = self._pairs[row]
        weights = (pair.labels[:1] != IGNORE).astype(np.float32)
        return SftBatch(pair.image, pair.tokens[:1], pair.labels[:1], weights, pair.lengths[:1], pair.row, pair.valid)


def decode_image(record: sources.PreferenceRecord, size: int) -> np.ndarray:
    try:
        return images.decode(record.image, size)
    except UserError as error:
        raise UserError(f"{record.where}, image: {error}.") from error


def pad(array: np.ndarray, length: int, value: float) -> np.ndarray:
    """Fills up to `length` on the right."""
    return np.pad(array, (0, length - len(array)), constant_values=value)


def train_batches(
    source: Any,
    batch_size: int,
    seed: int,
    *,
    start: int = 0,
    process: int = 0,
    processes: int = 1,
    augment: images.Augmentation | None = None,
) -> Iterator[Any]:
    """Endless batches from step `start` on: reshuffled every epoch, batches may span an epoch's end.

    `batch_size` is the global one; each of `processes` gets its share. `augment` draws anew at every epoch.
    """
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    if augment is not None:
        dataset = dataset.random_map(lambda item, rng: item._replace(image=augment(item.image, rng)))
    dataset = dataset[process::processes]
    dataset = dataset.batch(batch_size // processes, drop_remainder=True)
    # A handful of batches ahead is enough; grain's default of 500 would hold gigabytes of images.
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    iterator = iter(dataset.to_iter_dataset(options))
    grain.experimental.set_next_index(iterator, start)
    return iterator


def ordered_batches(source: Any, batch_size: int) -> Iterator[Any]:
    """Every row once, in order; the last batch is filled with copies of its last row, marked not valid."""
    for first in range(0, len(source), batch_size):
        rows = [source[row] for row in range(first, min(first + batch_size, len(source)))]
        filler = rows[-1]._replace(valid=np.bool_(False))
        rows += [filler] * (batch_size - len(rows))
        yield type(rows[0])(*(np.stack(field) for field in zip(*rows, strict=True)))
