"""Records to rows: tokens, targets and credit of every pair, unpadded."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rlhfv_jax.data import segments
from rlhfv_jax.data.chat import Row, Template, cut, encode_row, encode_turns
from rlhfv_jax.data.records import SIDES, AnsweredRecord, PreferenceRecord
from rlhfv_jax.data.segments import Diff
from rlhfv_jax.data.tokenizer import Tokenizer, find_reserved
from rlhfv_jax.errors import UserError
from rlhfv_jax.structs import IGNORE

TOO_LONG = ("error", "drop", "truncate")


@dataclass(frozen=True)
class EncodedPair:
    """A pair ready for padding: (chosen, rejected) rows and credit float32[T-1] of each, unpadded."""

    record: PreferenceRecord
    rows: tuple[Row, Row]
    weights: tuple[np.ndarray, np.ndarray]

    @property
    def longest(self) -> int:
        """Tokens of the longer row."""
        return max(len(row.tokens) for row in self.rows)


@dataclass(frozen=True)
class EncodedExample:
    """A supervised example ready for padding: its record, tokens int32[T] and labels int32[T-1]."""

    record: PreferenceRecord | AnsweredRecord
    tokens: np.ndarray
    labels: np.ndarray

    @property
    def longest(self) -> int:
        """Tokens of the row."""
        return len(self.tokens)


@dataclass(frozen=True)
class EncodingStats:
    """What encoding found, for the manifest.

    Rows kept, dropped as too long, cut as too long, without any corrected token; tokens of the longest row; corrected
    segments by hallucination type, where annotators named one.
    """

    pairs: int
    too_long: int
    without_corrected_tokens: int
    longest_row: int
    truncated: int = 0
    types: dict[str, int] = field(default_factory=dict)


def encode_pairs(
    records: Sequence[PreferenceRecord],
    tokenizer: Tokenizer,
    template: Template,
    queries: int,
    *,
    gamma: float,
    diff: Diff = Diff(),  # noqa: B008, frozen
    label_mask: str = "answer",
    spans: str = "auto",
    max_length: int = 2048,
    too_long: str = "error",
) -> tuple[list[EncodedPair], EncodingStats]:
    """Tokens, targets and credit of every pair; raises UserError naming file, row and field.

    Corrected tokens get `gamma`: those in the annotator's segments where the record has them and spans is "auto", else
    those that `diff` finds (spans="diff" always does this). A pair longer than `max_length` is an error, left out and
    counted with too_long="drop", or loses the end of its answers and is counted with "truncate"; image and question
    are never cut.
    """
    pairs: list[EncodedPair] = []
    dropped = truncated = 0
    for record in records:
        rows = [_encode(record, side, tokenizer, template, queries, label_mask) for side in SIDES]
        longest = max(len(row.tokens) for row in rows)
        if longest > max_length:
            if too_long == "drop":
                dropped += 1
                continue
            if too_long == "error":
                raise UserError(
                    f"{record.where}: the pair takes {longest} tokens, data.max_length is {max_length}. Raise it, or "
                    "set data.too_long to drop (leaves such pairs out) or truncate (cuts their answers)."
                )
            truncated += 1
            rows = [_cut(record, row, max_length) for row in rows]
        marks = corrected(record, rows, diff, use_segments=spans == "auto")
        weights = [_credit(row, mark, gamma) for row, mark in zip(rows, marks, strict=True)]
        pairs.append(EncodedPair(record, (rows[0], rows[1]), (weights[0], weights[1])))
    if not pairs:
        raise UserError(
            f"All {dropped} pairs are longer than data.max_length={max_length}; nothing is left to train on."
        )
    plain = sum(not any(_marked(row, weights) for row, weights in zip(p.rows, p.weights, strict=True)) for p in pairs)
    types = Counter(s.type for pair in pairs for side in pair.record.segments or () for s in side if s.type)
    return pairs, EncodingStats(
        pairs=len(pairs),
        too_long=dropped,
        truncated=truncated,
        without_corrected_tokens=plain if gamma != 1 else 0,
        longest_row=max(pair.longest for pair in pairs),
        types=dict(types.most_common()),
    )


def encode_examples(
    records: Sequence[AnsweredRecord],
    tokenizer: Tokenizer,
    template: Template,
    queries: int,
    *,
    instructions: Sequence[str] = (),
    label_mask: str = "answer",
    max_length: int = 2048,
    too_long: str = "error",
) -> tuple[list[EncodedExample], EncodingStats]:
    """Tokens and targets of every answered question or conversation; too long ones as in `encode_pairs`.

    Raises UserError naming the row that cannot be encoded.
    """
    examples = []
    dropped = truncated = 0
    for record in records:
        turns = instructed(record, instructions)
        try:
            tokens, labels, answers = encode_turns(tokenizer, template, turns, queries, label_mask)
        except UserError as error:
            raise UserError(f"{record.where}: {error}.") from error
        if len(tokens) > max_length:
            if too_long == "drop":
                dropped += 1
                continue
            if too_long == "error" or answers[0][0].start >= max_length:
                raise UserError(
                    f"{record.where}: the row takes {len(tokens)} tokens, {answers[0][0].start} of them before the "
                    f"first answer, data.max_length is {max_length}. Raise it, or set data.too_long to drop."
                )
            truncated += 1
        examples.append(EncodedExample(record, tokens[:max_length], labels[: max_length - 1]))
    if not examples:
        raise UserError(
            f"All {dropped} rows are longer than data.max_length={max_length}; nothing is left to train on."
        )
    longest = max(example.longest for example in examples)
    return examples, EncodingStats(len(examples), dropped, 0, longest, truncated)


def instructed(record: AnsweredRecord, instructions: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The turns with a single question put into one of the instructions, the same one for an id every time.

    An instruction is a text with {question} in it, as "{question} Answer with one word."; without any, and in longer
    conversations, questions stay as they are.
    """
    if not instructions or len(record.turns) > 1:
        return record.turns
    ((question, answer),) = record.turns
    number = int.from_bytes(hashlib.sha256(record.id.encode()).digest()[:8], "big")
    return ((instructions[number % len(instructions)].replace("{question}", question), answer),)


