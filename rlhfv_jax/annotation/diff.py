"""Segments of a correction: the words that differ between an answer and its corrected text. Pure Python.

`static/diff.js` is the same algorithm for the browser; a test holds the two equal on thousands of texts. Offsets are
Unicode code points into NFC texts. Training's own diff (`data.segments`) is another: it marks tokens, and is not used
where a record has annotated segments.
"""

import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import regex

from rlhfv_jax.annotation.texts import normalized as normalized
from rlhfv_jax.errors import UserError

# One pattern for both languages (regex and JavaScript's flag u). A CJK character stands alone; letters, numbers and
# marks join, over an inner apostrophe or hyphen and over a point or comma between digits; whatever else is visible
# stands alone with its marks, and an emoji with its modifiers and joined parts.
_CJK = r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]"
_RUN = rf"(?:(?!{_CJK})[\p{{L}}\p{{N}}\p{{M}}_])+"
_SIGN = r"[^\p{Z}\x09-\x0d\x1c-\x1f\x85][\p{M}" + "\U0001f3fb-\U0001f3ff]*"
PATTERN = (
    rf"{_CJK}\p{{M}}*|{_RUN}(?:(?:['’-]|(?<=\p{{Nd}})[.,](?=\p{{Nd}})){_RUN})*"
    rf"|\p{{Regional_Indicator}}{{2}}|{_SIGN}(?:\u200d{_SIGN})*"
)
_TOKEN = regex.compile(PATTERN)
_ASCII_RUN = "[A-Za-z0-9_]+"
_ASCII_TOKEN = re.compile(  # the same for text of ASCII alone, where the standard library is four times as fast
    rf"{_ASCII_RUN}(?:(?:['-]|(?<=[0-9])[.,](?=[0-9])){_ASCII_RUN})*|[^\x09-\x0d\x1c-\x20]"
)
_WORD = regex.compile(r"[\p{L}\p{N}]")
SENTENCE_ENDS = frozenset(".!?…。！？")
MERGE_OVER = 1  # words between two changes that still make them one
MAX_CELLS = 2**20  # a larger table is not filled: the whole stretch counts as one change
MAX_CHARACTERS = 20_000

Cut = tuple[int, int]  # code points into (answer, corrected text)


class Change(NamedTuple):
    """answer[src0:src1] became corrected[dst0:dst1]; one of the two may be empty."""

    src0: int
    src1: int
    dst0: int
    dst1: int

    @property
    def op(self) -> str:
        """replace, delete or insert."""
        return "insert" if self.src0 == self.src1 else "delete" if self.dst0 == self.dst1 else "replace"


@dataclass(frozen=True)
class Cuts:
    """What an annotator changed about the segments: places to divide at, and ends to join with the next segment."""

    splits: tuple[Cut, ...] = ()
    merges: tuple[Cut, ...] = ()


def tokens(text: str) -> list[tuple[int, int]]:
    """Code points [start, end) of every word and sign.

    >>> [text[a:b] for text in ["A well-kept 3.5 m bus."] for a, b in tokens(text)]
    ['A', 'well-kept', '3.5', 'm', 'bus', '.']
    """
    pattern = _ASCII_TOKEN if text.isascii() else _TOKEN
    return [match.span() for match in pattern.finditer(text)]


@functools.lru_cache(maxsize=1024)
def _known_tokens(text: str) -> list[tuple[int, int]]:
    """As `tokens`, for an answer, which is compared at every save of everybody who corrects it. Not to be changed."""
    return tokens(text)


def segments(source: str, corrected: str, cuts: Cuts = Cuts(), merge_over: int = MERGE_OVER) -> list[Change]:
    """The changed stretches in order; both texts normalized and at most MAX_CHARACTERS long, else UserError.

    >>> segments("A red bus.", "A blue bus.")
    [Change(src0=2, src1=5, dst0=2, dst1=6)]
    """
    if max(len(source), len(corrected)) > MAX_CHARACTERS:
        raise UserError(f"The text is longer than {MAX_CHARACTERS} characters.")
    a, b = _known_tokens(source), tokens(corrected)
    left, right = [source[i:j] for i, j in a], [corrected[i:j] for i, j in b]
    spans = _merged(_changes(left, right), source, a, left, merge_over)
    splits = [(_index(a, s), _index(b, d)) for s, d in cuts.splits]
    spans = _split(spans, {(s, d) for s, d in splits if s is not None and d is not None})
    found: list[Change] = []
    for a0, a1, b0, b1 in spans:
        change = Change(*_characters(a, a0, a1), *_characters(b, b0, b1))
        if found and (found[-1].src1, found[-1].dst1) in cuts.merges:
            change = Change(found[-1].src0, change.src1, found[-1].dst0, change.dst1)
            found.pop()
        found.append(change)
    return found


