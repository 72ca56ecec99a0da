"""What the annotation app says that training will weigh, against the texts and segments themselves."""

import pytest

pytest.importorskip("regex")

from rlhfv_jax.annotation import diff, preview
from rlhfv_jax.annotation.checks import Typed


def typed(response: str, corrected: str) -> list[Typed]:
    return [
        Typed(s, response[s.src0 : s.src1], corrected[s.dst0 : s.dst1], s.op, "objects")
        for s in diff.segments(response, corrected)
    ]


@pytest.mark.parametrize(
    ("response", "corrected", "marked"),
    [
        ("A red bus.", "A blue bus.", {"rejected": "red", "chosen": "blue"}),
        ("A 🐕 sits, no é.", "A 🐈 sits, no é.", {"rejected": "🐕", "chosen": "🐈"}),
        ("Zebras run.", "日本 run.", {"rejected": "Zebras", "chosen": "日本"}),
    ],
)
def test_the_pieces_spell_the_texts_once_and_mark_the_segments(tokenizer, response, corrected, marked):
    found = preview.weights("What?", response, corrected, typed(response, corrected), tokenizer)
    for name, text in (("chosen", corrected), ("rejected", response)):
        pieces = [(piece, weight) for piece, weight in found[name] if piece]
        assert "".join(piece for piece, _ in pieces) == text
        assert "".join(piece for piece, weight in pieces if weight == found["gamma"]).strip() == marked[name]
        assert {weight for _, weight in pieces} == {1.0, found["gamma"]}
    assert found["unweighted"] == found["released_unweighted"] == []


def test_the_released_script_leaves_what_was_only_added_without_weight(tokenizer):
    response, corrected = "A dog sleeps on the old mat there.", "A dog sleeps today on the old mat there."
    found = preview.weights("What?", response, corrected, typed(response, corrected), tokenizer)
    assert found["unweighted"] == [] and found["released_unweighted"] == [0]
