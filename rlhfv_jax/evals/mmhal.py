"""MMHal-Bench: a judge rates 96 answers from 0 to 6 against a person's answer and the image's contents.

Sun et al. 2023. As the released scorer of RLHF-V: a rating below 3 is a hallucination; officially one that cannot be
read counts as 0, and so as one. Informativeness is the rating less 3 where it is none. Item i is of type i mod 8. The
paper's Resp. is not this judge's rate but that of its human annotators.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhfv_jax.endpoint import Request
from rlhfv_jax.errors import UserError
from rlhfv_jax.evals.answers import Answer
from rlhfv_jax.evals.judge import Judgment
from rlhfv_jax.evals.scores import Scores
from rlhfv_jax.evals.statistics import ratio

NAME = "mmhal"
ITEMS = 96
TYPES = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")
RATINGS = range(7)
CLEAN = 3  # the lowest rating without a hallucination
SETTINGS = {"temperature": 0, "max_tokens": 512}


@dataclass(frozen=True)
class Question:
    """One item of the benchmark's answer template."""

    id: str  # its place, from "0"
    type: str
    image_content: tuple[str, ...]
    question: str
    gt_answer: str
    image_id: str = ""
    image_src: str = ""


def questions(rows: Sequence[Mapping[str, Any]], where: str) -> list[Question]:
    """The items of `mmhal-bench_answer_template.json`, in order. Raises UserError on a wrong count, field or type."""
    if len(rows) != ITEMS:
        raise UserError(f"{where} has {len(rows)} items; MMHal-Bench has {ITEMS}.")
    items = []
    for index, row in enumerate(rows):
        for name in ("question_type", "image_content", "question", "gt_answer"):
            if name not in row:
                raise UserError(f"{where}, item {index}: the field {name!r} is missing.")
        kind = TYPES[index % len(TYPES)]
        if row["question_type"] != kind:
            raise UserError(
                f"{where}, item {index} is of type {row['question_type']!r}; the scorer goes by place and takes it for "
                f"{kind!r}. Restore the official order."
            )
        items.append(
            Question(
                id=str(index),
                type=kind,
                image_content=tuple(row["image_content"]),
                question=row["question"],
                gt_answer=row["gt_answer"],
                image_id=str(row.get("image_id", "")),
                image_src=str(row.get("image_src", "")),
            )
        )
    return items


def check_template(template: str, where: str) -> str:
    """The judge's prompt with four `{}`: contents, question, person's answer, model's answer.

    Raises UserError for another number of them.
    """
    if template.count("{}") != 4:
        raise UserError(f"{where} has {template.count('{}')} places {{}} to fill in; MMHal-Bench's prompt has 4.")
    return template


def request(item: Question, answer: str, template: str) -> Request:
    """What the judge is asked, byte for byte as by the released scorer."""
    text = template.format(", ".join(item.image_content), item.question, item.gt_answer, answer)
    return Request(item.id, ({"role": "user", "content": text},), SETTINGS)


def parse(review: str) -> int:
    """The rating in a review. Raises ValueError where there is none, or more than one."""
    text = review.lower()
    found = [rating for rating in RATINGS if f"rating: {rating}" in text]
    if len(found) != 1:
        raise ValueError(f"{len(found)} ratings")
    return found[0]


def informativeness(rating: int) -> float:
    """Percent: full marks are three above clean, or three below."""
    return 100.0 * (rating - CLEAN if rating >= CLEAN else rating) / CLEAN


def measures(rating: int) -> dict[str, float]:
    """What one rating adds to each mean."""
    return {
        "rating": float(rating),
        "informativeness": informativeness(rating),
        "hallucination_rate": 100.0 * (rating < CLEAN),
    }


def score(items: Sequence[Question], answers: Mapping[str, Answer], judgment: Judgment) -> Scores:
    """Means over the judged items, all in percent but `rating`; the same for each question type, as `rating/counting`.

    Items without a verdict are in no mean, and in the settings by id; in the official way they are rated 0.

    Raises:
      UserError: no item has a verdict.
    """
    ratings = {name: int(rating) for name, rating in judgment.verdicts.items()}
    if judgment.official:
        ratings |= dict.fromkeys(judgment.unjudged, 0)
    rated = [item for item in items if item.id in ratings]
    if not rated:
        raise UserError(f"{NAME}: no answer has a rating.")
    metrics = {}
    for kind in ("", *TYPES):
        rows = [measures(ratings[item.id]) for item in rated if kind in ("", item.type)]
        for name in measures(0):
            metrics[f"{name}/{kind}" if kind else name] = ratio([row[name] for row in rows])
    rows_out = [
        {
            "question_id": item.id,
            "type": item.type,
            "question": item.question,
            "text": answers[item.id].text,
            "truth": item.gt_answer,
            "rating": ratings.get(item.id),
            "review": judgment.contents.get(item.id),
        }
        for item in items
    ]
    return Scores(NAME, metrics, {"judging": dict(judgment.record)}, judgment.name, rows_out)
