"""What the formats of other annotation tools share: images in JSON, offsets, and a note that keeps our work whole.

Another tool shows an answer with labels on its words and a corrected text. It has no place for an inserted word's
label, for where a change was divided, or for seconds and revisions. So every task that we write carries a note of each
annotation. On the way back an annotation that was not touched is found in the notes and comes back whole; one that was
made or changed elsewhere is read by its labels and text.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from rlhfv_jax.annotation import diff, works
from rlhfv_jax.annotation.checks import Typed
from rlhfv_jax.annotation.collected import Finished
from rlhfv_jax.annotation.diff import Change
from rlhfv_jax.annotation.project import SKIP_REASONS, Project
from rlhfv_jax.annotation.rows import Options, Work
from rlhfv_jax.annotation.works import Span
from rlhfv_jax.errors import UserError

# Where other projects' tasks have what ours have under the first name.
IMAGES = ("image", "img", "image_url", "picture")
PROMPTS = ("prompt", "question", "instruction")
RESPONSES = ("response", "answer", "text", "caption")
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # Label Studio's mark before the name of an uploaded file


def data_url(mime: str, data: bytes) -> str:
    """An image as text."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def image(value: Any, options: Options, base: Path, where: str) -> bytes:
    """The encoded image of a data URL, of a path, or of Label Studio's address of a local or uploaded file.

    Raises UserError for anything else.
    """
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: expected a data URL or the path of a file, found {str(value)[:80]!r}.")
    if value.startswith("data:"):
        head, _, body = value.partition(",")
        try:
            data = base64.b64decode(body, validate=True) if head.endswith(";base64") else b""
        except (binascii.Error, ValueError) as error:
            raise UserError(f"{where}: the data URL is not base64 ({error}).") from error
        if not data:
            raise UserError(f"{where}: expected a data URL with base64, found {value[:40]!r}.")
        return data
    if "://" in value:
        raise UserError(f"{where}: {value[:80]!r} is not fetched; download it, and name its folder with --images.")
    folder = Path(options.images) if options.images else base
    if options.confined and not options.images:
        raise UserError(f"{where}: an uploaded file holds its images as data URLs, or the server has --images.")
    split = urlsplit(value)
    name = unquote(parse_qs(split.query).get("d", [""])[0] or split.path)
    names = [name, name.lstrip("/"), Path(name).name, _UPLOADED.sub("", Path(name).name)]
    for path in dict.fromkeys(folder / name for name in names):
        inside = not options.confined or path.resolve().is_relative_to(folder.resolve())
        if inside and path.is_file():
            return path.read_bytes()
    raise UserError(f"{where}: no file of {value[:80]!r} in {folder}; name the images' folder with --images.")


