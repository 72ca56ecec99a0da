import numpy as np
import pytest

from rlhfv_jax.miniature import captions, rates, world
from rlhfv_jax.miniature.scoring import score
from rlhfv_jax.miniature.world import Group, Scene

CAR, DOG, CUP = Group("car", 2, "red", 0), Group("dog", 1, "white", 5), Group("cup", 1, "red", 15)
SCENE = Scene("street", (CAR, DOG, CUP), 0)
RIGHT, WRONG = score("car two red top-left", SCENE), score("bus two red top-left", SCENE)


def test_rates_of_four_hand_counted_answers():
    texts = (
        "car two red top-left , dog one white top-left , cup one red bottom-right",  # all true, all three groups
        "car one blue top-left , bus one red top-left",  # a number, a color, an object; one of three groups
        "bus , bus , car two",  # two hallucinated mentions, one repeat; one of three groups
        "",
    )
    found = {name: interval.value for name, interval in rates.summarize([score(text, SCENE) for text in texts]).items()}
    assert found == pytest.approx(
        {
            "response_rate": 50.0,
            "mention_rate": 100 * 3 / 8,
            "all_rate": 50.0,
            "number_rate": 25.0,
            "color_rate": 25.0,
            "position_rate": 0.0,
            "coverage": 100 * (1 + 1 / 3 + 1 / 3 + 0) / 4,
            "mentions": 2.0,
            "errors": 5 / 4,
            "repeats": 1 / 4,
        }
    )


def test_answers_without_any_mention_have_rate_zero_not_nan():
    found = rates.summarize([score("", SCENE)] * 3)
    assert found["mention_rate"] == (0.0, 0.0, 0.0)


def test_the_same_seed_gives_the_same_interval():
    scores = [RIGHT, WRONG, WRONG, RIGHT, RIGHT]
    assert rates.summarize(scores, seed=1) == rates.summarize(scores, seed=1)
    assert rates.summarize(scores, seed=1) != rates.summarize(scores * 4, seed=1)


def test_the_interval_holds_the_true_rate_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        scores = [WRONG if wrong else RIGHT for wrong in rng.random(120) < 0.3]
        found = rates.summarize(scores, resamples=200, level=0.9, seed=trial)["response_rate"]
        assert found.low <= found.value <= found.high
        hits += found.low <= 30.0 <= found.high
    assert 0.83 <= hits / 300 <= 0.95


def test_answers_to_one_image_are_drawn_together():
    rng = np.random.default_rng(1)
    scores = [WRONG if wrong else RIGHT for wrong in rng.random(60) < 0.5 for _ in range(10)]
    ids = np.repeat(np.arange(60), 10)
    alone, together = rates.summarize(scores)["response_rate"], rates.summarize(scores, ids)["response_rate"]
    assert alone.value == pytest.approx(together.value)
    # Ten equal answers an image are one answer's worth of evidence: the interval is sqrt(10) times as wide.
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(10**0.5, rel=0.2)


def test_a_paired_difference_is_tighter_than_the_two_intervals_apart():
    rng = np.random.default_rng(2)
    before = [WRONG if wrong else RIGHT for wrong in rng.random(300) < 0.5]
    after = [RIGHT if one is WRONG and rng.random() < 0.2 else one for one in before]
    found = rates.paired_difference(before, after)["response_rate"]
    apart = rates.summarize(before)["response_rate"], rates.summarize(after)["response_rate"]
    assert found.value == pytest.approx(apart[1].value - apart[0].value)
    assert found.high < 0
    unpaired = np.hypot(*(one.high - one.low for one in apart))
    assert found.high - found.low < 0.6 * unpaired
    assert rates.paired_difference(before, before)["response_rate"] == (0.0, 0.0, 0.0)


def test_aggregates_refuse_lengths_that_do_not_match():
    with pytest.raises(ValueError, match="no answer"):
        rates.summarize([])
    with pytest.raises(ValueError, match="2 image ids for 1"):
        rates.summarize([RIGHT], [0, 1])
    with pytest.raises(ValueError, match="1 answers before, 2 after"):
        rates.paired_difference([RIGHT], [RIGHT, RIGHT])
    with pytest.raises(ValueError, match="1 scores for 2"):
        rates.overgeneralization([RIGHT], [SCENE, SCENE])
    with pytest.raises(ValueError, match="bathroom, kitchen, living room"):
        rates.overgeneralization([RIGHT], [SCENE])


