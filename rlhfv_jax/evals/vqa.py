"""VQAv2 (Goyal et al. 2017): agreement with ten people's answers, counted as officially, and the server's file."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhfv_jax.errors import UserError
from rlhfv_jax.evals.answers import Answer, by_question, identifier
from rlhfv_jax.evals.references import find, read_lists
from rlhfv_jax.evals.scores import Metric, Scores
from rlhfv_jax.evals.statistics import ratio

NAME = "vqav2"
SOURCE = "visualqa.org, the annotations and questions of VQA v2"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
TEST = ("v2_OpenEnded_mscoco_test2015_questions.json", "v2_OpenEnded_mscoco_test-dev2015_questions.json")

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
PERIODS = 32  # at most so many are deleted: the official call passes a flag where the count belongs
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBERS)}
ARTICLES = ("a", "an", "the")
# Words that the official table mends where exactly one apostrophe is missing.
CONTRACTIONS = [
    "ain't",
    "aren't",
    "can't",
    "could've",
    "couldn't",
    "couldn't've",
    "didn't",
    "doesn't",
    "don't",
    "hadn't",
    "hadn't've",
    "hasn't",
    "haven't",
    "he'd",
    "he'd've",
    "he's",
    "how'd",
    "how'll",
    "how's",
    "isn't",
    "it'd",
    "it'd've",
    "it'll",
    "ma'am",
    "mightn't",
    "mightn't've",
    "might've",
    "mustn't",
    "must've",
    "needn't",
    "not've",
    "o'clock",
    "oughtn't",
    "'ow's'at",
    "shan't",
    "she'd've",
    "should've",
    "shouldn't",
    "shouldn't've",
    "somebody'd've",
    "somebody'll",
    "somebody's",
    "someone'd",
    "someone'd've",
    "someone'll",
    "someone's",
    "something'd",
    "something'd've",
    "something'll",
    "that's",
    "there'd",
    "there'd've",
    "there're",
    "there's",
    "they'd",
    "they'd've",
    "they'll",
    "they're",
    "they've",
    "'twas",
    "wasn't",
    "we'd've",
    "we've",
    "weren't",
    "what'll",
    "what're",
    "what's",
    "what've",
    "when's",
    "where'd",
    "where's",
    "where've",
    "who'd",
    "who'd've",
    "who'll",
    "who's",
    "who've",
    "why'll",
    "why're",
    "why's",
    "won't",
    "would've",
    "wouldn't",
    "wouldn't've",
    "y'all",
    "y'all'll",
    "y'all'd've",
    "you'd",
    "you'd've",
    "you'll",
    "you're",
    "you've",
]


def _mended() -> dict[str, str]:
    table = {
        word[:place] + word[place + 1 :]: word
        for word in CONTRACTIONS
        for place, letter in enumerate(word)
        if letter == "'"
    }
    return table | {"somebody'd": "somebodyd"}  # the official table has this one the wrong way round


MENDED = _mended()


def normalize(text: str) -> str:
    """An answer as the official script compares it: without punctuation, articles and capitals, numbers as digits.

    >>> normalize("The two dogs."), normalize("Dont know")
    ('2 dogs', "don't know")
    """
    return _words(_without_punctuation(text, bool(DIGIT_COMMA_DIGIT.search(text))))


def process(text: str) -> str:
    """An answer as the test server's processor leaves it; published models hand in answers treated so."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _words(_without_punctuation(_one_line(text), bool(DIGIT_COMMA_DIGIT.search(text))))


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str, has_number: bool) -> str:
    kept = text
    for mark in PUNCTUATION:
        if mark in text:
            alone = f"{mark} " in text or f" {mark}" in text or has_number
            kept = kept.replace(mark, "" if alone else " ")
    return PERIOD.sub("", kept, count=PERIODS)


