"""AMBER's generative half: which objects of a description are there, are missing, or are what people would imagine.

A word counts where the tagger says it is a noun and its lemma stands in the association table. Officially two words
are also taken for the same where their spaCy vectors are close (above 0.8); here words match exactly unless `alike` is
given. Wang et al. 2023.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhfv_jax import textfiles
from rlhfv_jax.errors import UserError
from rlhfv_jax.evals.answers import Answer
from rlhfv_jax.evals.lemmas import noun_lemma
from rlhfv_jax.evals.references import find, read_json
from rlhfv_jax.evals.scores import Metric
from rlhfv_jax.evals.statistics import ratio
from rlhfv_jax.evals.tagging import Tagger
from rlhfv_jax.evals.vocabulary import tokens

ASSOCIATIONS, SAFE_WORDS = "relation.json", "safe_words.txt"
GUARD = 0.001  # the official denominators start here

Alike = Callable[[str, str], bool]


@dataclass(frozen=True)
class Words:
    """`associations` maps an object to what else it may be called; `safe` words are never counted as hallucinated."""

    associations: Mapping[str, Sequence[str]]
    safe: frozenset[str]

    def __post_init__(self) -> None:
        known = {*self.associations, *(word for words in self.associations.values() for word in words)}
        object.__setattr__(self, "known", frozenset(known))

    known: frozenset[str] = frozenset()  # every word that counts as an object


@dataclass(frozen=True)
class Scene:
    """What is in one picture, and what people who do not see it would expect there."""

    truth: tuple[str, ...]
    hallu: tuple[str, ...]


def read_words(references: str | Path, source: str) -> Words:
    """The official association table and safe words. Raises UserError where one is missing or misshapen."""
    path = find(references, ASSOCIATIONS, source)
    table = read_json(path)
    if not isinstance(table, dict) or not all(
        isinstance(words, list) and all(isinstance(word, str) for word in words) for words in table.values()
    ):
        raise UserError(f"{path}: expected an object from words to lists of words.")
    safe = textfiles.read(find(references, SAFE_WORDS, source)).split("\n")
    return Words(table, frozenset(word for word in safe if word))


def scene(row: Mapping[str, Any], words: Words, where: str) -> Scene:
    """One generative item of the annotations. Raises UserError where its words are not in the association table."""
    lists = []
    for name in ("truth", "hallu"):
        found = row.get(name)
        if not isinstance(found, list) or not found:
            raise UserError(f"{where}, {name}: expected a list of words, found {found!r}.")
        for word in found:
            if not isinstance(word, str) or word not in words.associations:
                raise UserError(f"{where}, {name}: {word!r} stands not in {ASSOCIATIONS}.")
        lists.append(tuple(found))
    return Scene(*lists)


def nouns(text: str, tagger: Tagger) -> list[str]:
    """Noun lemmas of a text, capitals kept, as the official script's: "Trees" at the start stays "Trees"."""
    found = tokens(text)
    return [noun_lemma(word) for word, tag in zip(found, tagger.tags(found), strict=True) if tag.startswith("NN")]


def score_nouns(found: Sequence[str], scene: Scene, words: Words, alike: Alike | None = None) -> dict[str, Any]:
    """One description: the words that count, those hallucinated, and the places covered in `truth` and in `hallu`."""
    true, imagined = _targets(scene.truth, words), _targets(scene.hallu, words)
    mentioned = [word for word in found if word in words.known]
    hallucinated, covered, cognitive = [], set(), set()
    for word in mentioned:
        if word in words.safe:
            continue
        if word in true:
            covered.add(true[word])
            continue
        if (place := _place(word, imagined, alike)) is not None:
            cognitive.add(place)
        if (place := _place(word, true, alike)) is not None:
            covered.add(place)
        else:
            hallucinated.append(word)
    return {
        "mentioned": mentioned,
        "hallucinated": hallucinated,
        "covered": len(covered),
        "truth": len(scene.truth),
        "cognitive": len(cognitive),
        "imagined": len(scene.hallu),
    }


def _targets(objects: Sequence[str], words: Words) -> dict[str, int]:
    """Word to the place of the object that it stands for; as officially, associations first and the first one wins."""
    found: dict[str, int] = {}
    for place, name in enumerate(objects):
        for word in words.associations[name]:
            found.setdefault(word, place)
    for place, name in enumerate(objects):
        found.setdefault(name, place)
    return found


def _place(word: str, targets: Mapping[str, int], alike: Alike | None) -> int | None:
    if word in targets:
        return targets[word]
    return next((place for other, place in targets.items() if alike and alike(word, other)), None)


def score(
    answers: Sequence[Answer], scenes: Sequence[Scene], words: Words, tagger: Tagger, alike: Alike | None = None
) -> list[dict[str, Any]]:
    """One row a description."""
    return [
        {
            "question_id": answer.question_id,
            "group": "generative",
            "text": answer.text,
            **score_nouns(nouns(answer.text, tagger), one, words, alike),
        }
        for answer, one in zip(answers, scenes, strict=True)
    ]


def metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    """CHAIR, Cover, Hal and Cog in percent, rounded as printed officially, with intervals over descriptions."""
    wrong = [len(row["hallucinated"]) for row in rows]
    columns = {
        "chair": (wrong, [len(row["mentioned"]) for row in rows]),
        "cover": ([row["covered"] for row in rows], [row["truth"] for row in rows]),
        "hal": ([count > 0 for count in wrong], [1] * len(rows)),
        "cog": ([row["cognitive"] for row in rows], [row["imagined"] for row in rows]),
    }
    found = {}
    for name, (top, bottom) in columns.items():
        around = ratio(top, bottom, 100, n=sum(bottom))
        value = sum(top) / (sum(bottom) + GUARD) * 100
        if name == "hal":  # officially all less those without one
            value = 100 - (len(rows) - sum(top)) / (len(rows) + GUARD) * 100
        found[name] = Metric(round(value, 1), around.low, around.high, around.n)
    return found
