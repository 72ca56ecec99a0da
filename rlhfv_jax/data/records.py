"""A preference record, what makes one valid, its segments' sidecar, and the digest of many."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rlhfv_jax import textfiles
from rlhfv_jax.errors import UserError

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Segment:
    """A corrected stretch of an answer: characters [start, end) and a hallucination type (may be empty)."""

    start: int
    end: int
    type: str = ""


@dataclass(frozen=True)
class PreferenceRecord:
    """One pair: an image (encoded bytes), a question, the corrected answer and the original one.

    `segments` are the annotator's own spans (chosen, rejected), None where the file has none; `where` names file and
    row for messages; `history` are earlier (question, answer) turns; `logps` are stored reference log-probs of every
    token after the first (chosen, rejected), float32[T-1] each.
    """

    id: str
    image: bytes
    question: str
    chosen: str
    rejected: str
    segments: tuple[tuple[Segment, ...], tuple[Segment, ...]] | None = None
    origin: str = ""
    where: str = ""
    history: tuple[tuple[str, str], ...] = ()
    logps: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """Everything that is said about the image."""
        return (self.question, self.chosen, self.rejected, *(text for turn in self.history for text in turn))


@dataclass(frozen=True)
class AnsweredRecord:
    """One image with the (question, answer) turns about it.

    `answers` are all annotators' answers to a single question, where there are several: evaluation scores against them,
    training takes the turn's.
    """

    id: str
    image: bytes
    turns: tuple[tuple[str, str], ...]
    origin: str = ""
    where: str = ""
    answers: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """Everything that is said about the image."""
        return tuple(text for turn in self.turns for text in turn)


Record = TypeVar("Record", PreferenceRecord, AnsweredRecord)


def preference_record(
    identity: str, image: bytes, fields: Mapping[str, Any], origin: str, where: str
) -> PreferenceRecord:
    """A record of question, chosen, rejected and optional history and logps; raises UserError naming the field."""
    question, chosen, rejected = (text_field(fields, name, where) for name in ("question", *SIDES))
    if chosen == rejected:
        raise UserError(f"{where}, chosen and rejected: the two answers are equal, so the pair prefers nothing.")
    history = turns_field(fields["history"], f"{where}, history") if fields.get("history") else ()
    logps = _stored_logps(fields["logps"], f"{where}, logps") if fields.get("logps") is not None else None
    return PreferenceRecord(identity, image, question, chosen, rejected, None, origin, where, history, logps)


def text_field(fields: Mapping[str, Any], name: str, where: str) -> str:
    """A text that is there, not blank, and can be written; raises UserError otherwise."""
    if name not in fields:
        raise UserError(f"{where}, {name}: the field is missing; found {', '.join(fields)}.")
    value = fields[name]
    if not isinstance(value, str):
        raise UserError(f"{where}, {name}: expected text, found {type(value).__name__}.")
    if not value.strip():
        raise UserError(f"{where}, {name}: the text is empty.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}, {name}: the text holds half a surrogate pair.") from error
    return value


def turns_field(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    """[[question, answer], ...] as a tuple of pairs of texts. Raises UserError for anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(_is_turn(turn) for turn in value):
        raise UserError(f"{where}: expected a list of [question, answer] texts, found {str(value)[:80]}.")
    return tuple((question, answer) for question, answer in value)


