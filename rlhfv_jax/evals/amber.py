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


GENERATIVE = "generative"


def truths(references: str | Path) -> dict[str, tuple[str, str]]:
    """Question id to (group, yes or no) for every item of the official annotations.json; ("generative", "") for those.

    Raises:
      UserError: the file is missing or misshapen, or holds no discriminative item.
    """
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
        else:
            found[str(row["id"])] = (GENERATIVE, "")
    if not any(truth for _, truth in found.values()):
        raise UserError(f"{path} holds no discriminative item.")
    return found


def score(answers: Sequence[Answer], references: str | Path, partial: bool = False) -> Scores:
    """Accuracy, precision, recall and F1 in percent, rounded as printed officially; a found `no` is the positive class.

    Only the exact answers Yes and No count; any other is wrong and is counted in the settings. Descriptions, which are
    the other half of AMBER, are passed over and counted. With `partial`, questions that are not answered are left out,
    as the official script leaves them out, and are counted too.

    Raises:
      UserError: an answer belongs to no item, or is given twice, or there is none to a discriminative item; or, unless
        `partial`, a discriminative item has no answer.
    """
    expected = truths(references)
    items, seen = [], set()
    for answer in answers:
        if answer.question_id not in expected or answer.question_id in seen:
            problem = "is answered twice" if answer.question_id in seen else "is no item"
            raise UserError(f"{NAME}: question {answer.question_id!r} {problem}.")
        seen.add(answer.question_id)
        group, truth = expected[answer.question_id]
        if group == GENERATIVE:
            continue
        items.append({"question_id": answer.question_id, "group": group, "truth": truth, "answer": answer.text})
    if not items:
        raise UserError(f"{NAME}: there is no answer to a yes/no question to score.")
    questions = sum(group != GENERATIVE for group, _ in expected.values())
    if len(items) < questions and not partial:
        raise UserError(
            f"{NAME}: {questions - len(items)} of {questions} yes/no questions have no answer; to score the others, "
            "say --partial."
        )
    parts = {"discriminative": items, "attribute": [item for item in items if item["group"] in ATTRIBUTES]}
    parts |= {group: [item for item in items if item["group"] == group] for group in GROUPS}
    metrics = {
        f"{part}/{name}": metric
        for part, rows in parts.items()
        if rows
        for name, metric in _rates(rows, guard=0.001 if part == "existence" else 0.0001).items()
    }
    settings = {
        "unanswered": questions - len(items),
        "descriptions_passed_over": len(answers) - len(items),
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
