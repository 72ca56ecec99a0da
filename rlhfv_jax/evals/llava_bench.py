"""LLaVA-Bench: a judge scores a reference answer and the model's from 1 to 10; what counts is their ratio.

Liu et al. 2023. 90 questions about 30 COCO images, 30 each of conversation, detail and complex reasoning, as the
released scorer of RLHF-V asks and counts; reviews of other categories (LLaVA-Bench in the wild) are summed up alike.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhfv_jax.endpoint import Request
from rlhfv_jax.errors import UserError
from rlhfv_jax.evals.answers import Answer
from rlhfv_jax.evals.judge import Judgment
from rlhfv_jax.evals.scores import Metric, Scores
from rlhfv_jax.evals.statistics import ratio

NAME = "llava_bench"
ITEMS = 90
CATEGORIES = ("conv", "detail", "complex")
SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
SETTINGS = {"temperature": 0.2, "max_tokens": 180}

Pair = tuple[float, float]  # scores of the reference answer and of the model's


@dataclass(frozen=True)
class Question:
    """One question with all that the judge is told of it."""

    id: str
    image: str
    category: str
    question: str
    reference: str  # the text-only judge's own answer
    captions: tuple[str, ...]
    instances: tuple[tuple[str, tuple[float, ...]], ...]  # category and box


def questions(
    rows: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]], contexts: Sequence[Mapping[str, Any]]
) -> list[Question]:
    """The items from the question file, the reference answers and the captions with boxes.

    Raises UserError where an item has no reference answer or its image no captions, and on unknown categories.
    """
    answers = {str(row["question_id"]): row["text"] for row in references}
    described = {row["image"]: row for row in contexts}
    items = []
    for row in rows:
        name = str(row["question_id"])
        if name not in answers:
            raise UserError(f"LLaVA-Bench question {name} has no reference answer.")
        if row["image"] not in described:
            raise UserError(f"LLaVA-Bench question {name}: no captions and boxes of its image {row['image']}.")
        if row["category"] not in CATEGORIES:
            raise UserError(
                f"LLaVA-Bench question {name} is of category {row['category']!r}; expected {', '.join(CATEGORIES)}."
            )
        context = described[row["image"]]
        boxes = tuple((one["category"], tuple(one["bbox"])) for one in context["instances"])
        captions = tuple(context["captions"])
        items.append(Question(name, row["image"], row["category"], row["text"], answers[name], captions, boxes))
    return items


def request(item: Question, answer: str, rules: Mapping[str, Mapping[str, str]]) -> Request:
    """What the judge is asked, byte for byte as by the released scorer; `rules` has role and prompt by category."""
    rule = rules[item.category]
    role, prompt = rule["role"], rule["prompt"]
    boxes = "\n".join(f"{category}: {list(box)}" for category, box in item.instances)
    context = "\n".join(item.captions) + "\n\n" + boxes
    text = (
        f"[Context]\n{context}\n\n[Question]\n{item.question}\n\n"
        f"[{role} 1]\n{item.reference}\n\n[End of {role} 1]\n\n"
        f"[{role} 2]\n{answer}\n\n[End of {role} 2]\n\n[System]\n{prompt}\n\n"
    )
    return Request(item.id, ({"role": "system", "content": SYSTEM}, {"role": "user", "content": text}), SETTINGS)


def parse(review: str) -> Pair:
    """The two scores on the first line of a review. Raises ValueError where there are not exactly two numbers."""
    parts = review.split("\n")[0].replace(",", " ").split(" ")
    if len(parts) != 2:
        raise ValueError(f"{len(parts)} parts")
    first, second = float(parts[0]), float(parts[1])
    if first == -1:
        raise ValueError("-1 stands for a review that cannot be read")
    return first, second


def relative(scores: Iterable[Pair]) -> float:
    """Percent: the model's mean score of the reference's, rounded where the released summary rounds."""
    pairs = list(scores)
    first, second = (round(sum(column) / len(pairs), 3) for column in zip(*pairs, strict=True))
    return round(second / first * 100, 1)


def summary(pairs: Sequence[Pair]) -> Metric:
    """The relative score with the bootstrap interval of the ratio."""
    around = ratio([second for _, second in pairs], [first for first, _ in pairs], 100)
    return Metric(relative(pairs), around.low, around.high, len(pairs))


def score(items: Sequence[Question], answers: Mapping[str, Answer], judgment: Judgment) -> Scores:
    """Relative scores, `all` and by category, over the items with a verdict; as officially, the others are left out.

    Raises:
      UserError: no item has a verdict.
    """
    pairs: Mapping[str, Pair] = judgment.verdicts
    judged = [item for item in items if item.id in pairs]
    if not judged:
        raise UserError(f"{NAME}: no answer has scores.")
    groups = {kind: [pairs[item.id] for item in judged if item.category == kind] for kind in CATEGORIES}
    metrics = {kind: summary(group) for kind, group in groups.items() if group}
    metrics["all"] = summary([pairs[item.id] for item in judged])
    rows = [
        {
            "question_id": item.id,
            "category": item.category,
            "question": item.question,
            "text": answers[item.id].text,
            "scores": list(pairs[item.id]) if item.id in pairs else None,
            "review": judgment.contents.get(item.id),
        }
        for item in items
    ]
    return Scores(NAME, metrics, {"judging": dict(judgment.record)}, judgment.name, rows)
