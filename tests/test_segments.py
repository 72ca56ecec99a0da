"""The marks are an alignment: what is left unmarked is the same on both sides."""

import random

import pytest

from rlhfv_jax.data import segments


def unmarked(items, marks):
    return [item for item, mark in zip(items, marks, strict=True) if not mark]


def test_equal_sequences_have_no_change():
    assert segments.changed("abc", "abc") == ([False] * 3, [False] * 3)
    assert segments.changed([], []) == ([], [])


def test_disjoint_sequences_are_all_change():
    assert segments.changed([1, 2], [3, 4, 5]) == ([True] * 2, [True] * 3)
    assert segments.changed([], [3]) == ([], [True])


@pytest.mark.parametrize(
    ("rejected", "chosen", "expected"),
    [
        ("a c", "a b c", ([0, 0], [0, 1, 0])),  # insertion
        ("a b c", "a c", ([0, 1, 0], [0, 0])),  # deletion
        ("a x c", "a b c", ([0, 1, 0], [0, 1, 0])),  # substitution
        ("a x c y e", "a b c d e", ([0, 1, 0, 1, 0], [0, 1, 0, 1, 0])),  # a block of one item stays unchanged
    ],
)
def test_insertions_deletions_and_substitutions_count(rejected, chosen, expected):
    marks = segments.changed(rejected.split(), chosen.split())
    assert marks == tuple([bool(mark) for mark in side] for side in expected)


@pytest.mark.parametrize("alphabet", [2, 5, 50])
def test_removing_the_marked_items_leaves_equal_sequences(alphabet):
    rng = random.Random(alphabet)
    for _ in range(200):
        rejected, chosen = (rng.choices(range(alphabet), k=rng.randint(0, 40)) for _ in range(2))
        left, right = segments.changed(rejected, chosen)
        assert (len(left), len(right)) == (len(rejected), len(chosen))
        assert unmarked(rejected, left) == unmarked(chosen, right)


def test_long_repetitive_sequences_mark_only_the_edit():
    """difflib's autojunk would drop every one of these frequent items as an anchor from 200 items on."""
    before, after = ["a", "b", "c", "d"] * 60, ["a", "b", "d", "c"] * 60
    rejected, chosen = [*before, "red", *after], [*before, "blue", "big", *after]
    left, right = segments.changed(rejected, chosen)
    assert [rejected[i] for i, mark in enumerate(left) if mark] == ["red"]
    assert [chosen[i] for i, mark in enumerate(right) if mark] == ["blue", "big"]


def test_inside_marks_overlapping_tokens_only():
    tokens = [(0, 3), (3, 7), (7, 8), (8, 8)]
    assert segments.inside(tokens, [(3, 7)]) == [False, True, False, False]
    assert segments.inside(tokens, [(2, 4), (7, 8)]) == [True, True, True, False]
    assert segments.inside(tokens, []) == [False] * 4
    assert segments.inside(tokens, [(5, 5)])[0] is False
