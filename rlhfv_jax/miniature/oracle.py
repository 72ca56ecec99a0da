"""An annotator who knows the scene: corrects the wrong segments of a caption and nothing else.

Section 2 of the paper with an oracle in the humans' place. A wrong object is replaced by a true one that the caption
does not mention, and its number, color and position with it: what was said of the absent object says nothing of the new
one, so the whole mention is one corrected segment, words that happen to agree included. A wrong attribute of a true
object is a segment of one word.

Replacement keeps the caption's length. Pairs that shorten it teach a model to say less rather than to say what is true:
`deletions` takes wrong objects out instead, to show that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from rlhfv_jax.miniature.captions import render
from rlhfv_jax.miniature.scoring import ClaimType, Error, ParsedMention, parse, score
from rlhfv_jax.miniature.world import KINDS, Scene


class Segment(TypedDict):
    """Characters `start` to `end` of a text (end not included), and what kind of hallucination is corrected there."""

    start: int
    end: int
    type: ClaimType


@dataclass(frozen=True)
class Correction:
    """A preference pair with its corrected segments.

    `chosen_segments` and `rejected_segments` correspond one to one in the order of the text, save that a deleted
    mention has a segment in the rejected text only; `deletions` counts those.
    """

    chosen: str
    rejected: str
    chosen_segments: list[Segment]
    rejected_segments: list[Segment]
    deletions: int = 0


@dataclass(frozen=True)
class _Edit:
    start: int
    end: int
    type: ClaimType
    text: str


def correct(text: str, scene: Scene, rng: np.random.Generator, deletions: bool = False) -> Correction | None:
    """Correct a caption of `scene` by replacement, the unmentioned groups that step in chosen by `rng`.

    Args:
      deletions: take wrong objects out of the caption instead of replacing them.

    Returns:
      The pair, or None where an annotator has nothing to do or would put the answer aside: it has no error, it is not
      a whole caption in the grammar, it names an object twice (a correction would teach the repeat along), or it has
      more wrong objects than there are unmentioned groups to replace them (with `deletions`: nothing but wrong ones).
    """
    mentions, found = parse(text), score(text, scene)
    if not found.errors or found.repeats or not _is_caption(text, mentions):
        return None
    absent = [error.claim for error in found.objects]
    unmentioned = [group for group in scene.groups if group.name not in {one.object.word for one in mentions}]
    if len(absent) >= len(mentions) if deletions else len(absent) > len(unmentioned):
        return None
    edits = [_word_edit(error) for error in found.errors if error.claim not in absent]
    wrong = [mention for mention in mentions if mention.object in absent]
    if deletions:
        return _apply(text, edits + _deletions(text, mentions, wrong), len(wrong))
    stand_ins = rng.permutation(len(unmentioned))[: len(wrong)]
    for mention, index in zip(wrong, stand_ins, strict=True):
        words = " ".join(unmentioned[index].words)
        edits.append(_Edit(mention.object.start, mention.attributes[-1].end, "object", words))
    return _apply(text, edits)


def _is_caption(text: str, mentions: Sequence[ParsedMention]) -> bool:
    types = [tuple(claim.type for claim in mention.attributes) for mention in mentions]
    if not mentions or any(one != ("number", "attribute", "position") for one in types):
        return False
    words = [(one.object.word, *(claim.word for claim in one.attributes)) for one in mentions]
    return any(text == render(kind, words) for kind in KINDS)


def _word_edit(error: Error) -> _Edit:
    return _Edit(error.claim.start, error.claim.end, error.claim.type, error.expected[0])


def _deletions(text: str, mentions: Sequence[ParsedMention], deleted: Sequence[ParsedMention]) -> list[_Edit]:
    # A mention goes with the comma before it; before the first mention that stays, with the comma after it.
    first_kept = next(index for index, mention in enumerate(mentions) if mention not in deleted)
    edits = []
    for index, mention in enumerate(mentions):
        if mention not in deleted:
            continue
        start, end = mention.object.start, mention.attributes[-1].end
        if index < first_kept:
            end = mentions[index + 1].object.start
        else:
            start = mentions[index - 1].attributes[-1].end
        edits.append(_Edit(start, end, "object", ""))
    return edits


def _apply(text: str, edits: Sequence[_Edit], deletions: int = 0) -> Correction:
    chosen, at = "", 0
    chosen_segments: list[Segment] = []
    rejected_segments: list[Segment] = []
    for edit in sorted(edits, key=lambda one: one.start):
        chosen += text[at : edit.start]
        if edit.text:
            chosen_segments.append(Segment(start=len(chosen), end=len(chosen) + len(edit.text), type=edit.type))
        chosen += edit.text
        # A deletion takes the spaces around it along; the segment is the words.
        span = text[edit.start : edit.end]
        start = edit.start + len(span) - len(span.lstrip())
        rejected_segments.append(Segment(start=start, end=start + len(span.strip()), type=edit.type))
        at = edit.end
    return Correction(chosen + text[at:], text, chosen_segments, rejected_segments, deletions)
