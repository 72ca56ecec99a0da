import numpy as np
import pytest

from rlhfv_jax.miniature import captions, oracle, scoring, world
from rlhfv_jax.miniature.captions import CaptionNoise
from rlhfv_jax.miniature.world import Group, Scene

SCENE = Scene(
    "street",
    (Group("car", 2, "red", 0), Group("person", 1, "blue", 10), Group("dog", 3, "white", 3)),
    0,
)
CAR, PERSON, DOG = (" ".join(group.words) for group in SCENE.groups)
BUS, CUP = "bus two red bottom-left", "cup one green top-left"


def correct(text, deletions=False, seed=0):
    return oracle.correct(text, SCENE, np.random.default_rng(seed), deletions)


def street(*phrases):
    return "this street has " + " , ".join(phrases) + " ."


def outside(text, segments):
    """The words no segment touches."""
    kept = list(text)
    for segment in segments:
        kept[segment["start"] : segment["end"]] = " " * (segment["end"] - segment["start"])
    return "".join(kept).split()


def said(text, segments):
    return [(text[segment["start"] : segment["end"]], segment["type"]) for segment in segments]


def noisy_pairs(count=400, deletions=False):
    """Captions with swapped-in mistakes of every kind, wrong places and too many wrong objects among them."""
    rng = np.random.default_rng(4)
    for _ in range(count):
        scene = world.sample_scene(rng)
        text = captions.caption(scene, rng, CaptionNoise(0.3, 0.2, 0.2, 0.2))
        if rng.random() < 0.2:
            text = text.replace(scene.kind, world.KINDS[rng.integers(4)])
        if rng.random() < 0.3:
            absent = [name for name in world.CLASSES if name not in scene.by_name and name not in text.split()]
            text = text.replace(" .", f" , {absent[0]} one red top-left .")
        yield text, scene, oracle.correct(text, scene, rng, deletions)


def test_a_wrong_object_is_replaced_with_its_whole_mention():
    pair = correct(street(CAR, BUS, DOG))
    assert pair.chosen == street(CAR, PERSON, DOG) and pair.deletions == 0
    assert said(pair.chosen, pair.chosen_segments) == [(PERSON, "object")]
    assert said(pair.rejected, pair.rejected_segments) == [(BUS, "object")]


def test_a_wrong_word_of_a_true_object_is_replaced_alone():
    pair = correct("this kitchen has car one blue top-left , dog three white bottom-left .")
    assert pair.chosen == street(CAR, DOG)
    assert said(pair.rejected, pair.rejected_segments) == [
        ("kitchen", "misc"),
        ("one", "number"),
        ("blue", "attribute"),
        ("bottom-left", "position"),
    ]
    assert [word for word, _ in said(pair.chosen, pair.chosen_segments)] == ["street", "two", "red", "top-right"]


def test_pairs_differ_only_inside_their_segments_and_the_chosen_side_is_true():
    pairs = 0
    for text, scene, pair in noisy_pairs():
        if pair is None:
            continue
        pairs += 1
        assert pair.rejected == text != pair.chosen
        assert outside(text, pair.rejected_segments) == outside(pair.chosen, pair.chosen_segments)
        assert [s["type"] for s in pair.rejected_segments] == [s["type"] for s in pair.chosen_segments]
        for old, new in zip(said(text, pair.rejected_segments), said(pair.chosen, pair.chosen_segments), strict=True):
            assert old != new
        found = scoring.score(pair.chosen, scene)
        assert found.errors == () and found.repeats == 0
        assert len(found.mentions) == len(scoring.parse(text))
    assert pairs > 250


def test_every_error_lies_in_a_segment_and_every_segment_holds_an_error():
    for text, scene, pair in noisy_pairs(200):
        if pair is None:
            continue
        starts = [error.claim.start for error in scoring.score(text, scene).errors]
        assert len(starts) == len(pair.rejected_segments)
        assert all(s["start"] <= start < s["end"] for s, start in zip(pair.rejected_segments, starts, strict=True))


def test_noisy_captions_of_the_corpus_never_need_a_deletion():
    rng = np.random.default_rng(6)
    for _ in range(500):
        scene = world.sample_scene(rng)
        text = captions.caption(scene, rng, captions.NOISY)
        wrong = bool(scoring.score(text, scene).errors)
        assert (oracle.correct(text, scene, rng) is not None) == wrong


def test_an_answer_with_more_wrong_objects_than_unmentioned_true_ones_is_left_out():
    assert correct(street(CAR, PERSON, DOG, BUS)) is None
    assert correct(street(CAR, BUS, DOG, CUP)) is None
    assert correct(street(CAR, BUS, CUP)) is not None


@pytest.mark.parametrize(
    ("phrases", "chosen", "deleted"),
    [
        ((CAR, PERSON, DOG, BUS), (CAR, PERSON, DOG), [", " + BUS]),
        ((BUS, CAR, PERSON, DOG), (CAR, PERSON, DOG), [BUS + " ,"]),
        ((BUS, CUP, CAR, PERSON, DOG), (CAR, PERSON, DOG), [BUS + " ,", CUP + " ,"]),
        ((CAR, BUS, PERSON, CUP, DOG), (CAR, PERSON, DOG), [", " + BUS, ", " + CUP]),
    ],
)
def test_deletions_take_one_comma_along_and_have_no_chosen_segment(phrases, chosen, deleted):
    pair = correct(street(*phrases), deletions=True)
    assert pair.chosen == street(*chosen)
    assert said(pair.rejected, pair.rejected_segments) == [(words, "object") for words in deleted]
    assert pair.chosen_segments == [] and pair.deletions == len(deleted)


def test_with_deletions_wrong_objects_go_and_only_wrong_words_are_replaced():
    deleted = 0
    for text, scene, pair in noisy_pairs(deletions=True):
        if pair is None:
            continue
        before, after = scoring.score(text, scene), scoring.score(pair.chosen, scene)
        assert after.errors == () and pair.deletions == len(before.objects)
        assert outside(text, pair.rejected_segments) == outside(pair.chosen, pair.chosen_segments)
        assert len(after.mentions) == len(before.mentions) - pair.deletions > 0
        assert after.covered == before.covered
        deleted += pair.deletions
    assert deleted > 100


def test_a_caption_of_wrong_objects_alone_cannot_be_corrected_by_deletion():
    assert correct(street(BUS, CUP), deletions=True) is None
    assert correct(street(BUS, CUP)) is not None


def test_the_rng_chooses_which_unmentioned_group_steps_in():
    assert {correct(street(CAR, BUS), seed=seed).chosen for seed in range(20)} == {
        street(CAR, PERSON),
        street(CAR, DOG),
    }


@pytest.mark.parametrize(
    "text",
    [
        street(CAR, DOG),  # nothing to correct
        street(BUS, DOG)[:-2],  # no full stop
        street("bus two red", DOG),  # an attribute missing
        street("bus red two top-left", DOG),  # another order
        street(BUS, DOG) + " .",
        street(BUS, DOG).replace(" ,", ","),
        street(BUS, DOG).replace("street", "garage"),
        street(BUS, CAR, CAR),  # a repeat
        street(BUS, BUS),
        "",
        "bus",
    ],
)
def test_answers_without_an_error_or_not_in_the_grammar_are_left_out(text):
    assert correct(text) is None and correct(text, deletions=True) is None
