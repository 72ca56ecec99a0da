"""Over-generalization (the paper's Table 2): are a scene's usual objects made up more often in pictures of the scene?

For each scene: its pictures are those with a COCO caption that names it, its objects the ten that COCO annotates most
often in them. H_a is the hallucination rate of these objects in all answers, H_s in the answers about the scene's
pictures, delta the difference.

The paper gives no code and no formula. Four readings are computed, an object counted once an answer:

    D  hallucinated / mentioned, over all ten objects together: fits the level of the printed figures; the default
    C  the mean over the objects of hallucinated / mentioned, objects that no answer mentions left out
    B  the share of answers that hallucinate any of the ten
    A  the mean over the objects of the share of answers that hallucinate it
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlhfv_jax.errors import UserError
from rlhfv_jax.evals.objhal import category_node, coco
from rlhfv_jax.evals.references import read_json
from rlhfv_jax.evals.scores import Metric, Scores
from rlhfv_jax.evals.statistics import interval, resampled_sums
from rlhfv_jax.evals.vocabulary import Vocabulary

NAME = "over_generalization"
SCENES = ("living room", "kitchen", "bathroom", "street")
OBJECTS = 10
RANKINGS = ("instances", "images")
DEFINITIONS = ("D", "C", "B", "A")

Rates = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Scene:
    """`phrases`: a caption with one of them, as whole words, is of the scene. `objects` empty: ranked from COCO."""

    name: str
    phrases: tuple[str, ...]
    objects: tuple[str, ...] = ()
    images: frozenset[int] = frozenset()


DEFAULT = tuple(Scene(name, (name,)) for name in SCENES)


def read_scenes(path: str | Path, vocabulary: Vocabulary) -> tuple[Scene, ...]:
    """Scenes from JSON: `{"living room": {"phrases": ["living room"], "objects": ["book", ...]}}`, both optional.

    Raises:
      UserError: the file is misshapen, or an object stands in no line of the synonym file.
    """
    values = read_json(Path(path))
    if not isinstance(values, dict) or not values:
        raise UserError(f"{path}: expected an object with one entry a scene.")
    found = []
    for name, given in values.items():
        if not isinstance(given, dict) or set(given) - {"phrases", "objects"}:
            raise UserError(f"{path}, {name}: expected an object with phrases and objects, both optional.")
        lists = {field: given.get(field, []) for field in ("phrases", "objects")}
        for field, words in lists.items():
            if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
                raise UserError(f"{path}, {name}, {field}: expected a list of words.")
        if unknown := [word for word in lists["objects"] if word not in vocabulary.node]:
            raise UserError(f"{path}, {name}, objects: {unknown[0]!r} stands in no line of the synonym file.")
        nodes = tuple(dict.fromkeys(vocabulary.node[word] for word in lists["objects"]))
        found.append(Scene(name, tuple(lists["phrases"]) or (name,), nodes))
    return tuple(found)


def from_coco(
    references: str | Path, scenes: Sequence[Scene], vocabulary: Vocabulary, ranking: str = "instances"
) -> tuple[Scene, ...]:
    """The scenes with their pictures in both COCO splits and, where none are given, their most frequent objects.

    Raises UserError for a scene that no caption names.
    """
    patterns = [re.compile(rf"\b(?:{'|'.join(map(re.escape, scene.phrases))})\b", re.IGNORECASE) for scene in scenes]
    images: list[set[int]] = [set() for _ in scenes]
    objects: list[list[tuple[int, str]]] = [[] for _ in scenes]
    for instances, captions in coco(references):
        for row in captions["annotations"]:
            for pattern, members in zip(patterns, images, strict=True):
                if pattern.search(row["caption"]):
                    members.add(row["image_id"])
        names = {row["id"]: row["name"] for row in instances["categories"]}
        for row in instances["annotations"]:
            for members, seen in zip(images, objects, strict=True):
                if row["image_id"] in members:
                    seen.append((row["image_id"], names[row["category_id"]]))
    found = []
    for scene, members, seen in zip(scenes, images, objects, strict=True):
        if not members:
            raise UserError(f"{NAME}: no COCO caption names the scene {scene.name!r}.")
        counted = seen if ranking == "instances" else dict.fromkeys(seen)
        ranked = Counter(category_node(name, vocabulary) for _, name in counted).most_common(OBJECTS)
        objects_of = scene.objects or tuple(name for name, _ in ranked)
        found.append(replace(scene, images=frozenset(members), objects=objects_of))
    return tuple(found)


def score_items(items: Sequence[Mapping[str, Any]], scenes: Sequence[Scene], settings: Mapping[str, Any]) -> Scores:
    """Rates in percent from the rows of an Object HalBench score (`image_id`, `mentioned`, `hallucinated`).

    `SCENE/h_a`, `SCENE/h_s`, `SCENE/delta` and `mean_delta` are of definition D, those of the others have C/, B/ or A/
    before them; n is of mentions for D and C, of answers else. Intervals draw answers, the same ones for H_a and H_s.
    """
    inside = [np.array([int(item["image_id"]) in scene.images for item in items]) for scene in scenes]
    columns = [_columns(items, scene.objects) for scene in scenes]
    both = np.concatenate(
        [part for own, member in zip(columns, inside, strict=True) for part in (own, own * member[:, None])], axis=1
    )
    value, drawn = _split(both.sum(0)[None], columns), _split(resampled_sums(both), columns)
    metrics: dict[str, Metric] = {}
    for name in DEFINITIONS:
        prefix = "" if name == DEFINITIONS[0] else f"{name}/"
        deltas = []
        for scene, own, member, point, draws in zip(scenes, columns, inside, value, drawn, strict=True):
            h_a, h_s = (rates[name] for rates in point)
            mentions = own[:, len(scene.objects) : 2 * len(scene.objects)].sum(1)
            counted = mentions if name in ("D", "C") else np.ones(len(items))
            a, s = (rates[name] for rates in draws)
            metrics[f"{prefix}{scene.name}/h_a"] = _metric(h_a, a, counted.sum())
            metrics[f"{prefix}{scene.name}/h_s"] = _metric(h_s, s, counted[member].sum())
            metrics[f"{prefix}{scene.name}/delta"] = _metric(h_s - h_a, s - a, counted[member].sum())
            deltas.append((h_s - h_a, s - a))
        mean, means = (np.mean(parts, axis=0) for parts in zip(*deltas, strict=True))
        metrics[f"{prefix}mean_delta"] = _metric(mean, means, len(items))
    rows = [
        {**item, "scenes": [scene.name for scene in scenes if int(item["image_id"]) in scene.images]} for item in items
    ]
    more = {
        "definition": DEFINITIONS[0],
        "objects": {scene.name: list(scene.objects) for scene in scenes},
        "scene_images": {scene.name: len(scene.images) for scene in scenes},
        "scene_answers": {scene.name: int(member.sum()) for scene, member in zip(scenes, inside, strict=True)},
    }
    return Scores(NAME, metrics, {**settings, **more}, items=rows)


def _columns(items: Sequence[Mapping[str, Any]], objects: Sequence[str]) -> np.ndarray:
    """float[answers, 2k + 2]: each object hallucinated, each mentioned, any of them hallucinated, 1."""
    rows = []
    for item in items:
        wrong, named = ({node for _, node in item[field]} for field in ("hallucinated", "mentioned"))
        hits = [float(name in wrong) for name in objects]
        rows.append([*hits, *(float(name in named) for name in objects), float(any(hits)), 1.0])
    return np.array(rows)


def _split(sums: np.ndarray, columns: Sequence[np.ndarray]) -> list[tuple[Rates, Rates]]:
    """The rates of each scene over all answers and over its own, from sums[draws, all columns]."""
    found, at = [], 0
    for own in columns:
        width = own.shape[1]
        parts = sums[:, at : at + width], sums[:, at + width : at + 2 * width]
        found.append((_rates(parts[0]), _rates(parts[1])))
        at += 2 * width
    return found


def _rates(sums: np.ndarray) -> Rates:
    """Each definition in percent, float[draws]; NaN where it is a rate of nothing."""
    k = (sums.shape[1] - 2) // 2
    wrong, named, any_wrong, answers = sums[:, :k], sums[:, k : 2 * k], sums[:, -2], sums[:, -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(named > 0, wrong / named, 0.0)
        return {
            "A": 100 * wrong.mean(1) / answers,
            "B": 100 * any_wrong / answers,
            "C": 100 * share.sum(1) / (named > 0).sum(1),
            "D": 100 * wrong.sum(1) / named.sum(1),
        }


def _metric(value: np.ndarray, drawn: np.ndarray, n: float) -> Metric:
    if np.isnan(value[0]):
        return Metric(None, None, None, int(n))
    return Metric(float(value[0]), *interval(drawn), int(n))
