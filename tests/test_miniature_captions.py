import numpy as np
import pytest

from rlhfv_jax.miniature import captions, rates, scoring, world
from rlhfv_jax.miniature.captions import CLEAN, NOISY, CaptionNoise


def corpus(count, noise, seed=0):
    rng = np.random.default_rng(seed)
    sample = [world.sample_scene(rng) for _ in range(count)]
    return sample, [captions.caption(scene, rng, noise) for scene in sample]


def test_the_caption_grammar_is_the_object_first_one():
    mentions = [("car", "two", "red", "top-left"), ("person", "one", "blue", "bottom-right")]
    assert captions.render("street", mentions) == (
        "this street has car two red top-left , person one blue bottom-right ."
    )


def test_clean_captions_have_no_error_and_name_each_object_once():
    for scene, text in zip(*corpus(300, CLEAN), strict=True):
        found = scoring.score(text, scene)
        assert found.errors == () and found.repeats == 0
        assert len(found.mentions) == 4 < len(scene.groups)


def test_every_word_ever_written_is_in_the_closed_vocabulary():
    rng = np.random.default_rng(1)
    sample, texts = corpus(800, NOISY)
    turns = [turn for scene in sample for turn in captions.vqa_turns(scene, rng, 0.3)]
    texts += [captions.prompt(kind) for kind in world.KINDS] + [
        text for turn in turns for text in (turn.question, turn.answer)
    ]
    assert {word for text in texts for word in text.split()} == set(captions.WORDS)
    assert list(captions.WORDS) == sorted(set(captions.WORDS))


def test_the_noisy_corpus_hallucinates_as_a_real_model_does():
    sample, texts = corpus(3000, CaptionNoise(absent=0.22))
    found = rates.summarize(
        [scoring.score(text, scene) for scene, text in zip(sample, texts, strict=True)], resamples=50
    )
    # Muffin on Object HalBench: 50.5 and 24.5; two hallucinated mentions at most, so below the share asked for.
    assert 45 < found["response_rate"].value < 60
    assert 15 < found["mention_rate"].value < 22
    assert found["mentions"].value == 4.0


def test_hallucinated_objects_are_absent_core_objects_and_the_first_in_order_most_often():
    sample, texts = corpus(2000, NOISY)
    ranks = []
    for scene, text in zip(sample, texts, strict=True):
        words = [error.claim.word for error in scoring.score(text, scene).objects]
        assert len(words) <= captions.MAX_ABSENT and len(set(words)) == len(words)
        assert not set(words) & set(scene.by_name)
        ranks += [world.CORE_OBJECTS[scene.kind].index(word) for word in words]
    counts = np.bincount(ranks, minlength=6)
    assert counts.argmax() == 0 and counts[0] > 1.5 * counts[5] and (counts > 0).all()


def test_a_hallucinated_mention_takes_a_true_one_s_place_so_every_caption_has_four():
    for scene, text in zip(*corpus(1000, CaptionNoise(absent=0.5)), strict=True):
        found = scoring.score(text, scene)
        assert len(found.mentions) == 4 and found.covered == 4 - len(found.objects)
        assert len(scene.groups) - found.covered >= len(found.objects)  # enough is left for every correction


def test_wrong_attributes_lean_to_the_typical_value():
    sample, texts = corpus(3000, CaptionNoise(absent=0.0, number=0.0, color=1.0, position=0.0))
    wrong = [error for scene, text in zip(sample, texts, strict=True) for error in scoring.score(text, scene).colors]
    owners = [text for scene, text in zip(sample, texts, strict=True) for _ in scoring.score(text, scene).colors]
    habits = []
    for error, text in zip(wrong, owners, strict=True):
        name = text[: error.claim.start].split()[-2]
        habits.append(error.claim.word == world.TYPICAL[name].color)
    # Of the wrong ones: .7 x .6 typical (the truth is typical in .4), and .3 x .6 / 5 that hit it by chance, over .72.
    assert np.mean(habits) == pytest.approx((0.42 + 0.3 * 0.6 / 5) / 0.72, abs=0.03)


def test_clean_answers_are_right_by_the_ground_truth():
    rng = np.random.default_rng(2)
    for scene, _ in zip(*corpus(200, CLEAN), strict=True):
        turns = captions.vqa_turns(scene, rng, noise=0.0)
        assert [turn.kind for turn in turns].count("is") == 3 and len(turns) == captions.QUESTIONS_PER_IMAGE
        assert len({turn.question for turn in turns}) == captions.QUESTIONS_PER_IMAGE
        for turn in turns:
            group = scene.by_name.get(turn.question.split()[-1])
            if turn.kind == "is":
                assert turn.answer == ("yes" if group else "no")
            else:
                assert group is not None
                truth = {
                    "count": ("one", "two", "three")[group.number - 1],
                    "color": group.color,
                    "where": group.position,
                }
                assert turn.answer == truth[turn.kind]


def test_presence_answers_are_wrong_about_as_often_as_asked_and_questions_are_balanced():
    rng = np.random.default_rng(5)
    wrong, there = [], []
    for scene, _ in zip(*corpus(1500, CLEAN), strict=True):
        for turn in captions.vqa_turns(scene, rng, noise=0.3):
            if turn.kind == "is":
                there.append(turn.question.split()[-1] in scene.by_name)
                wrong.append((turn.answer == "yes") != there[-1])
    assert np.mean(wrong) == pytest.approx(0.3, abs=0.03)
    assert 0.35 < np.mean(there) < 0.65
