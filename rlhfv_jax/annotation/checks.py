"""What a save may hold: shapes of fields first, then the project's rules. The server decides; the browser mirrors."""

import dataclasses
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rlhfv_jax.annotation import diff
from rlhfv_jax.annotation.diff import Change, Cuts
from rlhfv_jax.annotation.faults import Invalid, TooLarge, Unconfirmed
from rlhfv_jax.annotation.project import SKIP_REASONS, Project

STATES = ("draft", "submitted")
VERDICTS = ("", "corrected", "clean")
MOST_SEGMENTS = 500
MOST_MS = 24 * 3600 * 1000
_SURROGATE = re.compile("[\ud800-\udfff]")


class Typed(NamedTuple):
    """A segment as it is stored: where, what the texts were, which operation, which type ("" for none yet)."""

    change: Change
    src_text: str
    dst_text: str
    op: str
    type: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return self.change._asdict() | {
            "src_text": self.src_text,
            "dst_text": self.dst_text,
            "op": self.op,
            "type": self.type,
        }


@dataclass(frozen=True)
class Save:
    """A request to save, its fields checked by themselves. `segments` are (where, type) as the browser saw them."""

    base_rev: int
    op_id: str
    state: str
    verdict: str
    corrected: str
    segments: tuple[tuple[Change, str], ...]
    cuts: Cuts
    active_ms: int
    confirm: bool


class _Reader:
    """Reads fields of a JSON object and gathers what is wrong with them."""

    def __init__(self, body: Mapping[str, Any]):
        self.body = body
        self.wrong: list[tuple[str, str]] = []

    def whole(self, values: Mapping[str, Any], name: str, path: str, most: int, default: int | None = None) -> int:
        value = values.get(name, default)
        if type(value) is not int or not 0 <= value <= most:
            self.wrong.append((path + name, f"expected a whole number from 0 to {most}"))
            return 0
        return value

    def text(self, name: str, default: str | None = None, most: int = diff.MAX_CHARACTERS) -> str:
        value = self.body.get(name, default)
        if not isinstance(value, str):
            self.wrong.append((name, "expected text"))
            return ""
        if len(value) > most:
            raise TooLarge(f"{name} is longer than {most} characters.")
        if (not value.isascii() and _SURROGATE.search(value)) or "\0" in value:
            self.wrong.append((name, "holds a character that is not text"))
            return ""
        return value

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        value = self.body.get(name, default)
        if not isinstance(value, str) or value not in choices:
            self.wrong.append((name, f"expected one of {', '.join(map(repr, choices))}"))
            return default
        return value

    def rows(self, values: Mapping[str, Any], name: str, path: str) -> list[Any]:
        value = values.get(name, [])
        if not isinstance(value, list) or len(value) > MOST_SEGMENTS:
            self.wrong.append((path + name, f"expected a list of at most {MOST_SEGMENTS}"))
            return []
        return value

    def places(self, values: Mapping[str, Any], name: str) -> tuple[tuple[int, int], ...]:
        found = []
        for i, value in enumerate(self.rows(values, name, "cuts.")):
            if isinstance(value, list) and len(value) == 2 and all(type(v) is int and 0 <= v < 2**31 for v in value):
                found.append((value[0], value[1]))
            else:
                self.wrong.append((f"cuts.{name}[{i}]", "expected two offsets"))
        return tuple(found)

    def done(self) -> None:
        if self.wrong:
            path, detail = self.wrong[0]
            raise Invalid(f"{path}: {detail}.", self.wrong)


def operation(body: Any) -> tuple[int, str]:
    """(base_rev, op_id) that every change of an annotation carries; raises Invalid."""
    reader = _Reader(_object(body))
    found = _operation(reader)
    reader.done()
    return found


def _operation(reader: _Reader) -> tuple[int, str]:
    base = reader.whole(reader.body, "base_rev", "", 2**31)
    op_id = reader.text("op_id", most=10_000)
    if not 8 <= len(op_id) <= 64 or not op_id.isascii() or not op_id.replace("-", "").isalnum():
        reader.wrong.append(("op_id", "expected 8 to 64 letters, digits and hyphens"))
    return base, op_id


def _object(body: Any) -> Mapping[str, Any]:
    if not isinstance(body, dict):
        raise Invalid("The body is not a JSON object.", [("", "expected a JSON object")])
    return body


def save_request(body: Any, response: str) -> Save:
    """The save that a body asks for; raises Invalid with the path of every field that cannot be read."""
    reader = _Reader(_object(body))
    base, op_id = _operation(reader)
    corrected = diff.normalized(reader.text("corrected", response))
    segments = []
    for i, row in enumerate(reader.rows(reader.body, "segments", "")):
        path = f"segments[{i}]"
        if not isinstance(row, dict):
            reader.wrong.append((path, "expected an object"))
            continue
        place = {name: reader.whole(row, name, f"{path}.", 2**31, 0) for name in Change._fields}
        kind = row.get("type", "")
        if not isinstance(kind, str):
            reader.wrong.append((f"{path}.type", "expected text"))
            kind = ""
        segments.append((Change(**place), kind))
        _check_texts(reader, path, row, Change(**place), response, corrected)
    cuts = reader.body.get("cuts", {})
    if not isinstance(cuts, dict):
        reader.wrong.append(("cuts", "expected an object"))
        cuts = {}
    save = Save(
        base_rev=base,
        op_id=op_id,
        state=reader.choice("state", STATES, "draft"),
        verdict=reader.choice("verdict", VERDICTS, ""),
        corrected=corrected,
        segments=tuple(segments),
        cuts=Cuts(reader.places(cuts, "splits"), reader.places(cuts, "merges")),
        active_ms=reader.whole(reader.body, "active_ms", "", MOST_MS, 0),
        confirm=reader.body.get("confirm") is True,
    )
    reader.done()
    return save