def chosen_examples(pairs: Sequence[EncodedPair]) -> list[EncodedExample]:
    """The chosen answers of pairs as supervised examples."""
    return [EncodedExample(pair.record, pair.rows[0].tokens, pair.rows[0].labels) for pair in pairs]


def _encode(
    record: PreferenceRecord, side: str, tokenizer: Tokenizer, template: Template, queries: int, label_mask: str
) -> Row:
    if token := find_reserved(record.question):
        raise UserError(f"{record.where}, question: the text contains the reserved token {token}.")
    answer = getattr(record, side)
    try:
        return encode_row(tokenizer, template, record.question, answer, queries, label_mask, record.history)
    except UserError as error:
        raise UserError(f"{record.where}, {side}: {error}.") from error


def _cut(record: PreferenceRecord, row: Row, length: int) -> Row:
    try:
        return cut(row, min(length, len(row.tokens)))
    except UserError as error:
        raise UserError(f"{record.where}: {error}, data.max_length is {length}; they are never cut.") from error


def corrected(record: PreferenceRecord, rows: Sequence[Row], diff: Diff, use_segments: bool) -> list[np.ndarray]:
    """For (chosen, rejected), bool[T-1]: which targets spell something corrected.

    Raises UserError for a record without the segments that `diff` asks for.
    """
    texts = (record.chosen, record.rejected)
    if record.segments is not None and (use_segments or diff.unit == "span"):
        spans = [
            [segments.trimmed(text, (segment.start, segment.end)) for segment in side]
            for text, side in zip(texts, record.segments, strict=True)
        ]
        return _inside(rows, spans)
    if diff.unit == "span":
        raise UserError(f"{record.where}: the record has no segments, and ddpo.unit=span takes nothing else.")
    if diff.unit == "word":
        rejected_words, chosen_words = segments.changed_words(record.rejected, record.chosen, diff)
        return _inside(rows, [chosen_words, rejected_words])
    parts = [slice(1, None) if diff.over == "row" else row.answer for row in rows]
    chosen, rejected = (row.tokens[part].tolist() for row, part in zip(rows, parts, strict=True))
    marks = segments.changed(rejected, chosen, diff.hunks, diff.min_match, diff.autojunk)
    return [_targets(row, part, mark) for row, part, mark in zip(rows, parts, marks[::-1], strict=True)]


def _inside(rows: Sequence[Row], spans: Sequence[Sequence[segments.Span]]) -> list[np.ndarray]:
    return [_targets(row, row.answer, segments.inside(row.spans, side)) for row, side in zip(rows, spans, strict=True)]


def _targets(row: Row, part: slice, marks: Sequence[bool]) -> np.ndarray:
    """bool[T-1] from marks on a stretch of the row's tokens: target t is token t + 1."""
    found = np.zeros(len(row.tokens), bool)
    found[part] = marks
    return found[1:]


def _credit(row: Row, marks: np.ndarray, gamma: float) -> np.ndarray:
    """float32[T-1]: 1 on every target, gamma on the corrected ones, 0 elsewhere."""
    return np.where(row.labels == IGNORE, 0.0, np.where(marks, gamma, 1.0)).astype(np.float32)


def _marked(row: Row, weights: np.ndarray) -> bool:
    return bool(((row.labels != IGNORE) & (weights != 1)).any())
