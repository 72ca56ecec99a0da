"""What people marked in answers: MHumanEval's labels, or the segments beside a file of pairs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhfv_jax.annotation.project import CORRECTION_TYPES, MHUMANEVAL_TYPES, HallucinationType
from rlhfv_jax.annotation.texts import normalized
from rlhfv_jax.data import sources
from rlhfv_jax.errors import UserError
from rlhfv_jax.evals.answers import read_objects

KNOWN = {t.key: t for t in (*CORRECTION_TYPES, *MHUMANEVAL_TYPES)}
OTHER_COLOR = "#4a4f57"
SIDECAR = ".segments.jsonl"


class Span(NamedTuple):
    """Code points [start, end) of a normalized answer, and a type, which may be empty."""

    start: int
    end: int
    type: str


class Labels:
    """Spans of answers, found by the answer's text with its question's id, or else with the question's own text.

    The same words about another image are another answer, so where a label names its question, only that counts. The
    first label of an answer is taken; labels by text that contradict each other are none.
    """

    def __init__(self) -> None:
        self._labels: list[tuple[Span, ...]] = []
        self._by_id: dict[tuple[str, str], int] = {}
        self._by_text: dict[tuple[str, str], int | None] = {}
        self._used: set[int] = set()
        self.repeated = 0

    def add(self, response: str, spans: tuple[Span, ...], identity: str = "", prompt: str = "") -> None:
        """Takes what was marked in one response; by its question's id, its text, or both."""
        row = len(self._labels)
        if identity and (identity, response) in self._by_id:
            self.repeated += 1
            return
        self._labels.append(spans)
        if identity:
            self._by_id[identity, response] = row
        if prompt:
            first = self._by_text.setdefault((normalized(prompt), response), row)
            if first is not None and self._labels[first] != spans:
                self._by_text[normalized(prompt), response] = None

    def of(self, identity: str, prompt: str, response: str) -> tuple[Span, ...] | None:
        """The spans of an answer; None where nobody labeled it, empty where nothing was found wrong."""
        row = self._by_id.get((identity, response))
        if row is None:
            row = self._by_text.get((prompt, response))
        if row is None:
            return None
        self._used.add(row)
        return self._labels[row]

    @property
    def unused(self) -> int:
        """Labels of responses that nobody asked for, or of which it is not clear whose they are."""
        return len(self._labels) - len(self._used)


def read(paths: Sequence[str | Path]) -> Labels:
    """Reads `spans.jsonl` of the annotation application, and `NAME.segments.jsonl` with the pairs beside it.

    Raises UserError naming file and line where a span is not what stands at its offsets.
    """
    labels = Labels()
    for path in map(Path, paths):
        if path.name.endswith(SIDECAR):
            _read_pairs(path, labels)
        else:
            _read_spans(path, labels)
    return labels


def _read_spans(path: Path, labels: Labels) -> None:
    for where, row in read_objects(path):
        if row.get("verdict") == "skipped":
            continue
        response, found = row.get("response"), row.get("spans")
        if not isinstance(response, str) or not isinstance(found, list):
            raise UserError(
                f"{where}: expected the response and its spans, as the annotation application exports them; found "
                f"{', '.join(row)}."
            )
        spans = tuple(_span(one, response, where) for one in found)
        if row.get("question_id") not in (None, ""):
            labels.add(normalized(response), spans, identity=str(row["question_id"]))
        else:
            labels.add(normalized(response), spans, prompt=str(row.get("prompt") or ""))


def _read_pairs(path: Path, labels: Labels) -> None:
    """The segments of each pair's original answer; those of the corrected one are right words, not wrong ones."""
    stem = path.name.removesuffix(SIDECAR)
    pairs = next((p for end in (".parquet", ".jsonl") if (p := path.with_name(stem + end)).is_file()), None)
    if pairs is None or not path.is_file():
        raise UserError(f"{path} and its pairs, {stem}.parquet or {stem}.jsonl, are to stand beside each other.")
    for record in sources.read(pairs):
        if record.segments is not None:
            where, text = f"{path}, rejected of {record.id!r}", record.rejected
            found = [{"start": s.start, "end": s.end, "type": s.type} for s in record.segments[1] if s.start < s.end]
            spans = tuple(_span(one, text, where) for one in found)
            labels.add(normalized(text), spans, record.id, record.question)


def _span(value: Any, text: str, where: str) -> Span:
    """A checked span, its offsets counted in the normalized text."""
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: expected each span as an object with start, end and type, found {value!r}.")
    start, end, kind = value.get("start"), value.get("end"), value.get("type", "")
    if type(start) is not int or type(end) is not int or not isinstance(kind, str):
        raise UserError(f"{where}: expected start and end as numbers of characters and type as text, found {value!r}.")
    words = text[max(0, start) : end]
    if not 0 <= start < end <= len(text) or value.get("text", words) != words:
        raise UserError(f"{where}: characters {start} to {end} of the response are not {value.get('text')!r}.")
    before = len(normalized(text[:start]))
    after = before + len(normalized(words))
    if normalized(text)[before:after] != normalized(words):
        raise UserError(f"{where}: characters {start} to {end} divide a composed character.")
    return Span(before, after, type_key(kind))


def type_key(kind: str) -> str:
    """A type as the application writes it: "Object" is "objects", "other" is "others"."""
    low = kind.strip().lower()
    return f"{low}s" if f"{low}s" in KNOWN else low


def types(used: Iterable[str]) -> list[HallucinationType]:
    """Label, letter and color of the types that were used, the paper's first; others get a letter of their own."""
    wanted = set(used) - {""}
    found = [KNOWN[key] for key in KNOWN if key in wanted]
    taken = {t.letter for t in KNOWN.values()}
    for key in sorted(wanted - KNOWN.keys()):
        letter = next(_free(key, taken), "#")
        taken.add(letter)
        found.append(HallucinationType(key, key.capitalize(), letter, OTHER_COLOR, ""))
    return found


def _free(key: str, taken: set[str]) -> Iterator[str]:
    return (letter for letter in f"{key.upper()}ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter.isalnum() and letter not in taken)