def _check_texts(reader: _Reader, path: str, row: Mapping[str, Any], at: Change, response: str, corrected: str) -> None:
    """A browser that counts otherwise than the server is refused, not stored."""
    for name, text, (start, end) in (
        ("src", response, (at.src0, at.src1)),
        ("dst", corrected, (at.dst0, at.dst1)),
    ):
        if start > end or end > len(text):
            reader.wrong.append((f"{path}.{name}1", f"[{start}, {end}) leaves the text's {len(text)} characters"))
        elif f"{name}_text" in row and row[f"{name}_text"] != text[start:end]:
            reader.wrong.append((f"{path}.{name}_text", f"is not what stands at [{start}, {end})"))


def corrections(save: Save, response: str, project: Project) -> list[Typed]:
    """The canonical segments of a correction, each with the browser's type where it saw the same segment."""
    changes = diff.segments(response, save.corrected, save.cuts)
    given = dict(save.segments)
    inherited = diff.inherited(changes, save.segments)
    found = []
    for change, fallback in zip(changes, inherited, strict=True):
        kind = given.get(change, fallback)
        src, dst = response[change.src0 : change.src1], save.corrected[change.dst0 : change.dst1]
        found.append(Typed(change, src, dst, change.op, kind))
    return found


def labels(save: Save, response: str, project: Project) -> list[Typed]:
    """Labeled stretches of the response in order, drawn out to whole words; raises Invalid where two overlap."""
    words = diff.tokens(response)
    found: list[Typed] = []
    for i, (change, kind) in enumerate(sorted(save.segments)):
        inside = [(a, b) for a, b in words if a < change.src1 and change.src0 < b]
        if not inside:
            raise Invalid("A segment holds no word.", [(f"segments[{i}]", "holds no word")])
        start, end = inside[0][0], inside[-1][1]
        if found and found[-1].change.src1 > start:
            raise Invalid("Two segments overlap.", [(f"segments[{i}]", "overlaps the one before it")])
        found.append(Typed(Change(start, end, start, end), response[start:end], response[start:end], "span", kind))
    return found


def submission(save: Save, segments: Sequence[Typed], response: str, project: Project, recent: Sequence[str]) -> None:
    """Raises Invalid where a submission breaks a rule, Unconfirmed where it is unusual and not confirmed."""
    wrong = []
    for i, segment in enumerate(segments):
        if not segment.type:
            wrong.append((f"segments[{i}].type", f"{(segment.src_text or segment.dst_text)!r} has no type"))
        elif segment.type not in project.type_keys:
            wrong.append((f"segments[{i}].type", f"{segment.type!r} is no type of this project"))
    edited = project.kind == "correction" and save.corrected != response
    if save.verdict == "clean" and (segments or edited):
        wrong.append(("verdict", "no hallucination, and yet the text was changed or marked"))
    elif save.verdict != "clean" and project.kind == "correction" and not save.corrected.strip():
        wrong.append(("corrected", "the text is empty"))
    elif save.verdict != "clean" and not segments:
        what = "only white space was changed" if edited else "nothing was changed or marked"
        wrong.append(("corrected" if project.kind == "correction" else "segments", f"{what}; is it free of errors?"))
    if wrong:
        raise Invalid(f"{wrong[0][1].capitalize()}.", wrong)
    if not save.confirm and (found := warnings(save, segments, response, project, recent)):
        raise Unconfirmed("Please look again.", found)


def warnings(
    save: Save, segments: Sequence[Typed], response: str, project: Project, recent: Sequence[str]
) -> list[tuple[str, str]]:
    """(path, sentence) of what is allowed but unusual."""
    found = []
    words = diff.tokens(response)
    touched = sum(any(a < s.change.src1 and s.change.src0 < b for s in segments) for a, b in words)
    if project.kind == "correction" and touched > len(words) / 2 and len(words) > 3:
        found.append(("corrected", "More than half of the words changed: correct only what the image contradicts."))
    if project.kind == "correction" and len(save.corrected) > 1.5 * len(response):
        found.append(("corrected", "The correction is much longer than the answer."))
    for i, segment in enumerate(segments):
        text = max(segment.src_text, segment.dst_text, key=len)
        if len(text.split()) > 25:
            found.append((f"segments[{i}]", f"A segment has {len(text.split())} words; can it be shorter?"))
        elif all(unicodedata.category(c)[0] not in "LN" for c in segment.src_text + segment.dst_text):
            found.append((f"segments[{i}]", "A segment has only punctuation."))
    if save.active_ms < 3000:
        found.append(("active_ms", "That took less than three seconds."))
    if save.verdict == "clean" and len(recent) >= 5 and set(recent[-5:]) == {"clean"}:
        found.append(("verdict", "The last five answers were without hallucination too."))
    return found


def skip_reason(body: Any) -> str:
    """The reason of a skip as `key` or `other: text`; raises Invalid."""
    body = _object(body)
    reason, text = body.get("reason"), body.get("text", "")
    if reason not in [key for key, _ in SKIP_REASONS]:
        raise Invalid("A skip needs a reason.", [("reason", "expected one of the project's reasons")])
    if reason != "other":
        return str(reason)
    reader = _Reader(body)
    text = reader.text("text", "", most=1000).strip()
    if not text:
        reader.wrong.append(("text", "please say why"))
    reader.done()
    return f"other: {text}"


def replaced(save: Save, **changes: Any) -> Save:
    """The save with some fields changed."""
    return dataclasses.replace(save, **changes)
