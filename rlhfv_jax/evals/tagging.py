"""Which words of a text are nouns: by NLTK's tagger or a spaCy model where the user has one, else by a few rules.

The official scorers of AMBER and Object HalBench use taggers whose data does not come with a package. What stands in
for them is named in every score.
"""

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rlhfv_jax.evals.lemmas import is_noun, noun_lemma

NOUN = "NN"
SPACY = ("trf", "lg", "md", "sm")  # sizes of en_core_web_*, best first

Tags = Callable[[Sequence[str]], Sequence[str]]  # a Penn Treebank tag of every token of a text
Tagged = Sequence[tuple[str, str]]  # (lemma, Penn Treebank tag) of each token


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


DETERMINERS = _set(
    "a an the this that these those his her its their my your our one two three four some any no each every another "
    "several many few"
)
BE = _set("is are was were be been being")
SUBJECTS = _set("i he she it we they who which")
MODALS = _set("to can could will would may might must should not")
PREPOSITIONS = _set("of with and or in on for by from at to into near like as")
ACTIONS = _set("lounges paddles skates skis sprays drinks sleds")  # "the dog lounges"
BEFORE_TO = _set("next close adjacent attached belonging similar connected tied due related addition")
VERBS = _set(
    "bat bear bill book box brush cage can card core drain drink file fish goal ground hose ice land leave light line "
    "lock lounge note pack paddle park plug pot range ring rock sail shell ship shovel sign sink skate ski sled sound "
    "spray stage star string support switch tap tape tie tire towel toy track train trough watch water worm"
)
CONTAINERS = _set("trash garbage soda beer tin watering aluminum spray paint metal coke empty small large")
# Taggers that know a language have thousands of adjectives; these are the ones that captions put before objects.
ADJECTIVES = _set(
    "large small big little tall short long wide high low old young new modern white black red blue green yellow brown "
    "gray grey pink purple beige golden silver dark bright light colorful wooden metallic clear open closed empty full "
    "round square flat clean dirty wet dry hot cold warm cool fresh raw whole left right upper lower front back main "
    "other same different various several many few single double outdoor indoor natural beautiful elegant sleek cozy "
    "soft thick thin heavy similar nearby bare busy calm sunny cloudy snowy grassy sandy rocky lush urban rural "
    "vintage antique decorative electric plastic ceramic leather"
)
ADJECTIVE_ENDINGS = ("ous", "ful", "ish", "ive", "less", "able", "ible", "ary", "ic", "al", "ed", "en")


@dataclass(frozen=True)
class Tagger:
    """`name` goes into the settings of a score; `tags` gives a tag a token."""

    name: str
    tags: Tags
    official: bool = False  # AMBER's script uses this one


def noun_tagger() -> Tagger:
    """NLTK's perceptron tagger where its data is installed, else a spaCy model, else the rules of this file."""
    return _nltk() or _spacy_tags() or Tagger("rules", by_rule)


@lru_cache(1)
def _nltk() -> Tagger | None:
    try:
        perceptron = importlib.import_module("nltk.tag.perceptron").PerceptronTagger()
    except (ImportError, LookupError):
        return None
    return Tagger("nltk", lambda tokens: [tag for _, tag in perceptron.tag(list(tokens))], official=True)


@lru_cache(1)
def spacy_model() -> tuple[str, Any] | None:
    """The best English spaCy model that is installed, with its name and version."""
    try:
        spacy = importlib.import_module("spacy")
    except ImportError:
        return None
    installed = spacy.util.get_installed_models()
    for size in SPACY:
        for name in sorted(installed):
            if name.startswith(f"en_core_web_{size}"):
                model = spacy.load(name)
                return f"{name} {model.meta['version']}", model
    return None


def _spacy_tags() -> Tagger | None:
    found = spacy_model()
    if found is None:
        return None
    name, model = found
    document = importlib.import_module("spacy.tokens").Doc

    def tags(tokens: Sequence[str]) -> list[str]:
        return [token.tag_ for token in model(document(model.vocab, words=list(tokens)))]

    return Tagger(name, tags)


def by_rule(tokens: Sequence[str]) -> list[str]:
    """`NN` for every word that may be a noun and that nothing beside it makes a verb or an auxiliary; "" for others."""
    words = [token.lower() for token in tokens]
    return [NOUN if _may_be_noun(words[max(0, i - 2) : i + 1]) else "" for i in range(len(words))]


def _may_be_noun(words: Sequence[str]) -> bool:
    """The last one of up to three words in a row."""
    word, previous = words[-1], words[-2] if len(words) > 1 else ""
    if not word[:1].isalpha() or word == "hot":
        return False
    if word == "can":
        return previous in DETERMINERS | CONTAINERS
    if word in ("painting", "drawing", "sailing"):
        return previous in DETERMINERS or previous.endswith("ed")
    if word in ACTIONS and previous.isalpha() and not previous.endswith("s"):
        return previous in DETERMINERS | PREPOSITIONS | ADJECTIVES
    if previous in SUBJECTS:
        return noun_lemma(word) not in VERBS
    if previous in MODALS and word in VERBS:
        return previous == "to" and words[0] in BEFORE_TO
    return True


@dataclass(frozen=True)
class ObjectTagger:
    """What finds the nouns in the names of objects that a chat model lists; `tagged` takes a text."""

    name: str
    tagged: Callable[[str], Tagged]


def object_tagger() -> ObjectTagger:
    """The best spaCy model that is installed (officially the transformer one), else NLTK's tagger, else the rules."""
    if found := spacy_model():
        name, model = found
        return ObjectTagger(name, lambda text: [(token.lemma_, token.tag_) for token in model(text)])
    tagger = _nltk() or Tagger("rules", _object_tags)

    def tagged(text: str) -> Tagged:
        words = re.findall(r"\w+|[^\w\s]", text)
        return [(singular(word), tag) for word, tag in zip(words, tagger.tags(words), strict=True)]

    return ObjectTagger(f"{tagger.name} and WordNet", tagged)


def singular(word: str) -> str:
    """The noun lemma where WordNet has none or another than people would say.

    >>> singular("men"), singular("vases"), singular("Smartphones"), singular("bus")
    ('man', 'vase', 'smartphone', 'bus')
    """
    word = word.lower()
    lemma = {"men": "man", "vases": "vase"}.get(word) or noun_lemma(word)
    if lemma == word and not is_noun(word) and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return lemma


def _object_tags(tokens: Sequence[str]) -> list[str]:
    return [
        NOUN if tag and not _describes(token.lower()) else ""
        for token, tag in zip(tokens, by_rule(tokens), strict=True)
    ]


def _describes(word: str) -> bool:
    if word in DETERMINERS | PREPOSITIONS | ADJECTIVES | BE:
        return True
    return not is_noun(singular(word)) and word.endswith(ADJECTIVE_ENDINGS)