def first_of(values: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    """The first of the fields that is there; raises UserError."""
    for name in names:
        if values.get(name) is not None:
            return values[name]
    raise UserError(f"{where}: expected one of {', '.join(names)}, found {', '.join(values) or 'nothing'}.")


def spans_of(segments: Sequence[Typed], response: str) -> list[Span]:
    """Segments as labels on the answer's words; an insertion is on the word before it, else on the word after."""
    found = []
    for segment in segments:
        start, end = segment.change.src0, segment.change.src1
        if start == end:
            before, after = works.neighbors(response, start)
            start, end = before or after or (0, len(response))
        found.append((start, end, segment.type))
    return found


def code_points(
    raw: str, text: str, start: Any, end: Any, stored: str | None, unit: str, where: str
) -> tuple[int, int]:
    """[start, end) of the file's answer `raw` as code points of its normalized form `text`.

    Tools count code points or JavaScript's UTF-16 units, and some versions of one tool the former, some the latter. The
    words that a label stores tell; without them the unit is that of which both ends lie between two words, else `unit`.

    Raises UserError naming the place.
    """
    if type(start) is not int or type(end) is not int or not 0 <= start < end:
        raise UserError(f"{where}: expected two offsets, the first below the second, found {start!r} and {end!r}.")
    readings = {"code points": (start, end)}
    if any(c > "\uffff" for c in raw):
        readings["UTF-16"] = (_from_utf16(raw, start), _from_utf16(raw, end))
    inside = {name: (a, b) for name, (a, b) in readings.items() if 0 <= a < b <= len(raw)}
    if not inside:
        raise UserError(f"{where}: [{start}, {end}) leaves the answer's {len(raw)} characters.")
    if stored is not None:
        wanted = stored.replace("\\n", "\n")
        inside = {
            name: (a, b) for name, (a, b) in inside.items() if raw[a:b].strip() in (stored.strip(), wanted.strip())
        }
        if not inside:
            raise UserError(f"{where}: {stored[:60]!r} does not stand at [{start}, {end}) of the answer.")
    elif len(inside) > 1:
        ends = {place for word in diff.tokens(raw) for place in word}
        inside = {name: both for name, both in inside.items() if ends.issuperset(both)} or inside
    a, b = inside.get(unit) or next(iter(inside.values()))
    parts = [diff.normalized(raw[i:j]) for i, j in ((0, a), (a, b), (b, len(raw)))]
    if "".join(parts) != text:
        raise UserError(f"{where}: [{start}, {end}) cuts a character of several parts.")
    return len(parts[0]), len(parts[0]) + len(parts[1])


def _from_utf16(text: str, offset: int) -> int:
    """The code point at a UTF-16 offset, -1 where there is none."""
    at = 0
    for i, character in enumerate(text):
        if at == offset:
            return i
        at += 2 if character > "\uffff" else 1
    return len(text) if at == offset else -1


def note(row: Finished) -> dict[str, Any]:
    """All of an annotation, as tasks carry it for the way back."""
    return {
        "annotator": row.pseudonym,
        "revision": row.rev,
        "verdict": row.verdict,
        "skip_reason": row.skip_reason,
        "active_ms": row.active_ms,
        "opened": row.opened,
        "updated": row.updated,
        "corrected": row.corrected,
        "segments": [[*segment.change, segment.type] for segment in row.segments],
    }


class Notes:
    """The notes of one task, each used once."""

    def __init__(self, values: Any, response: str, project: Project, where: str):
        self._works: list[tuple[Work, list[Span]]] = []
        for i, value in enumerate(values if isinstance(values, list) else []):
            one = _work(value, response, project, f"{where}, note {i}")
            self._works.append((one, sorted(spans_of(one.segments, response))))

    def untouched(self, verdict: str, corrected: str, spans: Sequence[Span], reason: str = "") -> Work | None:
        """The noted annotation that another tool would show just so."""
        for i, (work, shown) in enumerate(self._works):
            same = work.verdict == verdict and (verdict != "corrected" or shown == sorted(spans))
            same = same and (verdict == "skipped" or work.corrected == corrected)
            if same and (verdict != "skipped" or reason in ("", work.skip_reason)):
                del self._works[i]
                return work
        return None


def _work(value: Any, response: str, project: Project, where: str) -> Work:
    try:
        segments = [(Change(*row[:4]), str(row[4])) for row in value["segments"]]
        corrected = str(value["corrected"])
        if not all(type(place) is int for change, _ in segments for place in change):
            raise TypeError("an offset is no whole number")
        corrects = value["verdict"] == "corrected"
        typed = works.exact(response, corrected, segments, project, where) if corrects else ()
        return Work(
            person=str(value["annotator"]),
            verdict=str(value["verdict"]),
            corrected=corrected,
            segments=typed,
            cuts=works.cuts_of(response, corrected, [change for change, _ in segments]),
            state="skipped" if value["verdict"] == "skipped" else "submitted",
            skip_reason=str(value["skip_reason"]),
            rev=int(value["revision"]),
            active_ms=int(value["active_ms"]),
            opened=float(value["opened"]),
            updated=float(value["updated"]),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{where}: not a note of ours ({error}); take it out, and the labels are read.") from error


def work(
    response: str, corrected: str | None, spans: Sequence[Span], person: str, project: Project, notes: Notes, where: str
) -> Work:
    """An annotation of another tool: from the notes where it was not touched, else from its labels and text."""
    text = diff.normalized(response if corrected is None else corrected)
    verdict = "clean" if not spans and text == response else "corrected"
    if known := notes.untouched(verdict, text, spans):
        return known
    verdict, text, segments, cuts = works.from_spans(response, corrected, spans, project, where)
    return Work(person, verdict, text, segments, cuts)


def skip(reason: str, response: str, person: str, tool: str, notes: Notes) -> Work:
    """An item put aside in another tool."""
    if known := notes.untouched("skipped", response, (), reason):
        return known
    text = reason.strip() or f"skipped in {tool}"
    ours = text in [key for key, _ in SKIP_REASONS] or text.startswith("other: ")
    return Work(person, "skipped", response, state="skipped", skip_reason=text if ours else f"other: {text[:1000]}")
