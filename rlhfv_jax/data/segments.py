"""Which tokens were corrected: from two responses, or from an annotator's spans. Plain Python, never on the batch."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

Span = tuple[int, int]  # characters or items [start, end)

HUNKS = ("all", "replace")
UNITS = ("token", "word", "span")
OVER = ("response", "row")

# A word, with its apostrophe; every other visible character stands alone.
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class Diff:
    """How corrected tokens are found. The defaults are the paper's words taken literally: every corrected segment.

    hunks: "all" counts insertions and deletions; "replace" only what has words on both sides (released script).
    min_match: a run of equal items shorter than this is part of the change around it (3 in the released script).
    unit: "token"; "word" compares words without regard to case; "span" takes the annotator's segments and nothing else.
    over: "response" compares the two answers; "row" the two whole rows, prompt and tail included (released script).
    autojunk: difflib's frequency rule, which from 200 items on ignores frequent ones as anchors (released script).
    """

    hunks: str = "all"
    min_match: int = 1
    unit: str = "token"
    over: str = "response"
    autojunk: bool = False


def gaps(
    rejected: Sequence[Hashable],
    chosen: Sequence[Hashable],
    hunks: str = "all",
    min_match: int = 1,
    autojunk: bool = False,
) -> list[tuple[Span, Span]]:
    """The changed stretches (of rejected, of chosen) in order, as half-open item ranges; one of the two may be empty.

    The alignment is difflib's longest-matching-block heuristic, rejected against chosen.

    >>> gaps("a red bus".split(), "a blue big bus".split())
    [((1, 2), (1, 3))]
    """
    matcher = SequenceMatcher(None, rejected, chosen, autojunk=autojunk)
    found = []
    a = b = 0
    for block in matcher.get_matching_blocks():
        if 0 < block.size < min_match:  # the last block is empty and marks the end
            continue
        left, right = (a, block.a), (b, block.b)
        both = left[0] < left[1] and right[0] < right[1]
        either = left[0] < left[1] or right[0] < right[1]
        if both if hunks == "replace" else either:
            found.append((left, right))
        a, b = block.a + block.size, block.b + block.size
    return found


def changed(
    rejected: Sequence[Hashable],
    chosen: Sequence[Hashable],
    hunks: str = "all",
    min_match: int = 1,
    autojunk: bool = False,
) -> tuple[list[bool], list[bool]]:
    """Marks the items of each side that lie in a changed stretch (see `gaps`).

    >>> changed("a red bus".split(), "a blue big bus".split())
    ([False, True, False], [False, True, True, False])
    """
    marks = [False] * len(rejected), [False] * len(chosen)
    for spans in gaps(rejected, chosen, hunks, min_match, autojunk):
        for side, (start, stop) in zip(marks, spans, strict=True):
            side[start:stop] = [True] * (stop - start)
    return marks


def words(text: str) -> list[Span]:
    """The characters of every word; punctuation marks are words of their own."""
    return [match.span() for match in _WORD.finditer(text)]


def changed_words(rejected: str, chosen: str, diff: Diff) -> tuple[list[Span], list[Span]]:
    """The characters of the words that differ, compared without regard to case; one span a changed stretch.

    >>> changed_words("A red bus.", "A blue bus.", Diff())
    ([(2, 5)], [(2, 6)])
    """
    spans = words(rejected), words(chosen)
    before, after = (
        [text[a:b].casefold() for a, b in side] for text, side in zip((rejected, chosen), spans, strict=True)
    )
    found: tuple[list[Span], list[Span]] = [], []
    for stretch in gaps(before, after, diff.hunks, diff.min_match, diff.autojunk):
        for out, side, (start, stop) in zip(found, spans, stretch, strict=True):
            if start < stop:
                out.append((side[start][0], side[stop - 1][1]))
    return found


def inside(tokens: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Marks the tokens whose character span overlaps one of the given spans (all half-open)."""
    return [any(a < stop and start < b for start, stop in spans) for a, b in tokens]


def trimmed(text: str, span: Span) -> Span:
    """The span without white space at its ends: a double click also takes the space after a word, which is part of
    the next word's token."""
    inner = text[span[0] : span[1]]
    lead = len(inner) - len(inner.lstrip())
    return span[0] + lead, span[0] + max(lead, len(inner.rstrip()))
