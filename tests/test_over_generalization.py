"""Over-generalization: the case worked by hand in all four readings, scenes and objects from COCO's files."""

import json

import numpy as np
import pytest
from conftest import shared

from rlhfv_jax.errors import UserError
from rlhfv_jax.evals import over_generalization as table
from rlhfv_jax.evals.over_generalization import Scene
from rlhfv_jax.evals.vocabulary import read_vocabulary


def hand_case():
    case = json.loads(shared("data/benchmarks/tables/table2_hand_case.json").read_text())
    items = [
        {
            "question_id": str(row["id"]),
            "image_id": str(row["id"]),
            "mentioned": [[name, name] for name in row["mentioned"]],
            "hallucinated": [[name, name] for name in row["hallucinated"]],
        }
        for row in case["rows"]
    ]
    images = frozenset(row["id"] for row in case["rows"] if row["scene"])
    return case, items, Scene("here", ("here",), tuple(case["top10"]), images)


def test_the_case_worked_by_hand_in_all_readings():
    case, items, scene = hand_case()
    scores = table.score_items(items, [scene], {})
    for name, rates in case["expected"].items():
        prefix = "" if name[0] == "D" else f"{name[0]}/"
        h_a, h_s, delta = (scores.metrics[f"{prefix}here/{part}"].value for part in ("h_a", "h_s", "delta"))
        assert (h_a, h_s) == pytest.approx((rates["H_a"], rates["H_s"]), abs=1e-4)
        assert delta == pytest.approx(h_s - h_a) and scores.metrics[f"{prefix}mean_delta"].value == delta
    assert (scores.metrics["here/h_a"].n, scores.metrics["here/h_s"].n) == (7, 4)
    assert [item["scenes"] for item in scores.items] == [["here"], ["here"], [], [], []]


def test_an_object_named_twice_counts_once_an_answer():
    _, items, scene = hand_case()
    doubled = [{**item, "mentioned": item["mentioned"] * 2, "hallucinated": item["hallucinated"] * 3} for item in items]
    assert table.score_items(doubled, [scene], {}).metrics == table.score_items(items, [scene], {}).metrics


def test_intervals_of_the_difference_draw_the_same_answers():
    rng = np.random.default_rng(0)
    items = [
        {"image_id": str(i), "mentioned": [["cup", "cup"]], "hallucinated": [["cup", "cup"]] * int(rng.random() < 0.3)}
        for i in range(400)
    ]
    everywhere = Scene("x", ("x",), ("cup",), frozenset(range(400)))
    delta = table.score_items(items, [everywhere], {}).metrics["x/delta"]
    assert (delta.value, delta.low, delta.high) == (0, 0, 0)
    half = table.score_items(items, [Scene("x", ("x",), ("cup",), frozenset(range(200)))], {}).metrics["x/delta"]
    assert half.low < half.value < half.high


def test_a_scene_without_answers_has_no_rate():
    _, items, scene = hand_case()
    elsewhere = Scene("far", ("far",), scene.objects, frozenset({99}))
    scores = table.score_items(items, [scene, elsewhere], {})
    assert scores.metrics["far/h_s"].value is None and scores.metrics["mean_delta"].value is None
    assert scores.settings["scene_answers"] == {"here": 2, "far": 0}


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "synonyms_refine.txt").write_bytes(shared("data/benchmarks/chair/synonyms_refine.txt").read_bytes())
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "person"}, {"id": 3, "name": "dining table"}]

    def annotate(pairs):
        return [{"image_id": image, "category_id": category} for image, category in pairs]

    captions = {
        "val2014": [(1, "A Kitchen with a table"), (2, "a kitchenette"), (3, "a dog in the street.")],
        "train2014": [(4, "the kitchen."), (4, "people"), (5, "streetlights")],
    }
    instances = {"val2014": [(1, 1), (1, 1), (1, 1), (1, 2), (2, 3), (3, 2)], "train2014": [(4, 2), (4, 3)]}
    for split in captions:
        rows = [{"image_id": image, "caption": text} for image, text in captions[split]]
        (tmp_path / f"captions_{split}.json").write_text(json.dumps({"annotations": rows}))
        values = {"categories": categories, "annotations": annotate(instances[split])}
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(values))
    return tmp_path


def test_scenes_are_named_in_captions_and_objects_ranked_by_what_is_annotated(coco):
    vocabulary = read_vocabulary(coco)
    scenes = [Scene("kitchen", ("kitchen",)), Scene("street", ("street",), ("dog",))]
    kitchen, street = table.from_coco(coco, scenes, vocabulary)
    assert kitchen.images == {1, 4} and street.images == {3}
    assert kitchen.objects == ("cup", "person", "dining table") and street.objects == ("dog",)
    by_image = table.from_coco(coco, scenes, vocabulary, "images")[0]
    assert by_image.objects[0] == "person"
    with pytest.raises(UserError, match="no COCO caption names the scene 'cave'"):
        table.from_coco(coco, [Scene("cave", ("cave",))], vocabulary)


def test_scenes_from_a_file(tmp_path):
    vocabulary = read_vocabulary(shared("data/benchmarks/chair"))
    path = tmp_path / "scenes.json"
    path.write_text(json.dumps({"street": {"objects": ["people", "person", "car"], "phrases": ["street", "road"]}}))
    assert table.read_scenes(path, vocabulary) == (Scene("street", ("street", "road"), ("person", "car")),)
    for text, says in (
        ("[]", "one entry a scene"),
        ('{"street": {"object": []}}', "phrases and objects"),
        ('{"street": {"objects": "car"}}', "list of words"),
        ('{"street": {"objects": ["unicorn"]}}', "'unicorn' stands in no line"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=says):
            table.read_scenes(path, vocabulary)


def test_the_objects_that_the_paper_prints_are_all_in_the_vocabulary(tmp_path):
    printed = json.loads(shared("data/benchmarks/tables/paper_table2.json").read_text())["top6"]
    path = tmp_path / "scenes.json"
    path.write_text(json.dumps({name: {"objects": words} for name, words in printed.items()}))
    scenes = table.read_scenes(path, read_vocabulary(shared("data/benchmarks/chair")))
    assert [scene.name for scene in scenes] == list(table.SCENES)
    assert all(len(scene.objects) == 6 for scene in scenes)


def test_the_printed_differences_and_means_are_those_of_the_printed_rates_within_rounding():
    printed = json.loads(shared("data/benchmarks/tables/paper_table2.json").read_text())["rows"]
    for row in printed.values():
        *scenes, mean = row
        for h_a, h_s, delta in scenes:
            assert h_s - h_a == pytest.approx(delta, abs=0.1 + 1e-9)
        assert mean == pytest.approx(sum(delta for _, _, delta in scenes) / len(scenes), abs=0.06)