def test_overgeneralization_of_a_hand_computed_case():
    # One scene per kind, two for the street; every truth is a lamp, so of all mentions only a lamp is true.
    scenes = [Scene(kind, (Group("lamp", 1, "red", 0),), 0) for kind in ("street", *world.KINDS)]
    texts = ("person , car , lamp", "person", "person", "", "lamp , book , book")
    scores = [score(text, scene) for text, scene in zip(texts, scenes, strict=True)]
    table = rates.overgeneralization(scores, scenes)
    # Hallucinated street objects: person x3 and car x1 over 6 objects x 5 answers; in the street, person x2 and car x1.
    assert table.rows["street"].h_a == pytest.approx(100 * 4 / 30)
    assert table.rows["street"].h_s == pytest.approx(100 * 3 / 12)
    assert table.rows["kitchen"] == rates.SceneRates(0.0, 0.0)
    # Living room objects: person x3 and book (once, though named twice); there, book alone.
    assert table.rows["living room"].h_a == pytest.approx(100 * 4 / 30)
    assert table.rows["living room"].h_s == pytest.approx(100 * 1 / 6)
    assert table.mean_delta.value == pytest.approx((100 * (3 / 12 - 4 / 30) + 0 + 0 + 100 * (1 / 6 - 4 / 30)) / 4)
    by_mention = rates.overgeneralization(scores, scenes, "mention").rows
    # Core objects of the living room mentioned: person x3, lamp x2, book x1; there, lamp and book.
    assert by_mention["living room"].h_a == pytest.approx(100 * 4 / 6)
    assert by_mention["living room"].h_s == pytest.approx(100 * 1 / 2)


def test_a_noisy_corpus_overgeneralizes_in_every_place():
    rng = np.random.default_rng(3)
    scenes = [world.sample_scene(rng) for _ in range(1500)]
    scores = [score(captions.caption(scene, rng, captions.NOISY), scene) for scene in scenes]
    assert min(row.delta for row in rates.overgeneralization(scores, scenes).rows.values()) > 3.0


def test_the_interval_of_overgeneralization_covers_the_world_it_is_drawn_from():
    # Ten corpora of 400 captions each; the mean Δ of a large one stands for the truth.
    def corpus(seed, count):
        rng = np.random.default_rng(seed)
        scenes = [world.sample_scene(rng) for _ in range(count)]
        return [score(captions.caption(scene, rng, captions.NOISY), scene) for scene in scenes], scenes

    truth = rates.overgeneralization(*corpus(99, 6000)).mean_delta.value
    intervals = [rates.overgeneralization(*corpus(seed, 400)).mean_delta for seed in range(10)]
    assert sum(one.low <= truth <= one.high for one in intervals) >= 8
    assert all(one.low < one.value < one.high for one in intervals)


def test_a_difference_of_overgeneralization_is_paired():
    rng = np.random.default_rng(4)
    scenes = [world.sample_scene(rng) for _ in range(400)]
    noisy = [score(captions.caption(scene, rng, captions.NOISY), scene) for scene in scenes]
    clean = [score(captions.caption(scene, rng), scene) for scene in scenes]
    found = rates.overgeneralization_difference(noisy, clean, scenes)
    before, after = (rates.overgeneralization(scores, scenes).mean_delta for scores in (noisy, clean))
    assert found.value == pytest.approx(after.value - before.value) and found.high < 0
    assert rates.overgeneralization_difference(noisy, noisy, scenes) == (0.0, 0.0, 0.0)


def test_a_relative_change_is_in_percent_of_the_rate_before_and_absent_where_that_is_nothing():
    before, after = [WRONG] * 60 + [RIGHT] * 40, [WRONG] * 30 + [RIGHT] * 70
    found = rates.relative_change(before, after)["response_rate"]
    assert found.value == pytest.approx(-50.0) and -75 < found.low < -50 < found.high < -25
    assert "response_rate" not in rates.relative_change([RIGHT] * 10, [WRONG] * 10)


def test_vqa_accuracy_counts_exact_answers_by_kind():
    turns = [
        captions.Turn("is there a car", "yes", "is"),
        captions.Turn("is there a bus", "no", "is"),
        captions.Turn("how many car", "two", "count"),
    ]
    assert rates.vqa_accuracy([" yes", "yes", "two"], turns) == pytest.approx({"all": 200 / 3, "is": 50, "count": 100})
    assert rates.vqa_accuracy([turn.answer for turn in turns], turns)["all"] == 100.0
    with pytest.raises(ValueError, match="0 answers to 3"):
        rates.vqa_accuracy([], turns)
