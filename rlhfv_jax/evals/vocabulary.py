"""Objects named in a text, by a synonym file: tokens, noun lemmas, double words, as the official scorer does."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from nltk.tokenize.destructive import NLTKWordTokenizer
from punkt import sent_tokenize

from rlhfv_jax import textfiles
from rlhfv_jax.errors import UserError
from rlhfv_jax.evals.lemmas import noun_lemma
from rlhfv_jax.evals.references import find


class _Tokenizer(NLTKWordTokenizer):
    """The rules of nltk 3.8, which the official scorer ran on: long dashes stay, a quote parts from one letter only."""

    STARTING_QUOTES = (
        *NLTKWordTokenizer.STARTING_QUOTES[:-1],
        (re.compile(r"(?i)(')(?!re|ve|ll|m|t|s|d|n)(\w)\b"), r"\1 \2"),
    )
    PUNCTUATION = tuple(rule for rule in NLTKWordTokenizer.PUNCTUATION if not rule[0].match("\u2014"))


_TOKENIZER = _Tokenizer()
ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
FILE = "synonyms_refine.txt"
SOURCE = "RLHF-V/RLHF-V, eval/data"


@dataclass(frozen=True)
class Vocabulary:
    """`node` maps every word to its object, `doubles` every two-word phrase to the word that it is read as."""

    node: Mapping[str, str]
    doubles: Mapping[str, str]


def read_vocabulary(references: str | Path) -> Vocabulary:
    """The official synonym file: a line an object, words apart by ', ', the first one the object's name.

    Raises UserError unless it has 80 lines.
    """
    path = find(references, FILE, SOURCE)
    lines = [line for line in textfiles.read(path).splitlines() if line.strip()]
    if len(lines) != 80:
        raise UserError(f"{path}: expected 80 lines, one an object, found {len(lines)}.")
    node: dict[str, str] = {}
    for line in lines:
        words = [word.strip() for word in line.strip().split(", ")]
        node |= dict.fromkeys(words, words[0])
    return Vocabulary(node, _doubles(node))


def _doubles(node: Mapping[str, str]) -> dict[str, str]:
    doubles = {word: word for word in (*node, "home plate", "train track") if len(word.split()) >= 2}
    doubles |= {f"{age} {animal}": animal for animal in ANIMALS for age in ("baby", "adult")}
    doubles |= {f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")}
    return doubles | {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}


@lru_cache(64)
def tokens(text: str) -> tuple[str, ...]:
    """Words of the text: Punkt's sentences, then the Treebank rules."""
    return tuple(token for sentence in sent_tokenize(text) for token in _TOKENIZER.tokenize(sentence))


def words(text: str, vocabulary: Vocabulary) -> list[str]:
    """The vocabulary words of the text in order, repeats included."""
    lemmas = [noun_lemma(token) for token in tokens(text.lower())]
    return in_vocabulary(merge(lemmas, vocabulary.doubles), vocabulary)


def merge(lemmas: Sequence[str], doubles: Mapping[str, str]) -> list[str]:
    """Two neighbors that are a double word become one, from left to right."""
    merged, i = [], 0
    while i < len(lemmas):
        pair = " ".join(lemmas[i : i + 2])
        merged.append(doubles.get(pair, lemmas[i]))
        i += 2 if pair in doubles else 1
    return merged


def in_vocabulary(found: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    """Only vocabulary words; where a toilet is named, a seat is its seat and no chair."""
    drop = {"seat"} if {"toilet", "seat"} <= set(found) else set()
    return [word for word in found if word in vocabulary.node and word not in drop]
