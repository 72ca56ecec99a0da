"""Read an answer about a scene and hold every claim in it against the truth.

The reading never fails: any text is a list of words, some of which claim something. Rules for text that is not quite a
caption:

- an object word opens a mention; number, color and position words belong to the mention before them, each one a claim
  of its own (a car that is `two three` is wrong at least once);
- a comma or a full stop closes the mention: attributes after it, with no object of their own, claim nothing;
- an object named again is one more mention with claims of its own. A repeat of a true object is no hallucination; it
  counts in `repeats` and earns no coverage;
- attributes of an object that is not there are neither right nor wrong: the object is the error;
- a kind of place after `this` that is not the scene's is an error of type `misc`.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import Literal

from rlhfv_jax.miniature.captions import MENTIONS
from rlhfv_jax.miniature.world import CLASSES, COLORS, KINDS, NUMBERS, POSITIONS, Group, Scene

ClaimType = Literal["object", "number", "attribute", "position", "misc"]
"""The paper's segment types; `attribute` is the color, `misc` the kind of place."""

_TYPES: dict[str, ClaimType] = {
    **dict.fromkeys(CLASSES, "object"),
    **dict.fromkeys(NUMBERS, "number"),
    **dict.fromkeys(COLORS, "attribute"),
    **dict.fromkeys(POSITIONS, "position"),
}
_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*|[^\sa-z]")
# str.lower changes the length of some letters, and spans must count in the text as given.
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_PLACE = re.compile(rf"\bthis\s+({'|'.join(KINDS)})\b".replace(" ", r"\s+"))


@dataclass(frozen=True)
class Claim:
    """One word (for a kind of place, up to two) that claims something: `text[start:end]` is `word`, lower-cased."""

    type: ClaimType
    word: str
    start: int
    end: int


@dataclass(frozen=True)
class ParsedMention:
    """An object word and the attribute words that follow it."""

    object: Claim
    attributes: tuple[Claim, ...]


@dataclass(frozen=True)
class Error:
    """A claim the scene refutes, and what would have been true in its place.

    For an object, `expected` is every group the answer does not mention (it can be empty); else it is one word.
    """

    claim: Claim
    expected: tuple[str, ...]


@dataclass(frozen=True)
class AnswerScore:
    """One answer against its scene.

    `objects`, `numbers`, `colors`, `positions` and `places` are the errors; `covered` is how many true groups are
    mentioned and `coverable` how many an answer can mention, see `coverage`.
    """

    mentions: tuple[ParsedMention, ...]
    objects: tuple[Error, ...]
    numbers: tuple[Error, ...]
    colors: tuple[Error, ...]
    positions: tuple[Error, ...]
    places: tuple[Error, ...]
    repeats: int
    covered: int
    coverable: int

    @property
    def errors(self) -> tuple[Error, ...]:
        """All errors, in the order of the text."""
        every = self.objects + self.numbers + self.colors + self.positions + self.places
        return tuple(sorted(every, key=lambda error: error.claim.start))

    @property
    def coverage(self) -> float:
        """Share of the true groups that are mentioned, 0 to 1.

        A caption has four mentions, so an image of six groups counts as four: a full caption reaches 1.
        """
        return self.covered / self.coverable


def score(text: str, scene: Scene) -> AnswerScore:
    """Hold an answer against its scene; the module's text has the rules for malformed answers."""
    mentions, truth = parse(text), scene.by_name
    named = [mention.object.word for mention in mentions]
    unmentioned = tuple(group.name for group in scene.groups if group.name not in named)
    errors: dict[ClaimType, list[Error]] = {"object": [], "number": [], "attribute": [], "position": []}
    for mention in mentions:
        if mention.object.word not in truth:
            errors["object"].append(Error(mention.object, unmentioned))
            continue
        for claim in mention.attributes:
            expected = true_word(truth[mention.object.word], claim.type)
            if claim.word != expected:
                errors[claim.type].append(Error(claim, (expected,)))
    covered = len(set(named) & set(truth))
    return AnswerScore(
        mentions=mentions,
        objects=tuple(errors["object"]),
        numbers=tuple(errors["number"]),
        colors=tuple(errors["attribute"]),
        positions=tuple(errors["position"]),
        places=tuple(Error(claim, (scene.kind,)) for claim in _places(text) if claim.word != scene.kind),
        repeats=len(named) - len(set(named)),
        covered=min(covered, MENTIONS),
        coverable=min(len(scene.groups), MENTIONS),
    )


def parse(text: str) -> tuple[ParsedMention, ...]:
    """Read the mentions out of any text, with the character span of every word they are made of."""
    mentions: list[ParsedMention] = []
    is_open = False
    for match in _WORD.finditer(text.translate(_LOWER)):
        word = match.group()
        kind = _TYPES.get(word)
        if word in ",.":
            is_open = False
        elif kind == "object":
            mentions.append(ParsedMention(Claim(kind, word, match.start(), match.end()), ()))
            is_open = True
        elif kind is not None and is_open:
            claim = Claim(kind, word, match.start(), match.end())
            mentions[-1] = ParsedMention(mentions[-1].object, (*mentions[-1].attributes, claim))
    return tuple(mentions)


def true_word(group: Group, kind: ClaimType) -> str:
    """The word that tells the truth about a group: its name, number, color (`attribute`) or position."""
    name, number, color, position = group.words
    return {"object": name, "number": number, "attribute": color, "position": position}[kind]


def _places(text: str) -> list[Claim]:
    found = _PLACE.finditer(text.translate(_LOWER))
    return [Claim("misc", " ".join(match.group(1).split()), *match.span(1)) for match in found]
