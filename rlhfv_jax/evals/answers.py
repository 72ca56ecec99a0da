"""Answer files: what a model said to each question, one JSON object a line, read strictly."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhfv_jax import textfiles
from rlhfv_jax.errors import UserError

TEXTS = ("text", "answer", "response")
FIELDS = ("question_id", "prompt", "text", "model_id", "image_id")


@dataclass(frozen=True)
class Answer:
    """One answer. `question_id` is text even where the file has a number; `extra` holds every other field."""

    question_id: str
    text: str
    prompt: str = ""
    image_id: str = ""
    model_id: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AnswerFile:
    """The answers in the file's order, and the question ids whose line holds an `error` in place of a text."""

    answers: tuple[Answer, ...]
    failed: tuple[str, ...] = ()


def read_answers(path: str | Path) -> AnswerFile:
    """Reads what `generate` writes: `question_id, prompt, text, token_ids, model_id, image_id?` a line.

    Published files that name the two otherwise are read too: `id` for `question_id`, `answer` or `response` for `text`.

    Empty texts are kept: a benchmark decides what an empty answer counts for.

    Raises:
      UserError: the file cannot be read, a line is not a JSON object, has no question_id or no text, or repeats an id.
    """
    answers, failed, seen = [], [], set()
    for where, values in read_objects(path):
        identity = identifier(values, "id" if "id" in values and "question_id" not in values else "question_id", where)
        if identity in seen:
            raise UserError(f"{where}: question_id {identity!r} stands twice; expected one answer a question.")
        seen.add(identity)
        if values.get("error") and not any(values.get(name) for name in TEXTS):
            failed.append(identity)
            continue
        text = next((values[name] for name in TEXTS if name in values), None)
        if not isinstance(text, str):
            raise UserError(f"{where}, text: expected the answer's text, found {type(text).__name__}.")
        answers.append(
            Answer(
                identity,
                text,
                prompt=str(values.get("prompt") or ""),
                image_id=identifier(values, "image_id", where) if values.get("image_id") is not None else "",
                model_id=str(values.get("model_id") or ""),
                extra={name: value for name, value in values.items() if name not in FIELDS},
            )
        )
    return AnswerFile(tuple(answers), tuple(failed))


def read_objects(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """(where, object) of every non-blank line of a JSONL file, or of every item of one JSON list.

    Raises UserError naming the line.
    """
    path = Path(path)
    text = textfiles.read(path, "utf-8-sig")
    if text.lstrip().startswith("["):
        rows = [(f"{path}, item {i}", value) for i, value in enumerate(_list(text, path))]
    else:
        # Not splitlines(): an answer may hold U+2028, which JSON leaves as it is.
        lines = [(f"{path}, line {i}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        rows = [(where, _json(line, where)) for where, line in lines]
    for where, value in rows:
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected a JSON object, found {type(value).__name__}.")
    if "\\ud" in text.lower():
        for where, value in rows:
            _check_characters(value, where)
    return rows


def _check_characters(value: Mapping[str, Any], where: str) -> None:
    """Halves of surrogate pairs, which JSON can spell, are no characters: no judge can be sent them."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: holds half of a surrogate pair, which is no character.") from error


def identifier(values: Mapping[str, Any], name: str, where: str) -> str:
    """The field as text; numbers and text are taken, anything else is an error."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(f"{where}, {name}: expected a number or text, found {value!r}.")
    return str(value)


def by_question(
    answers: Iterable[Answer], expected: Iterable[str], benchmark: str, partial: bool = False
) -> dict[str, Answer]:
    """Answers by question id; every expected question has exactly one (with `partial`: at most) and there is no other.

    Raises:
      UserError: a question has no answer or two, or an answer belongs to no question, or there is no answer at all.
    """
    found: dict[str, Answer] = {}
    for answer in answers:
        if answer.question_id in found:
            raise UserError(f"{benchmark}: question {answer.question_id!r} has two answers.")
        found[answer.question_id] = answer
    wanted = set(expected)
    if not found:
        raise UserError(f"{benchmark}: there is no answer to score.")
    if (missing := sorted(wanted - set(found))) and not partial:
        raise UserError(f"{benchmark}: {len(missing)} of {len(wanted)} questions have no answer, first {missing[0]!r}.")
    if unknown := sorted(set(found) - wanted):
        raise UserError(f"{benchmark}: {len(unknown)} answers belong to no question, first {unknown[0]!r}.")
    return found


def _list(text: str, path: Path) -> list[Any]:
    return _json(text, str(path))


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}).") from error
