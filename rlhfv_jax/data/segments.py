"""Which tokens were corrected: from two responses, or from an annotator's spans. Plain Python, never on the batch."""

from collections.abc import Hashable, Sequence
from difflib import SequenceMatcher

Span = tuple[int, int]


def changed(rejected: Sequence[Hashable], chosen: Sequence[Hashable]) -> tuple[list[bool], list[bool]]:
    """Marks the items of each side that the other side lacks, insertions and deletions included.

    The alignment is difflib's longest-matching-block heuristic with its frequency rule (autojunk) off, so it depends on
    these two sequences alone. Blocks as short as one item count as unchanged.

    >>> changed("a red bus".split(), "a blue big bus".split())
    ([False, True, False], [False, True, True, False])
    """
    marks = [False] * len(rejected), [False] * len(chosen)
    matcher = SequenceMatcher(None, rejected, chosen, autojunk=False)
    for kind, a_start, a_stop, b_start, b_stop in matcher.get_opcodes():
        if kind != "equal":
            marks[0][a_start:a_stop] = [True] * (a_stop - a_start)
            marks[1][b_start:b_stop] = [True] * (b_stop - b_start)
    return marks


def inside(tokens: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Marks the tokens whose character span overlaps one of the given spans (all half-open)."""
    return [any(a < stop and start < b for start, stop in spans) for a, b in tokens]
