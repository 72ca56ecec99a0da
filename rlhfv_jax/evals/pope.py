"""POPE (Li et al. 2023): is an object in the picture? Yes/no questions in three settings, scored as officially."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhfv_jax.errors import UserError
from rlhfv_jax.evals.answers import Answer, by_question, identifier, read_objects
from rlhfv_jax.evals.references import find
from rlhfv_jax.evals.scores import Metric, Scores
from rlhfv_jax.evals.statistics import interval, ratio, resampled_ratios

NAME = "pope"
SETTINGS = ("adversarial", "popular", "random")
SOURCE = "RUCAIBox/POPE, output/coco"


def questions(references: str | Path) -> list[dict[str, Any]]:
    """Every question of the three official files coco_pope_SETTING.json; ids are SETTING/NUMBER."""
    return [question for setting in SETTINGS for question in _setting(Path(references), setting)]


def _setting(folder: Path, setting: str) -> list[dict[str, Any]]:
    path = find(folder, [f"coco_pope_{setting}.{suffix}" for suffix in ("json", "jsonl")], SOURCE)
    rows, seen = [], set()
    for where, values in read_objects(path):
        identity = identifier(values, "question_id", where)
        if values.get("label") not in ("yes", "no") or not isinstance(values.get("text"), str):
            raise UserError(f"{where}: expected a text and a label yes or no.")
        if identity in seen:
            raise UserError(f"{where}: question_id {identity!r} stands twice.")
        seen.add(identity)
        rows.append(
            {
                "question_id": f"{setting}/{identity}",
                "prompt": values["text"],
                "image": values.get("image"),
                "label": values["label"],
                "setting": setting,
            }
        )
    if not rows:
        raise UserError(f"{path} holds no question.")
    return rows


def verdict(text: str) -> str:
    """`no` if the first sentence has the word No, no or not, else `yes`; so an empty answer is a yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def score(answers: Sequence[Answer], references: str | Path, partial: bool = False) -> Scores:
    """Accuracy, precision, recall, F1 of `yes` and the share of yes, in percent, by setting, and the mean F1."""
    return score_records(answers, questions(references), partial)


def score_records(answers: Sequence[Answer], records: Sequence[Mapping[str, Any]], partial: bool = False) -> Scores:
    """As `score`, over question records at hand; with `partial`, over those that are answered."""
    found = by_question(answers, [record["question_id"] for record in records], NAME, partial)
    items = [
        {
            "question_id": record["question_id"],
            "setting": record["setting"],
            "label": record["label"],
            "predicted": verdict(found[record["question_id"]].text),
            "empty": not found[record["question_id"]].text.strip(),
        }
        for record in records
        if record["question_id"] in found
    ]
    metrics: dict[str, Metric] = {}
    for setting in dict.fromkeys(item["setting"] for item in items):
        rows = [item for item in items if item["setting"] == setting]
        metrics |= {f"{setting}/{name}": metric for name, metric in _rates(rows).items()}
    metrics["mean_f1"] = _mean_f1(items, metrics)
    settings = {
        "unanswered": len(records) - len(items),
        "empty_answers": sum(item["empty"] for item in items),
    }
    return Scores(NAME, metrics, settings, items=items)


def _mean_f1(items: Sequence[Mapping[str, Any]], metrics: Mapping[str, Metric]) -> Metric:
    """The mean of the settings' F1; its interval draws the questions of each setting apart."""
    values, drawn = [], []
    for seed, setting in enumerate(dict.fromkeys(item["setting"] for item in items)):
        values.append(metrics[f"{setting}/f1"].value)
        drawn.append(resampled_ratios(*_f1_parts([item for item in items if item["setting"] == setting]), 100, seed))
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return Metric(None, None, None, len(items))
    return Metric(sum(known) / len(known), *interval(np.mean(drawn, axis=0)), len(items))


def _f1_parts(rows: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[int]]:
    """Twice the hits, and what is said plus what is true, of each question."""
    pairs = [(row["predicted"] == "yes", row["label"] == "yes") for row in rows]
    return [2 * (said and true) for said, true in pairs], [said + true for said, true in pairs]


def _rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    yes = [row["predicted"] == "yes" for row in rows]
    true = [row["label"] == "yes" for row in rows]
    hits = [said and label for said, label in zip(yes, true, strict=True)]
    right = [said == label for said, label in zip(yes, true, strict=True)]
    return {
        "accuracy": ratio(right, scale=100),
        "precision": ratio(hits, yes, 100, n=sum(yes)),
        "recall": ratio(hits, true, 100, n=sum(true)),
        "f1": ratio(*_f1_parts(rows), 100, n=len(rows)),
        "yes_ratio": ratio(yes, scale=100),
    }
