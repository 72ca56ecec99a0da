"""SEED-Bench-I: multiple choice about images, by the letter that is answered or by the likelihood of the options.

Li et al. 2023. By likelihood, as officially, the option with the highest mean log-prob a token is chosen; the answers
then carry `option_log_probs`, an object from letter to that mean.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhfv_jax.errors import UserError
from rlhfv_jax.evals.answers import Answer, by_question, identifier
from rlhfv_jax.evals.references import find, read_lists
from rlhfv_jax.evals.scores import Metric, Scores
from rlhfv_jax.evals.statistics import ratio

NAME = "seed_bench"
FILE = "SEED-Bench.json"
SOURCE = "AILab-CVC/SEED-Bench"
LETTERS = ("A", "B", "C", "D")
LOG_PROBS = "option_log_probs"
LETTER = re.compile(r"\(?([A-D])(?:$|[).:](?:\s|$))")


def questions(references: str | Path) -> list[dict[str, Any]]:
    """The image questions with their options by letter and their type's name.

    Raises:
      UserError: the file is missing, or a question lacks a field, is there twice or has an unknown type.
    """
    path = find(references, FILE, SOURCE)
    values = read_lists(path, ("questions",))
    types = values.get("question_type")
    if not isinstance(types, dict):
        raise UserError(f"{path}, question_type: expected an object from names of types to their numbers.")
    names = {number: name for name, number in types.items() if isinstance(number, int)}
    found: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(values["questions"]):
        where = f"{path}, question {number}"
        if row.get("data_type") != "image":
            continue
        name = identifier(row, "question_id", where)
        options = {letter: row.get(f"choice_{letter.lower()}") for letter in LETTERS}
        if not all(isinstance(option, str | int | float) for option in options.values()):
            raise UserError(f"{where}: expected the options choice_a to choice_d.")
        if row.get("answer") not in LETTERS or row.get("question_type_id") not in names:
            raise UserError(f"{where}: expected an answer A to D and a question_type_id of the file's question_type.")
        if name in found:
            raise UserError(f"{where}: question_id {name!r} stands twice.")
        found[name] = {
            "question_id": name,
            "type": names[row["question_type_id"]],
            "answer": row["answer"],
            "options": {letter: str(option) for letter, option in options.items()},
        }
    if not found:
        raise UserError(f"{path} holds no question about an image.")
    return list(found.values())


def choice(text: str, options: Mapping[str, str]) -> str | None:
    """The letter that an answer gives, alone or before its option ("B", "(B)", "B. a dog"), or whose option it is."""
    text = text.strip()
    if match := LETTER.match(text):
        return match.group(1)
    said = text.rstrip(".").strip().lower()
    same = [letter for letter, option in options.items() if said and option.rstrip(".").strip().lower() == said]
    return same[0] if len(same) == 1 else None


def likeliest(answer: Answer) -> str | None:
    """The letter of the highest log-prob, None where the answer carries none. Raises UserError on other values."""
    values = answer.extra.get(LOG_PROBS)
    if values is None:
        return None
    fine = isinstance(values, dict) and set(values) == set(LETTERS)
    if not fine or not all(type(value) in (int, float) and math.isfinite(value) for value in values.values()):
        raise UserError(
            f"{NAME}: answer {answer.question_id!r}, {LOG_PROBS}: expected an object with one finite number for each "
            f"of {', '.join(LETTERS)}, found {str(values)[:80]}."
        )
    return max(LETTERS, key=lambda letter: values[letter])


def score(answers: Sequence[Answer], references: str | Path, partial: bool = False) -> Scores:
    """Accuracy in percent, whole and as `type/NAME`: by letter, and under `likelihood/` where answers carry log-probs.

    An answer without a letter is wrong, and counted. Where no answer has a text, there is only the likelihood.

    Raises:
      UserError: a question has no answer (unless `partial`) or two, an answer belongs to no question, or only some
        answers carry log-probs.
    """
    records = questions(references)
    found = by_question(answers, [record["question_id"] for record in records], NAME, partial)
    items = [_item(record, found[record["question_id"]]) for record in records if record["question_id"] in found]
    with_log_probs = sum(item["likeliest"] is not None for item in items)
    if 0 < with_log_probs < len(items):
        raise UserError(f"{NAME}: {with_log_probs} of {len(items)} answers carry {LOG_PROBS}; expected all or none.")
    metrics: dict[str, Metric] = {}
    if any(item["text"].strip() for item in items) or not with_log_probs:
        metrics |= _accuracies(items, "chosen")
    if with_log_probs:
        metrics |= {f"likelihood/{name}": metric for name, metric in _accuracies(items, "likeliest").items()}
    settings = {
        "unanswered": len(records) - len(items),
        "empty_answers": sum(not item["text"].strip() for item in items),
        "without_letter": sum(item["chosen"] is None for item in items),
    }
    return Scores(NAME, metrics, settings, items=items)


def _item(record: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
    return {
        "question_id": record["question_id"],
        "type": record["type"],
        "answer": record["answer"],
        "text": answer.text,
        "chosen": choice(answer.text, record["options"]),
        "likeliest": likeliest(answer),
    }


def _accuracies(items: Sequence[Mapping[str, Any]], by: str) -> dict[str, Metric]:
    right = [(item["type"], item[by] == item["answer"]) for item in items]
    found = {"accuracy": ratio([hit for _, hit in right], scale=100)}
    for name in dict.fromkeys(kind for kind, _ in right):
        found[f"type/{name}"] = ratio([hit for kind, hit in right if kind == name], scale=100)
    return found
