"""AMBER (Wang et al. 2023): descriptions and yes/no questions about the same pictures, scored as officially."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhfv_jax.errors import UserError
from rlhfv_jax.evals import amber_descriptions as descriptions
from rlhfv_jax.evals.answers import Answer
from rlhfv_jax.evals.references import find, read_json
from rlhfv_jax.evals.scores import Metric, Scores
from rlhfv_jax.evals.statistics import interval, ratio, resampled_ratios
from rlhfv_jax.evals.tagging import Tagger, noun_tagger

NAME = "amber"
SOURCE = "junyangwang0410/AMBER, data"
GROUPS = {
    "existence": ("discriminative-hallucination",),
    "state": ("discriminative-attribute-state",),
    "number": ("discriminative-attribute-number",),
    "action": ("discriminative-attribute-action",),
    "relation": ("discriminative-relation", "relation"),
}
ATTRIBUTES = ("state", "number", "action")
GENERATIVE = "generative"
Rows = Sequence[Mapping[str, Any]]


def annotations(references: str | Path) -> dict[str, dict[str, Any]]:
    """Every item of the official annotations.json by id, with its `group`: a key of GROUPS, or generative.

    Raises:
      UserError: the file is missing or misshapen, or holds no discriminative item.
    """
    path = find(references, "annotations.json", SOURCE)
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of items.")
    group_of = {kind: group for group, kinds in GROUPS.items() for kind in kinds} | {GENERATIVE: GENERATIVE}
    found = {}
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or not {"id", "type", "truth"} <= set(row):
            raise UserError(f"{path}, item {i}: expected an object with id, type and truth.")
        if row["type"] not in group_of:
            raise UserError(f"{path}, item {i}, type: {row['type']!r} is none of AMBER's.")
        group = group_of[row["type"]]
        if group != GENERATIVE and row["truth"] not in ("yes", "no"):
            raise UserError(f"{path}, item {i}, truth: expected yes or no, found {row['truth']!r}.")
        found[str(row["id"])] = {**row, "group": group}
    if all(row["group"] == GENERATIVE for row in found.values()):
        raise UserError(f"{path} holds no discriminative item.")
    return found


def score(
    answers: Sequence[Answer], references: str | Path, partial: bool = False, tagger: Tagger | None = None
) -> Scores:
    """Both halves, each where it is answered, in percent and rounded as printed officially.

    `generative/` has CHAIR, Cover, Hal and Cog of the descriptions; `discriminative/` and its parts have accuracy,
    precision, recall and F1, where a found `no` is the positive class and only the exact answers Yes and No count;
    `amber_score` joins the two where both are there: (100 - CHAIR + F1) / 2.

    With `partial`, questions that are not answered are left out, as the official script leaves them out, and counted.
    Without the association table and the safe words, descriptions are passed over and counted, unless there is nothing
    else. `tagger` None: the best that is installed.

    Raises:
      UserError: an answer belongs to no item, or is given twice, or there is none; or, unless `partial`, a half that
        has an answer is not answered whole.
    """
    expected = annotations(references)
    by_id: dict[str, Answer] = {}
    for answer in answers:
        if answer.question_id not in expected or answer.question_id in by_id:
            problem = "is answered twice" if answer.question_id in by_id else "is no item"
            raise UserError(f"{NAME}: question {answer.question_id!r} {problem}.")
        by_id[answer.question_id] = answer
    if not by_id:
        raise UserError(f"{NAME}: there is no answer to score.")
    described = [answer for answer in answers if expected[answer.question_id]["group"] == GENERATIVE]
    asked = [answer for answer in answers if expected[answer.question_id]["group"] != GENERATIVE]
    settings: dict[str, Any] = {}
    metrics: dict[str, Metric] = {}
    told: Rows = []
    if described and (not asked or _has_tables(references)):
        settings["descriptions_unanswered"] = _unanswered(expected, described, True, partial)
        told, more = _describe(described, expected, references, tagger or noun_tagger())
        metrics |= {f"generative/{name}": metric for name, metric in descriptions.metrics(told).items()}
        settings |= more
    said = [_item(answer, expected[answer.question_id]) for answer in asked]
    if asked:
        settings["unanswered"] = _unanswered(expected, asked, False, partial)
        metrics |= _discriminative(said)
        settings["neither_yes_nor_no"] = sum(item["answer"] not in ("Yes", "No") for item in said)
    if told and said:
        metrics["amber_score"] = _joined(told, said, metrics)
    settings["descriptions_passed_over"] = len(described) - len(told)
    return Scores(NAME, metrics, settings, items=[*told, *said])


def _has_tables(references: str | Path) -> bool:
    try:
        for name in (descriptions.ASSOCIATIONS, descriptions.SAFE_WORDS):
            find(references, name, SOURCE)
    except UserError:
        return False
    return True


def _unanswered(
    expected: Mapping[str, Mapping[str, Any]], answers: Sequence[Answer], generative: bool, partial: bool
) -> int:
    total = sum((row["group"] == GENERATIVE) == generative for row in expected.values())
    if len(answers) < total and not partial:
        kind = "descriptions" if generative else "yes/no questions"
        raise UserError(
            f"{NAME}: {total - len(answers)} of {total} {kind} have no answer; to score the others, say --partial."
        )
    return total - len(answers)


def _describe(
    answers: Sequence[Answer], expected: Mapping[str, Mapping[str, Any]], references: str | Path, tagger: Tagger
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    words = descriptions.read_words(references, SOURCE)
    scenes = [
        descriptions.scene(expected[answer.question_id], words, f"{NAME}, item {answer.question_id}")
        for answer in answers
    ]
    rows = descriptions.score(answers, scenes, words, tagger)
    return rows, {
        "tagger": tagger.name if tagger.official else f"{tagger.name}, in place of NLTK's",
        "similarity": "exact match",
        "empty_descriptions": sum(not answer.text.strip() for answer in answers),
    }


def _item(answer: Answer, row: Mapping[str, Any]) -> dict[str, Any]:
    return {"question_id": answer.question_id, "group": row["group"], "truth": row["truth"], "answer": answer.text}


def _discriminative(items: Rows) -> dict[str, Metric]:
    parts = {"discriminative": items, "attribute": [item for item in items if item["group"] in ATTRIBUTES]}
    parts |= {group: [item for item in items if item["group"] == group] for group in GROUPS}
    return {
        f"{part}/{name}": metric
        for part, rows in parts.items()
        if rows
        for name, metric in _rates(rows, guard=0.001 if part == "existence" else 0.0001).items()
    }


def _counts(rows: Rows) -> dict[str, list[int]]:
    return {
        "right": [row["answer"] == row["truth"].capitalize() for row in rows],
        "hits": [row["truth"] == "no" and row["answer"] == "No" for row in rows],
        "said": [row["answer"] == "No" for row in rows],
        "negatives": [row["truth"] == "no" for row in rows],
        "either": [(row["answer"] == "No") + (row["truth"] == "no") for row in rows],
    }


def _rates(rows: Rows, guard: float) -> dict[str, Metric]:
    counts = _counts(rows)
    right, hits, said, negatives = (sum(counts[name]) for name in ("right", "hits", "said", "negatives"))
    # The official denominators start at 0.001, and its F1 is of the rounded percents (as fractions, plus the guard).
    accuracy = round(right / (len(rows) + 0.001) * 100, 1)
    precision = round(hits / (said + 0.001) * 100, 1)
    recall = round(hits / (negatives + 0.001) * 100, 1)
    p, r = precision / 100, recall / 100
    f1 = round(2 * p * r / (p + r + guard) * 100, 1)
    values = {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}
    around = {
        "accuracy": ratio(counts["right"], scale=100),
        "precision": ratio(counts["hits"], counts["said"], 100, n=said),
        "recall": ratio(counts["hits"], counts["negatives"], 100, n=negatives),
        "f1": ratio([2 * hit for hit in counts["hits"]], counts["either"], 100, n=len(rows)),
    }
    return {name: Metric(value, around[name].low, around[name].high, around[name].n) for name, value in values.items()}


def _joined(told: Rows, said: Rows, metrics: Mapping[str, Metric]) -> Metric:
    """The AMBER score, from the rounded figures as published; its interval draws descriptions and questions apart."""
    chair, f1 = metrics["generative/chair"].value, metrics["discriminative/f1"].value
    assert chair is not None and f1 is not None
    counts = _counts(said)
    drawn_chair = resampled_ratios([len(row["hallucinated"]) for row in told], [len(row["mentioned"]) for row in told])
    drawn_f1 = resampled_ratios([2 * hit for hit in counts["hits"]], counts["either"], seed=1)
    n = len(told) + len(said)
    drawn = 50 * (1 - drawn_chair + drawn_f1)
    if not (drawn == drawn).any():
        return Metric((100 - chair + f1) / 2, None, None, n)
    return Metric((100 - chair + f1) / 2, *interval(drawn), n)
