"""Object HalBench's chat-model extraction: a judge lists the objects that an answer mentions, a tagger finds the nouns.

What comes out is the list of object strings that the CHAIR scorer filters by its vocabulary; the published figures of
Object HalBench are of this path.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhfv_jax.endpoint import Request
from rlhfv_jax.errors import UserError
from rlhfv_jax.evals.answers import Answer
from rlhfv_jax.evals.judge import Judgment
from rlhfv_jax.evals.objhal import NAME, clean, score_words
from rlhfv_jax.evals.scores import Scores
from rlhfv_jax.evals.tagging import Tagged
from rlhfv_jax.evals.vocabulary import Vocabulary, in_vocabulary

SETTINGS = {"temperature": 0.2, "top_p": 1, "max_tokens": 512}
SHORT = 3  # answers of so many words or fewer mention nothing, and the judge is not asked
NOUNS = ("NN", "NNS", "NNP", "NNPS")

Tagger = Callable[[str], Tagged]


def needs_judge(answer: str) -> bool:
    """Whether the released scorer asks about this answer at all."""
    return len(clean(answer).split()) > SHORT


def question(answer: Answer) -> str:
    """What was asked: `prompt`, or `question` in published files. Raises UserError where there is neither."""
    asked = answer.prompt or answer.extra.get("question")
    if not isinstance(asked, str) or not asked:
        raise UserError(
            f"{NAME}: answer {answer.question_id!r} has no prompt; the judge is asked with the question, as officially."
        )
    return asked


def check_template(template: str, where: str) -> str:
    """The extraction prompt with the places {question} and {answer}. Raises UserError for a prompt without them."""
    for place in ("{question}", "{answer}"):
        if template.count(place) != 1:
            raise UserError(f"{where}: the prompt has {template.count(place)} places {place}; expected one.")
    return template


def request(name: str, question: str, answer: str, template: str) -> Request:
    """What the judge is asked, byte for byte as by the released scorer: all of it in a system message."""
    text = template.replace("{question}", question).replace("{answer}", clean(answer))
    return Request(name, ({"role": "system", "content": text},), SETTINGS)


def parse(reply: str) -> list[str]:
    """The list of objects. Raises ValueError where the reply is none: what `parse_any` accepts, and a list of texts."""
    found = parse_any(reply)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError("no list of texts")
    return found


def parse_any(reply: str) -> Any:
    """What the released scorer accepts: JSON, or JSON on the last line where `["` occurs. Raises ValueError."""
    try:
        return json.loads(reply)
    except ValueError:
        if '["' not in reply:
            raise
        return json.loads(reply.strip().split("\n")[-1])


def objects(extracted: Sequence[str], tagger: Tagger, doubles: Mapping[str, str]) -> list[str]:
    """The object words of the extracted strings, each once, in order; `doubles` are the vocabulary's double words.

    A string with double words gives these and nothing else; any other gives each run of its nouns, joined.
    """
    found: dict[str, None] = {}
    for text in extracted:
        tagged = tagger("a " + text)
        lemmas = [lemma for lemma, _ in tagged]
        found.update(dict.fromkeys(_doubles(lemmas, doubles) or _noun_runs(tagged)))
    return list(found)


def _doubles(lemmas: Sequence[str], doubles: Mapping[str, str]) -> list[str]:
    hits, at = [], 0
    while at < len(lemmas) - 1:
        pair = f"{lemmas[at]} {lemmas[at + 1]}"
        hit = pair in doubles
        if hit:
            hits.append(doubles[pair])
        at += 2 if hit else 1
    return hits


def _noun_runs(tagged: Tagged) -> list[str]:
    runs: list[list[str]] = [[]]
    for lemma, tag in tagged:
        if tag in NOUNS:
            runs[-1].append(lemma)
        elif runs[-1]:
            runs.append([])
    return [" ".join(run) for run in runs if run]


def score(
    answers: Sequence[Answer],
    truths: Sequence[set[str]],
    vocabulary: Vocabulary,
    judgment: Judgment,
    tagger: Tagger,
    tagger_name: str,
) -> Scores:
    """CHAIR over the extracted objects. Answers that were asked about and have no verdict are left out, and listed.

    `tagger_name` goes into the settings: the official tagger is a model that few have.
    """
    kept = [
        (answer, truth)
        for answer, truth in zip(answers, truths, strict=True)
        if answer.question_id in judgment.verdicts or not needs_judge(answer.text)
    ]
    named = []
    for answer, _ in kept:
        extracted = judgment.verdicts[answer.question_id] if needs_judge(answer.text) else []
        named.append(in_vocabulary(objects(extracted, tagger, vocabulary.doubles), vocabulary))
    scores = score_words([one for one, _ in kept], named, [truth for _, truth in kept], vocabulary, "chat model")
    settings = {**scores.settings, "tagger": tagger_name, "judging": dict(judgment.record)}
    return Scores(scores.benchmark, scores.metrics, settings, judgment.name, scores.items)
