"""Two people's segments of one answer side by side: on its words, and segment with segment."""

import functools
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from rlhfv_jax.annotation import diff
from rlhfv_jax.annotation.diff import Change

Stretch = tuple[int, int]  # words [first, last) of the answer
_LETTER = re.compile(r"[^\W_]")


@functools.lru_cache(maxsize=1024)
def words(response: str) -> tuple[Stretch, ...]:
    """Code points [start, end) of every word of the answer; signs are none."""
    places = diff.tokens(response)
    return tuple(p for p in places if response[p[0]].isalnum() or (p[1] - p[0] > 1 and _LETTER.search(response, *p)))


def stretches(changes: Sequence[Change], response: str) -> list[Stretch]:
    """The words that each change touches; one that touches none (an insertion, a sign) marks the word before it."""
    places = words(response)
    starts, ends = [start for start, _ in places], [end for _, end in places]
    found = []
    for change in changes:
        first, last = bisect_right(ends, change.src0), bisect_left(starts, change.src1)
        if first >= last:
            first, last = max(0, first - 1), min(max(1, first), len(places))
        found.append((first, last))
    return found


def pairs(left: Sequence[Change], right: Sequence[Change], response: str) -> list[tuple[int, int]]:
    """`matched` of the words that the changes touch, without looking at words where the places are the same."""
    if not left or not right:
        return []
    if [c[:2] for c in left] == [c[:2] for c in right]:
        return [(i, i) for i in range(len(left))]
    return matched(stretches(left, response), stretches(right, response))


def matched(left: Sequence[Stretch], right: Sequence[Stretch]) -> list[tuple[int, int]]:
    """Pairs (i, j) of stretches that share a word, each in one pair at most: as many pairs as possible, and of those
    the ones that share most. Both in order; stretches of one person do not overlap, so no two pairs cross.

    >>> matched([(0, 2), (5, 6)], [(1, 3), (5, 7)])
    [(0, 0), (1, 1)]
    """
    if not left or not right:
        return []
    best = [[(0, 0)] * (len(right) + 1) for _ in range(len(left) + 1)]  # (pairs, shared words) of left[i:], right[j:]
    for i in range(len(left) - 1, -1, -1):
        for j in range(len(right) - 1, -1, -1):
            best[i][j] = max(best[i + 1][j], best[i][j + 1])
            if (shared := _shared(left[i], right[j])) > 0:
                pairs, words_ = best[i + 1][j + 1]
                best[i][j] = max(best[i][j], (pairs + 1, words_ + shared))
    found = []
    i = j = 0
    while i < len(left) and j < len(right):
        if best[i][j] == best[i + 1][j]:
            i += 1
        elif best[i][j] == best[i][j + 1]:
            j += 1
        else:
            found.append((i, j))
            i, j = i + 1, j + 1
    return found


def _shared(a: Stretch, b: Stretch) -> int:
    return min(a[1], b[1]) - max(a[0], b[0])


def f1(pairs: int, left: int, right: int) -> float:
    """2 pairs / (left + right); 1 where there is nothing on either side."""
    return 2 * pairs / (left + right) if left + right else 1.0


def common_words(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    >>> common_words("a red bus here".split(), "a blue bus".split())
    2
    """
    return diff.common_rows(a, b)[0].bit_count()
