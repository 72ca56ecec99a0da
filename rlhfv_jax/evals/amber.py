"""AMBER's discriminative half: yes/no questions scored as the official script does."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhfv_jax.errors import UserError
from rlhfv_jax.evals.answers import Answer
from rlhfv_jax.evals.references import find, read_json
from rlhfv_jax.evals.scores import Metric, Scores

NAME = "amber"
SOURCE = "junyangwang0410/AMBER, data/annotations.json"
GROUPS = {
    "existence": ("discriminative-hallucination",),
    "state": ("discriminative-attribute-state",),
    "number": ("discriminative-attribute-number",),
    "action": ("discriminative-attribute-action",),
    "relation": ("discriminative-relation", "relation"),
}
ATTRIBUTES = ("state", "number", "action")


def truths(references: str | Path) -> dict[str, tuple[str, str]]:
    """Question id to (group, yes or no) for every discriminative item of the official annotations.json."""
    path = find(references, "annotations.json", SOURCE)
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of items.")
    group_of = {kind: group for group, kinds in GROUPS.items() for kind in kinds}
    found = {}
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or not {"id", "type", "truth"} <= set(row):
            raise UserError(f"{path}, item {i}: expected an object with id, type and truth.")
        if row["type"] in group_of:
            if row["truth"] not in ("yes", "no"):
                raise UserError(f"{path}, item {i}, truth: expected yes or no, found {row['truth']!r}.")
            found[str(row["id"])] = (group_of[row["type"]], row["truth"])
    if not found:
        raise UserError(f"{path} holds no discriminative item.")
    return found


def score(answers: Sequence[Answer], references: str | Path) -> Scores:
    """Accuracy, precision, recall and F1 in percent, rounded as printed officially; a found `no` is the positive class.

    Only the exact answers Yes and No count; any other is wrong and is counted in the settings. Questions that are not
    answered are left out, as the official script leaves them out, and are counted too.

    Raises:
      UserError: an answer belongs to no discriminative item, or is given twice, or there is none.
    """
    expected = truths(references)
    items, seen = [], set()
    for answer in answers:
        if answer.question_id not in expected or answer.question_id in seen:
            problem = "is answered twice" if answer.question_id in seen else "is no discriminative item"
            raise UserError(f"{NAME}: question {answer.question_id!r} {problem}.")
        seen.add(answer.question_id)
        group, truth = expected[answer.question_id]
        items.append({"question_id": answer.question_id, "group": group, "truth": truth, "answer": answer.text})
    if not items:
        raise UserError(f"{NAME}: there is no answer to score.")
    parts = {"discriminative": items, "attribute": [item for item in items if item["group"] in ATTRIBUTES]}
    parts |= {group: [item for item in items if item["group"] == group] for group in GROUPS}
    metrics = {
        f"{part}/{name}": metric
        for part, rows in parts.items()
        if rows
        for name, metric in _rates(rows, guard=0.001 if part == "existence" else 0.0001).items()
    }
    settings = {
        "unanswered": len(expected) - len(items),
        "neither_yes_nor_no": sum(item["answer"] not in ("Yes", "No") for item in items),
    }
    return Scores(NAME, metrics, settings, items=items)


def _rates(rows: Iterable[Mapping[str, Any]], guard: float) -> dict[str, Metric]:
    rows = list(rows)
    hits = sum(row["truth"] == "no" and row["answer"] == "No" for row in rows)
    said = sum(row["answer"] == "No" for row in rows)
    negatives = sum(row["truth"] == "no" for row in rows)
    right = sum(row["answer"] == row["truth"].capitalize() for row in rows)
    # The official denominators start at 0.001, and its F1 is of the rounded percents.
    accuracy = round(right / (len(rows) + 0.001) * 100, 1)
    precision = round(hits / (said + 0.001) * 100, 1)
    recall = round(hits / (negatives + 0.001) * 100, 1)
    f1 = round(2 * precision * recall / (precision + recall + guard), 1)
    values = {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}
    counts = {"accuracy": len(rows), "precision": said, "recall": negatives, "f1": len(rows)}
    return {name: Metric(value, None, None, counts[name]) for name, value in values.items()}
