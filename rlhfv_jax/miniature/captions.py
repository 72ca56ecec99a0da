"""What is said about a scene: captions and short questions, clean or with the mismatches of web-scale text.

A caption is `this street has car two red top-left , person one blue bottom-right .`: the object word comes first, so
that a model commits to an object in the open and its attributes follow.

The noise is section 3.2's first cause of hallucination, text that does not match its image. A slot of the caption names
a core object of the place that is not there, or a true mention gets an attribute wrong, mostly the typical value of
its class. Both kinds of mistake are what a model that looks too little would guess, so training on them teaches it to.

What a caption says besides its objects must not become a lever: both sides of a pair say it alike, so preference
learning does not hold it in place, and lets it drift.
- Its length is always four mentions, and every image has more groups than that. A hallucinated mention takes a true
  one's place, so every wrong one can be corrected by replacement. Where captions may end sooner or later, models
  come to end sooner, or later, than the base did, and fewer mentions are fewer hallucinations that nobody unlearned.
- The place is given by the prompt. A model that has to name it comes to misname it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from rlhfv_jax.miniature.world import (
    CLASSES,
    COLORS,
    CORE_OBJECTS,
    KINDS,
    NUMBERS,
    POSITIONS,
    TYPICAL,
    Scene,
    sample_attributes,
)

MENTIONS = 4  # of a caption
MAX_ABSENT = 2  # hallucinated mentions in a caption
_ASSUMED_SHARES = (0.5, 0.2, 0.12, 0.08, 0.06, 0.04)  # of the core objects in order, among those that are absent
QUESTIONS_PER_IMAGE = 9


class Mention(NamedTuple):
    """One mention as words: `name`, `number`, `color`, `position`."""

    name: str
    number: str
    color: str
    position: str


@dataclass(frozen=True)
class CaptionNoise:
    """How carelessly a caption is written.

    `absent` is the share of mentions that name an absent core object (a caption has at most two, and none where every
    core object is there); `number`, `color` and `position` are the shares of a true mention's words written without a
    look. `typical` of those are the class's typical value, which the truth may happen to be; the others are wrong.
    """

    absent: float = 0.2
    number: float = 0.12
    color: float = 0.08
    position: float = 0.10
    typical: float = 0.7


CLEAN = CaptionNoise(absent=0.0, number=0.0, color=0.0, position=0.0)
NOISY = CaptionNoise()

QuestionKind = Literal["is", "count", "color", "where"]


class Turn(NamedTuple):
    """A short question, the answer a corpus gives it, and what it asks after."""

    question: str
    answer: str
    kind: QuestionKind


_FRAME = ("this", "has", ",", ".")
_QUESTION_WORDS = ("describe", "is", "there", "a", "how", "many", "what", "color", "where", "the", "yes", "no")
WORDS: tuple[str, ...] = tuple(
    sorted(
        {*CLASSES, *NUMBERS, *COLORS, *POSITIONS, *_FRAME, *_QUESTION_WORDS}
        | {word for kind in KINDS for word in kind.split()}
    )
)
"""The closed vocabulary of captions, questions and answers, white-space words in sorted order."""


def prompt(kind: str) -> str:
    """The question that a caption of a place of `kind` answers."""
    return f"describe the {kind}"


def render(kind: str, mentions: Sequence[Sequence[str]]) -> str:
    """Write the caption of a place of `kind` with one or more `mentions`, each of name, number, color and position."""
    return f"this {kind} has " + " , ".join(" ".join(mention) for mention in mentions) + " ."


def caption(scene: Scene, rng: np.random.Generator, noise: CaptionNoise = CLEAN) -> str:
    """Describe a scene in four mentions in random order, with `noise`'s share of mistakes."""
    count = min(MENTIONS, len(scene.groups))
    absent = _assumed(scene, int((rng.random(count) < noise.absent).sum()), rng)
    order = rng.permutation(len(scene.groups))[: count - len(absent)]
    mentions = [_blur(Mention(*scene.groups[index].words), noise, rng) for index in order]
    mentions += [_invent(name, rng) for name in absent]
    return render(scene.kind, [mentions[index] for index in rng.permutation(count)])


def vqa_turns(scene: Scene, rng: np.random.Generator, noise: float = 0.0) -> list[Turn]:
    """Ask nine questions: three after presence (one true, one of the place's kind, one any), two per attribute.

    Args:
      noise: the share of answers given without a look: yes and no flipped; number, color and position as in
        `CaptionNoise`, with its share of typical values.
    """
    turns = []
    for name in _asked_names(scene, rng):
        there = (name in scene.by_name) != (rng.random() < noise)
        turns.append(Turn(f"is there a {name}", "yes" if there else "no", "is"))
    blur = CaptionNoise(0.0, noise, noise, noise)
    for kind, template, field in _ATTRIBUTE_QUESTIONS:
        for index in rng.permutation(len(scene.groups))[:2]:
            said = _blur(Mention(*scene.groups[index].words), blur, rng)
            turns.append(Turn(template.format(said.name), said[field], kind))
    return [turns[index] for index in rng.permutation(len(turns))]


_ATTRIBUTE_QUESTIONS: tuple[tuple[QuestionKind, str, int], ...] = (
    ("count", "how many {}", 1),
    ("color", "what color is the {}", 2),
    ("where", "where is the {}", 3),
)


def _asked_names(scene: Scene, rng: np.random.Generator) -> list[str]:
    present = [group.name for group in scene.groups]
    core = CORE_OBJECTS[scene.kind]
    names = [present[rng.integers(len(present))]]
    # The second is a core object that is absent where there is one: the question a guesser gets wrong.
    for pool in ([name for name in core if name not in present], CLASSES):
        left = [name for name in pool if name not in names] or [name for name in CLASSES if name not in names]
        names.append(left[rng.integers(len(left))])
    return names


def _assumed(scene: Scene, wanted: int, rng: np.random.Generator) -> list[str]:
    core = CORE_OBJECTS[scene.kind]
    present = scene.by_name
    shares = np.array([(name not in present) * share for name, share in zip(core, _ASSUMED_SHARES, strict=True)])
    size = min(wanted, MAX_ABSENT, int(np.count_nonzero(shares)))
    if size == 0:
        return []
    return [core[index] for index in rng.choice(len(core), size, replace=False, p=shares / shares.sum())]


def _invent(name: str, rng: np.random.Generator) -> Mention:
    number, color, position = sample_attributes(name, rng)
    return Mention(name, NUMBERS[number - 1], color, position)


def _blur(true: Mention, noise: CaptionNoise, rng: np.random.Generator) -> Mention:
    habit = TYPICAL[true.name]
    return Mention(
        true.name,
        _misread(true.number, NUMBERS[habit.number - 1], NUMBERS, noise.number, noise.typical, rng),
        _misread(true.color, habit.color, tuple(COLORS), noise.color, noise.typical, rng),
        _misread(true.position, habit.position, POSITIONS, noise.position, noise.typical, rng),
    )


def _misread(
    true: str, habit: str, values: Sequence[str], share: float, typical: float, rng: np.random.Generator
) -> str:
    if rng.random() >= share:
        return true
    if rng.random() < typical:
        return habit
    others = [value for value in values if value != true]
    return others[rng.integers(len(others))]
