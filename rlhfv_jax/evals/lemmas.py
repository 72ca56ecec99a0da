"""The noun lemma of a word as WordNet 3.0 gives it, from two small tables and nine suffix rules.

Miller 1995; the rules are those of its program morphy.
"""

import gzip
from functools import lru_cache
from importlib import resources

RULES = (
    *(("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z")),
    *(("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y")),
)


@lru_cache(1)
def _tables() -> tuple[frozenset[str], dict[str, tuple[str, ...]]]:
    folder = resources.files("rlhfv_jax.evals") / "wordnet"
    nouns = gzip.decompress((folder / "nouns.txt.gz").read_bytes()).decode().split("\n")
    lines = gzip.decompress((folder / "exceptions.txt.gz").read_bytes()).decode().splitlines()
    return frozenset(nouns), {word: tuple(bases) for word, *bases in map(str.split, lines) if bases}


@lru_cache(1 << 16)
def noun_lemma(word: str) -> str:
    """The shortest noun that the word can be a form of; the word itself where WordNet knows none.

    >>> noun_lemma("boxes"), noun_lemma("men"), noun_lemma("qux")
    ('box', 'men', 'qux')
    """
    nouns, exceptions = _tables()
    if word in exceptions:
        found = [form for form in (word, *exceptions[word]) if form in nouns]
        return min(found, key=len) if found else word
    forms = _stripped([word])
    found = [form for form in (word, *forms) if form in nouns]
    while not found and forms:
        forms = _stripped(forms)
        found = [form for form in forms if form in nouns]
    return min(found, key=len) if found else word


def is_noun(word: str) -> bool:
    """Whether WordNet has the word as a noun's lemma."""
    return word in _tables()[0]


def _stripped(forms: list[str]) -> list[str]:
    return [form[: -len(old)] + new for form in forms for old, new in RULES if form.endswith(old)]