def _is_turn(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _stored_logps(value: Any, where: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of the released six (sum, average and per-token log-probs of chosen, then of rejected) those of each token."""
    six = value.get("logps") if isinstance(value, Mapping) else value
    if not isinstance(six, Sequence) or isinstance(six, str) or len(six) != 6:
        raise UserError(
            f"{where}: expected a list of six (sum, average, per token; chosen, rejected), found {str(value)[:80]}."
        )
    rows = []
    for side, row in zip(SIDES, (six[2], six[5]), strict=True):
        try:
            array = np.asarray(row, np.float32)
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: the {side} answer's log-probs per token are not numbers.") from error
        if array.ndim != 1 or not np.isfinite(array).all():
            raise UserError(f"{where}: the {side} answer's log-probs per token are not a list of finite numbers.")
        rows.append(tuple(array.tolist()))
    return rows[0], rows[1]


def json_value(text: Any, where: str) -> Any:
    """Any JSON value; raises UserError where the text is none."""
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}).") from error


def json_object(text: Any, where: str) -> dict[str, Any]:
    """A JSON object; raises UserError where the text is anything else."""
    value = json_value(text, where)
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(value).__name__}.")
    return value


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Row numbers (from 0) and texts of the lines that are not blank.

    Raises UserError for a file that is not there or no UTF-8 text.
    """
    for row, line in enumerate(textfiles.read(path).split("\n")):
        if line.strip():
            yield row, line


def segments_path(path: Path) -> Path:
    """`pairs.parquet` -> `pairs.segments.jsonl`."""
    return path.with_name(path.stem + ".segments.jsonl")


def read_segments(path: Path) -> dict[str, dict[str, Any]]:
    """The sidecar's lines by id; empty where the file does not exist.

    Raises UserError for a line without an id, or with one used before.
    """
    if not path.exists():
        return {}
    sidecar: dict[str, dict[str, Any]] = {}
    for row, line in text_lines(path):
        value = json_object(line, f"{path}, row {row}")
        if "id" not in value:
            raise UserError(f"{path}, row {row}, id: the field is missing.")
        if str(value["id"]) in sidecar:
            raise UserError(f"{path}, row {row}, id: {str(value['id'])!r} was used before.")
        sidecar[str(value["id"])] = value | {"where": f"{path}, row {row}"}
    return sidecar


def with_segments(record: PreferenceRecord, sidecar: Mapping[str, Any] | None) -> PreferenceRecord:
    """The record with its sidecar line's segments, which must lie inside its answers.

    Raises UserError where they do not.
    """
    if sidecar is None:
        return record
    sides = []
    for side, answer in zip(SIDES, (record.chosen, record.rejected), strict=True):
        where = f"{sidecar['where']}, {side}"
        found = sidecar.get(side)
        if not isinstance(found, list) or not all(map(_is_segment, found)):
            raise UserError(f"{where}: expected a list of objects with start, end and type, found {found!r}.")
        segments = tuple(Segment(s["start"], s["end"], str(s.get("type") or "")) for s in found)
        for segment in segments:
            if not 0 <= segment.start <= segment.end <= len(answer):
                raise UserError(
                    f"{where}: [{segment.start}, {segment.end}) leaves the answer's {len(answer)} characters."
                )
        sides.append(segments)
    return dataclasses.replace(record, segments=(sides[0], sides[1]))


def _is_segment(value: Any) -> bool:
    return isinstance(value, dict) and all(type(value.get(name)) is int for name in ("start", "end"))


def unique(records: Sequence[Record]) -> None:
    """Raises UserError where two records have the same id."""
    seen: dict[str, str] = {}
    for record in records:
        if record.id in seen:
            raise UserError(f"{record.where}, id: {record.id!r} was used before, at {seen[record.id]}; ids are unique.")
        seen[record.id] = record.where


def select(records: list[Record], origins: Sequence[str], count: int, path: str | Path) -> list[Record]:
    """The records of the given `origin_dataset`s (all of them for none), and of these the first `count` (0: all).

    Raises UserError where an origin does not occur or there are fewer records than asked for.
    """
    known = {record.origin for record in records}
    if missing := [origin for origin in origins if origin not in known]:
        raise UserError(f"{path} has no rows of origin {missing[0]!r}; found {', '.join(sorted(known)) or 'none'}.")
    kept = [record for record in records if not origins or record.origin in origins]
    if count > len(kept):
        raise UserError(f"{path} has {len(kept)} such rows, data.count asks for {count}.")
    return kept[: count or None]


def digest(records: Sequence[PreferenceRecord] | Sequence[AnsweredRecord]) -> str:
    """sha256 of everything that training reads, in order; the same for the same rows in any file format."""
    sha = hashlib.sha256()
    for record in records:
        if isinstance(record, AnsweredRecord):
            fields: list[Any] = [record.id, record.turns]
        else:
            segments = record.segments and [[s.__dict__ for s in side] for side in record.segments]
            fields = [record.id, record.question, record.chosen, record.rejected, segments]
            fields += [record.history, record.logps] if record.history or record.logps else []
        sha.update(json.dumps(fields).encode())
        sha.update(hashlib.sha256(record.image).digest())
    return sha.hexdigest()