_Spans = list[tuple[int, int, int, int]]  # of tokens


def _changes(left: Sequence[str], right: Sequence[str]) -> _Spans:
    """Maximal changed spans of a longest common subsequence; of equal ones that which drops from the left first."""
    start = 0
    while start < min(len(left), len(right)) and left[start] == right[start]:
        start += 1
    end = 0
    while end < min(len(left), len(right)) - start and left[-1 - end] == right[-1 - end]:
        end += 1
    a, b = left[start : len(left) - end], right[start : len(right) - end]
    if not a and not b:
        return []
    if len(a) * len(b) > MAX_CELLS or not a or not b:
        return [(start, start + len(a), start, start + len(b))]
    rows, ends = common_rows(a, b), [(1 << k) - 1 for k in range(len(b), -1, -1)]
    spans: _Spans = []
    i = j = i0 = j0 = 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            if i > i0 or j > j0:
                spans.append((start + i0, start + i, start + j0, start + j))
            i, j = i + 1, j + 1
            i0, j0 = i, j
        elif (rows[i + 1] & ends[j]).bit_count() >= (rows[i] & ends[j + 1]).bit_count():
            i += 1
        else:
            j += 1
    if len(a) > i0 or len(b) > j0:
        spans.append((start + i0, start + len(a), start + j0, start + len(b)))
    return spans


def common_rows(a: Sequence[str], b: Sequence[str]) -> list[int]:
    """For every i <= len(a) the tokens of b that lengthen the longest common subsequence of a[i:] and b: bits.

    The lowest bit is b's last token, so that a[i:] and b[j:] share as many tokens as row i has ones in its lowest
    len(b) - j bits. A row at once, by the carries of one addition (Hyyrö 2004).
    """
    every = (1 << len(b)) - 1
    places = dict.fromkeys(b, 0)
    for k, token in enumerate(reversed(b)):
        places[token] |= 1 << k
    rows = [0] * (len(a) + 1)
    for i in range(len(a) - 1, -1, -1):
        others = rows[i + 1] ^ every
        hits = others & places.get(a[i], 0)
        rows[i] = (others + hits | others - hits) & every ^ every
    return rows


def _merged(spans: _Spans, source: str, a: Sequence[tuple[int, int]], left: Sequence[str], over: int) -> _Spans:
    """Neighbors with at most `over` words and no end of sentence or line between them become one."""
    found: _Spans = []
    for span in spans:
        if found:
            last = found[-1]
            between = left[last[1] : span[0]]
            gap = source[a[last[1]][0] if last[1] == 0 else a[last[1] - 1][1] : a[span[0] - 1][1]]
            words = (token for token in between if _WORD.search(token))
            few = sum(1 for _ in itertools.islice(words, over + 1)) <= over
            if few and "\n" not in gap and SENTENCE_ENDS.isdisjoint(between):
                found[-1] = (last[0], span[1], last[2], span[3])
                continue
        found.append(span)
    return found


def _split(spans: _Spans, cuts: Iterable[tuple[int, int]]) -> _Spans:
    found: _Spans = []
    ordered = sorted(cuts)
    for a0, a1, b0, b1 in spans:
        for i, j in ordered:
            if a0 <= i <= a1 and b0 <= j <= b1 and (i, j) not in ((a0, b0), (a1, b1)):
                found.append((a0, i, b0, j))
                a0, b0 = i, j
        found.append((a0, a1, b0, b1))
    return found


def _index(spans: Sequence[tuple[int, int]], position: int) -> int | None:
    """How many tokens end at or before the position; None where it lies inside a token."""
    count = sum(end <= position for _, end in spans)
    return None if count < len(spans) and spans[count][0] < position else count


def _characters(spans: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """Of tokens [start, end) the code points; an empty stretch lies at the end of the token before it."""
    if start < end:
        return spans[start][0], spans[end - 1][1]
    place = spans[start - 1][1] if start else 0
    return place, place


def inherited(new: Sequence[Change], old: Sequence[tuple[Change, str]]) -> list[str]:
    """A type for each new segment: of the old one with the same or the most shared source, "" where two compete.

    Insertions share nothing, and take the type of an old insertion at most one code point away.
    """
    types = []
    for change in new:
        best, found = 0, set()
        for before, name in old:
            if change.src0 == change.src1:
                shared = int(before.src0 == before.src1 and abs(before.src0 - change.src0) <= 1)
            else:
                shared = min(change.src1, before.src1) - max(change.src0, before.src0)
            if shared > best:
                best, found = shared, {name}
            elif shared == best > 0:
                found.add(name)
        types.append(found.pop() if len(found) == 1 else "")
    return types
