"""Answer files of several models, joined by question."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhfv_jax.annotation.project import HallucinationType
from rlhfv_jax.annotation.texts import normalized
from rlhfv_jax.comparing import spans as marked
from rlhfv_jax.comparing.spans import Span
from rlhfv_jax.errors import UserError
from rlhfv_jax.evals.answers import AnswerFile, read_answers
from rlhfv_jax.generation import questions as asked
from rlhfv_jax.generation.questions import Question

MOST = 9  # models; each has a key
TIE = "tie"


@dataclass(frozen=True)
class Shown:
    """One model's answer, normalized; `spans` is None where nobody labeled it."""

    text: str
    spans: tuple[Span, ...] | None = None


@dataclass(frozen=True)
class Item:
    """One question, normalized, with every model's answer in the order of the names; None where a model has none."""

    id: str
    prompt: str
    question: Question
    answers: tuple[Shown | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Questions that at least one model answered. `digest` tells two comparisons apart, by names and texts."""

    names: tuple[str, ...]
    items: tuple[Item, ...]
    types: tuple[HallucinationType, ...]
    counts: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of names, questions and answers."""
        rows = [[i.id, i.prompt, [a and a.text for a in i.answers]] for i in self.items]
        return hashlib.sha256(json.dumps([self.names, rows]).encode()).hexdigest()


def read(
    files: Sequence[str | Path],
    questions: str | Path = "",
    names: Sequence[str] = (),
    spans: Sequence[str | Path] = (),
    images: str | Path = "",
) -> Comparison:
    """Joins answer files, in the order of the questions.

    Without `questions` the answers' own prompts are shown, without images. Raises UserError where a file cannot be
    read or repeats an id, names do not fit, or no question was answered by two models.
    """
    if not 2 <= len(files) <= MOST:
        raise UserError(f"A comparison is of 2 to {MOST} answer files, found {len(files)}: compare A.jsonl B.jsonl.")
    answered = [read_answers(path) for path in files]
    called = _names(files, answered, names)
    labels = marked.read(spans)
    rows = asked.read(questions, images or None).rows if questions else _own_questions(answered)
    texts = [{a.question_id: a for a in file.answers} for file in answered]
    items, prompts = [], 0
    for question in rows:
        identity, prompt = str(question.id), normalized(question.text)
        found = [of.get(identity) for of in texts]
        if not any(found):
            continue
        prompts += sum(bool(a and a.prompt and normalized(a.prompt) != prompt) for a in found)
        shown = [None if a is None else _shown(labels, identity, prompt, normalized(a.text)) for a in found]
        items.append(Item(identity, prompt, question, tuple(shown)))
    if not any(sum(a is not None for a in item.answers) > 1 for item in items):
        source = f"{questions} and " if questions else ""
        raise UserError(
            f"No question has answers of two models: {source}{', '.join(map(str, files))} share no question_id. "
            "Compare answers to the same questions file."
        )
    known = {str(question.id) for question in rows}
    counts = {
        "questions": len(rows),
        "shown": len(items),
        "complete": sum(None not in item.answers for item in items),
        "models": {
            name: {
                "answers": sum(item.answers[k] is not None for item in items),
                "lacking": sum(item.answers[k] is None for item in items),
                "failed": len(answered[k].failed),
                "elsewhere": len(texts[k].keys() - known),
                "labeled": sum((a := item.answers[k]) is not None and a.spans is not None for item in items),
            }
            for k, name in enumerate(called)
        },
        "other_prompts": prompts,
        "labels_unused": labels.unused,
        "labels_repeated": labels.repeated,
    }
    used = {span.type for item in items for a in item.answers if a and a.spans for span in a.spans}
    return Comparison(tuple(called), tuple(items), tuple(marked.types(used)), counts)


def _shown(labels: marked.Labels, identity: str, prompt: str, text: str) -> Shown:
    return Shown(text, labels.of(identity, prompt, text))


def _own_questions(answered: Sequence[AnswerFile]) -> list[Question]:
    """The questions as the answers tell them, in the order in which they first appear."""
    found: dict[str, Question] = {}
    for answer in (answer for file in answered for answer in file.answers):
        if answer.question_id not in found or not found[answer.question_id].text:
            found[answer.question_id] = Question(answer.question_id, answer.prompt)
    return list(found.values())


def _names(files: Sequence[str | Path], answered: Sequence[AnswerFile], given: Sequence[str]) -> list[str]:
    """The models' names: those given, or the answers' own where each file has one, or the files'."""
    if given and len(given) != len(files):
        raise UserError(f"--names has {len(given)} names for {len(files)} answer files; give one for each, in order.")
    own = [{a.model_id for a in file.answers} for file in answered]
    from_answers = [next(iter(ids)).rstrip("/").rsplit("/", 1)[-1] if len(ids) == 1 else "" for ids in own]
    names = [name.strip() for name in given]
    if not names:
        names = from_answers if all(from_answers) and len(set(from_answers)) == len(files) else []
    names = names or [Path(path).stem for path in files]
    for name in names:
        if not name or not name.isprintable() or len(name) > 80 or name == TIE:
            raise UserError(f"A model's name has 1 to 80 printable characters and is not {TIE!r}; found {name[:90]!r}.")
        if names.count(name) > 1:
            raise UserError(f"Two models are called {name!r}; name them apart with --names=ONE,TWO.")
    return names


def notes(comparison: Comparison, blind: bool = False) -> list[str]:
    """What a reader should know about what is not shown; `blind` leaves out what would tell a model."""
    counts = comparison.counts
    found = []
    if left := counts["questions"] - counts["shown"]:
        found.append(f"{left} of {counts['questions']} questions answered by nobody")
    if blind:
        return found
    for name, of in counts["models"].items():
        if of["lacking"]:
            failed = f" ({of['failed']} failed)" if of["failed"] else ""
            found.append(f"{name} lacks {of['lacking']}{failed}")
        if of["elsewhere"]:
            found.append(f"{name} has {of['elsewhere']} to other questions, not shown")
    for name, text in (
        ("other_prompts", "answers to another wording of the question"),
        ("labels_unused", "labels of answers that are not here"),
        ("labels_repeated", "further labels of a labeled answer, not shown"),
    ):
        if counts[name]:
            found.append(f"{counts[name]} {text}")
    return found
