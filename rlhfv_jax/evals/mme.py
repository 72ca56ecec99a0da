"""MME (Fu et al. 2023): two yes/no questions about each picture in fourteen subtasks, scored as officially.

A subtask's score is 100 x (accuracy + accuracy+), where accuracy+ is the share of pictures with both questions right;
perception is the sum of ten subtasks (2,000 at most), cognition of four (800).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhfv_jax import textfiles
from rlhfv_jax.errors import UserError
from rlhfv_jax.evals.answers import Answer, by_question
from rlhfv_jax.evals.references import find
from rlhfv_jax.evals.scores import Metric, Scores
from rlhfv_jax.evals.statistics import interval, ratio, resampled_ratios

NAME = "mme"
SOURCE = "MME's release, eval_tool/Your_Results"
GROUPS = {
    "perception": (
        *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
    ),
    "cognition": ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
}
SUBTASKS = tuple(name for names in GROUPS.values() for name in names)


def questions(references: str | Path) -> list[dict[str, Any]]:
    """The questions of SUBTASK.txt, `image, question, Yes or No` a line; ids are SUBTASK/IMAGE/1 and /2, in order.

    Raises:
      UserError: a file is missing, a line has other fields, or an image has not exactly two questions.
    """
    return [row for subtask in SUBTASKS for row in _subtask(references, subtask)]


def _subtask(references: str | Path, subtask: str) -> list[dict[str, Any]]:
    path = find(references, f"{subtask}.txt", SOURCE)
    rows: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(textfiles.read(path).split("\n"), 1):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split("\t")
        if len(fields) < 3 or not fields[0] or fields[2].strip().lower() not in ("yes", "no"):
            raise UserError(f"{path}, line {number}: expected an image, a question and Yes or No, apart by tabs.")
        image, question, label = fields[0], fields[1], fields[2].strip().lower()
        seen[image] = seen.get(image, 0) + 1
        identity = f"{subtask}/{image}/{seen[image]}"
        rows.append({"question_id": identity, "subtask": subtask, "image": image, "prompt": question, "label": label})
    if odd := [image for image, count in seen.items() if count != 2]:
        raise UserError(f"{path}: {odd[0]} has {seen[odd[0]]} questions; MME asks two about each image.")
    if not rows:
        raise UserError(f"{path} holds no question.")
    return rows


def verdict(text: str) -> str:
    """`yes` or `no` where the first four letters have it, yes first; else `other`, which is never right."""
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def score(answers: Sequence[Answer], references: str | Path, partial: bool = False) -> Scores:
    """Accuracy, accuracy+ and score of each subtask, and the totals of perception and cognition.

    With `partial`, of the questions that are answered; accuracy+ is of images with both answered, and a total is there
    where all of its subtasks are.

    Raises:
      UserError: a question has no answer (unless `partial`) or two, or an answer belongs to no question.
    """
    records = questions(references)
    found = by_question(answers, [record["question_id"] for record in records], NAME, partial)
    items = []
    for record in records:
        if record["question_id"] in found:
            text = found[record["question_id"]].text
            kept = {name: record[name] for name in ("question_id", "subtask", "image", "label")}
            items.append({**kept, "text": text, "predicted": verdict(text)})
    metrics: dict[str, Metric] = {}
    draws: dict[str, np.ndarray] = {}
    for seed, subtask in enumerate(SUBTASKS):
        rows = [item for item in items if item["subtask"] == subtask]
        if rows:
            more, draws[subtask] = _subtask_metrics(rows, seed)
            metrics |= {f"{subtask}/{name}": metric for name, metric in more.items()}
    for group, names in GROUPS.items():
        values = [metrics[f"{name}/score"].value if name in draws else None for name in names]
        known = [value for value in values if value is not None]
        n = sum(item["subtask"] in names for item in items)
        if len(known) == len(names):
            metrics[group] = Metric(sum(known), *interval(np.sum([draws[name] for name in names], axis=0)), n)
        elif n:
            metrics[group] = Metric(None, None, None, n)
    settings = {
        "unanswered": len(records) - len(items),
        "empty_answers": sum(not item["text"].strip() for item in items),
        "neither_yes_nor_no": sum(item["predicted"] == "other" for item in items),
    }
    return Scores(NAME, metrics, settings, items=items)


def _subtask_metrics(rows: Sequence[Mapping[str, Any]], seed: int) -> tuple[dict[str, Metric], np.ndarray]:
    """Metrics, and the score drawn again over images."""
    right: dict[str, list[bool]] = {}
    for row in rows:
        right.setdefault(row["image"], []).append(row["predicted"] == row["label"])
    answered = [len(each) for each in right.values()]
    correct = [sum(each) for each in right.values()]
    whole = [len(each) == 2 for each in right.values()]
    both = [len(each) == 2 and all(each) for each in right.values()]
    accuracy = ratio(correct, answered, 100, n=len(rows))
    plus = ratio(both, whole, 100, n=sum(whole))
    # The same seed draws the same images for both parts.
    drawn = resampled_ratios(correct, answered, 100, seed) + resampled_ratios(both, whole, 100, seed)
    if accuracy.value is None or plus.value is None:
        joined = Metric(None, None, None, len(rows))
    else:
        joined = Metric(accuracy.value + plus.value, *interval(drawn), len(rows))
    return {"accuracy": accuracy, "accuracy_plus": plus, "score": joined}, drawn
