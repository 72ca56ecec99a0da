"""Object HalBench: how many answers and mentions name objects that the picture does not have.

The paper's section 4.1 on CHAIR (Rohrbach et al. 2018).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhfv_jax.errors import UserError
from rlhfv_jax.evals.answers import Answer, by_question
from rlhfv_jax.evals.references import find, read_lists
from rlhfv_jax.evals.scores import Metric, Scores
from rlhfv_jax.evals.statistics import interval, ratio, resampled_sums
from rlhfv_jax.evals.vocabulary import Vocabulary, read_vocabulary, words

NAME = "object_halbench"
ITEMS = 300
SOURCE = "the COCO site, annotations of train and val 2014"
SPLITS = ("val2014", "train2014")


def score(answers: Sequence[Answer], references: str | Path, partial: bool = False) -> Scores:
    """The lexical path: objects are found in the answers by the synonym file alone.

    Answers need an `image_id` (COCO's number). `references` holds the synonym file and COCO's instances and captions.

    Raises:
      UserError: an id stands twice, or, unless `partial`, there are not 300 answers to 300 images.
    """
    check_answers(answers, partial)
    vocabulary = read_vocabulary(references)
    true = truths(answers, references, vocabulary)
    named = [words(clean(answer.text), vocabulary) for answer in answers]
    return score_words(answers, named, true, vocabulary, "lexical")


def truths(answers: Sequence[Answer], references: str | Path, vocabulary: Vocabulary) -> list[set[str]]:
    """The true objects of each answer's image."""
    truth = ground_truth(references, {_image(answer) for answer in answers}, vocabulary)
    return [truth[_image(answer)] for answer in answers]


def check_answers(answers: Sequence[Answer], partial: bool = False) -> None:
    """Raises UserError where the answers are not one to each of 300 images (`partial`: one to each question)."""
    by_question(answers, [answer.question_id for answer in answers], NAME)
    images = {_image(answer) for answer in answers}
    if not partial and (len(answers) != ITEMS or len(images) != ITEMS):
        raise UserError(
            f"{NAME}: {len(answers)} answers to {len(images)} images; expected {ITEMS} to {ITEMS}. To score a part of "
            "the benchmark, say --partial."
        )


def score_words(
    answers: Sequence[Answer],
    named: Sequence[Sequence[str]],
    truths: Sequence[set[str]],
    vocabulary: Vocabulary,
    path: str,
) -> Scores:
    """Scores given the vocabulary words of each answer, however extracted, and the true objects of its image.

    Rates are fractions, under the official names; `resp` and `mention` are the paper's two columns, in percent.
    `object/NAME` is the percentage of the object's mentions in pictures without it, of every object that is mentioned.

    Raises:
      UserError: there is no answer.
    """
    if not answers:
        raise UserError(f"{NAME}: there is no answer to score.")
    items = []
    for answer, found, truth in zip(answers, named, truths, strict=True):
        pairs = [[word, vocabulary.node[word]] for word in found]
        items.append(
            {
                "question_id": answer.question_id,
                "image_id": answer.image_id,
                "text": answer.text,
                "mentioned": pairs,
                "hallucinated": [pair for pair in pairs if pair[1] not in truth],
                "correct": sorted({node for _, node in pairs} & truth),
                "truth": sorted(truth),
            }
        )
    settings = {
        "path": path,
        "answers": len(items),
        "answers_with_objects": sum(bool(item["mentioned"]) for item in items),
        "empty_answers": sum(not answer.text.strip() for answer in answers),
        "correct_objects": sum(len(item["correct"]) for item in items),
        "true_objects": sum(len(item["truth"]) for item in items),
    }
    return Scores(NAME, _metrics(items) | _by_object(items), settings, items=items)


def _metrics(items: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    wrong = [len(item["hallucinated"]) for item in items]
    mentions = [len(item["mentioned"]) for item in items]
    correct = [len(item["correct"]) for item in items]
    true = [len(item["truth"]) for item in items]
    any_wrong, any_named = [count > 0 for count in wrong], [count > 0 for count in mentions]
    right = [named and not bad for named, bad in zip(any_named, any_wrong, strict=True)]
    fine = [count - bad for count, bad in zip(mentions, wrong, strict=True)]
    return {
        "resp": ratio(any_wrong, any_named, 100, n=sum(any_named)),
        "mention": ratio(wrong, mentions, 100, n=sum(mentions)),
        "CHAIRs": ratio(any_wrong),
        "CHAIRs_refine": ratio(any_wrong, any_named, n=sum(any_named)),
        "CHAIRi": ratio(wrong, mentions, n=sum(mentions)),
        "obj_rec": ratio(correct, true, n=sum(true)),
        "correct_rate": ratio(right, any_named, n=sum(any_named)),
        "object_correct_rate": ratio(fine, mentions, n=sum(mentions)),
        "avg_word_len": ratio([len(clean(item["text"]).split(" ")) for item in items]),
    }


def _by_object(items: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    wrong, named = (
        [Counter(node for _, node in item[name]) for item in items] for name in ("hallucinated", "mentioned")
    )
    total = sum(named, Counter[str]())
    names = [name for name, _ in total.most_common()]
    # All objects in one draw: a draw for each takes seconds.
    sums = np.array(
        [[float(counts[name]) for counts in each for name in names] for each in zip(wrong, named, strict=True)]
    )
    if not names:
        return {}
    drawn = resampled_sums(sums)
    found = {}
    for at, name in enumerate(names):
        top, bottom = drawn[:, at], drawn[:, at + len(names)]
        low, high = interval(100 * top[bottom > 0] / bottom[bottom > 0])
        share = 100 * sum(one[name] for one in wrong) / total[name]
        found[f"object/{name}"] = Metric(share, low, high, total[name])
    return found


def clean(text: str) -> str:
    """The answer without a role that the model wrote itself, as officially."""
    return text.replace("Assistant:", "").strip()


def _image(answer: Answer) -> int:
    try:
        return int(answer.image_id)
    except ValueError as error:
        raise UserError(
            f"{NAME}: answer {answer.question_id!r} has image_id {answer.image_id!r}, no COCO number."
        ) from error


def ground_truth(references: str | Path, images: set[int], vocabulary: Vocabulary) -> dict[int, set[str]]:
    """Objects of each image: its annotated categories and the objects in its captions, of both COCO splits.

    Raises:
      UserError: a file is missing or misshapen, or an image has no annotation at all.
    """
    truth: dict[int, set[str]] = {image: set() for image in images}
    captioned = set()
    for instances, captions in coco(references):
        names = {row["id"]: row["name"] for row in instances["categories"]}
        for row in instances["annotations"]:
            if row["image_id"] in truth:
                truth[row["image_id"]].add(category_node(names[row["category_id"]], vocabulary))
        for row in captions["annotations"]:
            if row["image_id"] in truth:
                captioned.add(row["image_id"])
                truth[row["image_id"]] |= {vocabulary.node[word] for word in words(row["caption"], vocabulary)}
    if bare := sorted(images - captioned):
        raise UserError(f"{NAME}: {len(bare)} images have no COCO caption, first {bare[0]}.")
    return truth


def category_node(category: str, vocabulary: Vocabulary) -> str:
    """The object that a COCO category is of. Raises UserError where the synonym file has none."""
    if category not in vocabulary.node:
        raise UserError(f"COCO's category {category!r} stands in no line of the synonym file.")
    return vocabulary.node[category]


def coco(references: str | Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Instances and captions of one COCO split after the other. Raises UserError on a missing or misshapen file."""
    for split in SPLITS:
        file = find(references, f"instances_{split}.json", SOURCE)
        instances = read_lists(file, ("categories", "annotations"))
        _check(instances["categories"], {"id": int, "name": str}, f"{file}, categories")
        _check(instances["annotations"], {"image_id": int, "category_id": int}, f"{file}, annotations")
        if unknown := {row["category_id"] for row in instances["annotations"]} - {
            row["id"] for row in instances["categories"]
        }:
            raise UserError(f"{file}: category_id {min(unknown)} stands in no category.")
        file = find(references, f"captions_{split}.json", SOURCE)
        captions = read_lists(file, ("annotations",))
        _check(captions["annotations"], {"image_id": int, "caption": str}, f"{file}, annotations")
        yield instances, captions


def _check(rows: Sequence[Mapping[str, Any]], fields: Mapping[str, type], where: str) -> None:
    for number, row in enumerate(rows):
        for name, kind in fields.items():
            if not isinstance(row.get(name), kind):
                raise UserError(f"{where}, {number}: expected the field {name!r}, a {kind.__name__}.")
