"""Object HalBench: how many answers and mentions name objects that the picture does not have (CHAIR)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhfv_jax.errors import UserError
from rlhfv_jax.evals.answers import Answer, by_question
from rlhfv_jax.evals.references import find, read_lists
from rlhfv_jax.evals.scores import Metric, Scores
from rlhfv_jax.evals.statistics import ratio
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
    truth = ground_truth(references, {_image(answer) for answer in answers}, vocabulary)
    texts = [clean(answer.text) for answer in answers]
    named = [words(text, vocabulary) for text in texts]
    return score_words(answers, named, [truth[_image(answer)] for answer in answers], vocabulary, "lexical")


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
    return Scores(NAME, _metrics(items), settings, items=items)


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
    for split in SPLITS:
        name = f"instances_{split}.json"
        instances = read_lists(find(references, name, SOURCE), ("categories", "annotations"))
        names = {row["id"]: row["name"] for row in instances["categories"]}
        for row in instances["annotations"]:
            if row["image_id"] in truth:
                category = names[row["category_id"]]
                if category not in vocabulary.node:
                    raise UserError(f"{name}: category {category!r} stands in no line of the synonym file.")
                truth[row["image_id"]].add(vocabulary.node[category])
        captions = read_lists(find(references, f"captions_{split}.json", SOURCE), ("annotations",))
        for row in captions["annotations"]:
            if row["image_id"] in truth:
                captioned.add(row["image_id"])
                truth[row["image_id"]] |= {vocabulary.node[word] for word in words(row["caption"], vocabulary)}
    if bare := sorted(images - captioned):
        raise UserError(f"{NAME}: {len(bare)} images have no COCO caption, first {bare[0]}.")
    return truth