def _words(text: str) -> str:
    words = (DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(MENDED.get(word, word) for word in words if word not in ARTICLES)


def accuracy(text: str, answers: Sequence[Mapping[str, Any]]) -> float:
    """0 to 1: the mean over the people's answers of min(1, matches among the others / 3).

    `answers` are the annotation's objects with `answer` and `answer_id`; "the others" are those unequal as objects.
    Nothing is normalized where all people's answers are equal, so "Yes" scores 0 against ten times "yes".
    """
    text = _one_line(text)
    people = [{**answer, "answer": _one_line(answer["answer"])} for answer in answers]
    if len({answer["answer"] for answer in people}) > 1:
        text = normalize(text)
        people = [{**answer, "answer": normalize(answer["answer"])} for answer in people]
    if text not in {answer["answer"] for answer in people}:
        return 0.0
    scores = []
    for one in people:
        matches = sum(other["answer"] == text for other in people if other != one)
        scores.append(min(1.0, matches / 3))
    return sum(scores) / len(scores)


def questions(references: str | Path) -> list[dict[str, Any]]:
    """The annotated questions of the validation split, checked.

    Raises:
      UserError: the file is missing or an annotation lacks a field.
    """
    path = find(references, ANNOTATIONS, SOURCE)
    return check(read_lists(path, ("annotations",))["annotations"], str(path))


def check(rows: Iterable[Mapping[str, Any]], where: str) -> list[dict[str, Any]]:
    """The annotations with `question_id` as text. Raises UserError naming the first one that is misshapen."""
    found: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        at = f"{where}, annotation {number}"
        name = identifier(row, "question_id", at)
        if name in found:
            raise UserError(f"{at}: question_id {name!r} stands twice.")
        people = row.get("answers")
        if not isinstance(people, list) or not people or not all(_is_answer(one) for one in people):
            raise UserError(f"{at}, answers: expected a list of objects with a text 'answer'.")
        for field in ("question_type", "answer_type"):
            if not isinstance(row.get(field), str):
                raise UserError(f"{at}, {field}: expected text.")
        found[name] = {**row, "question_id": name}
    if not found:
        raise UserError(f"{where} holds no annotation.")
    return list(found.values())


def _is_answer(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("answer"), str)


def score(answers: Sequence[Answer], references: str | Path, partial: bool = False) -> Scores:
    """Accuracy on the validation split; with `partial`, of the questions that are answered."""
    return score_records(answers, questions(references), partial)


def score_records(answers: Sequence[Answer], records: Sequence[Mapping[str, Any]], partial: bool = False) -> Scores:
    """Official accuracy in percent of the answers as they are, and of the processed ones; by answer and question type.

    Raises:
      UserError: a question has no answer (unless `partial`) or two, or an answer belongs to no question.
    """
    found = by_question(answers, [record["question_id"] for record in records], NAME, partial)
    items = [_item(record, found[record["question_id"]].text) for record in records if record["question_id"] in found]
    metrics: dict[str, Metric] = {}
    for way, prefix in (("accuracy", ""), ("processed_accuracy", "processed/")):
        metrics[f"{prefix}accuracy"] = _percent([item[way] for item in items])
        for kind in ("answer_type", "question_type"):
            for name in dict.fromkeys(item[kind] for item in items):
                values = [item[way] for item in items if item[kind] == name]
                metrics[f"{prefix}{kind}/{name}"] = _percent(values)
    settings = {
        "unanswered": len(records) - len(items),
        "empty_answers": sum(not item["text"].strip() for item in items),
    }
    return Scores(NAME, metrics, settings, items=items)


def _percent(values: Sequence[float]) -> Metric:
    """The mean of shares in percent, summed as the official script does: its rounded figures hang on the last bit."""
    metric = ratio([100 * value for value in values])
    return replace(metric, value=100 * sum(values) / len(values))


def _item(record: Mapping[str, Any], text: str) -> dict[str, Any]:
    processed = process(text)
    return {
        "question_id": record["question_id"],
        "question_type": record["question_type"],
        "answer_type": record["answer_type"],
        "text": text,
        "processed": processed,
        "accuracy": accuracy(text, record["answers"]),
        "processed_accuracy": accuracy(processed, record["answers"]),
    }


def write_submission(answers: Sequence[Answer], references: str | Path, path: str | Path) -> tuple[int, int]:
    """Writes the test server's file: one processed answer for every test question, "" where there is none.

    Returns the number of questions and of those without an answer.

    Raises:
      UserError: the question file is missing, an answer belongs to none of its questions, or there are two.
    """
    source = find(references, TEST, SOURCE)
    rows = read_lists(source, ("questions",))["questions"]
    ids = [identifier(row, "question_id", f"{source}, question {number}") for number, row in enumerate(rows)]
    found = by_question(answers, ids, NAME, partial=True)
    lines = [
        {"question_id": row["question_id"], "answer": process(found[name].text) if name in found else ""}
        for row, name in zip(rows, ids, strict=True)
    ]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(lines), encoding="utf-8")
    os.replace(temporary, path)
    return len(ids), len(ids) - len(found)
