import re

import numpy as np
import pytest

from rlhfv_jax.miniature import captions, scoring, world
from rlhfv_jax.miniature.world import Group, Scene

SCENE = Scene(
    "street",
    (Group("car", 2, "red", 0), Group("person", 1, "blue", 10), Group("dog", 3, "white", 3)),
    0,
)


def words(errors):
    return [(error.claim.word, error.expected) for error in errors]


def test_a_true_caption_has_no_error_and_full_coverage():
    found = scoring.score(
        "this street has dog three white top-right , car two red top-left , person one blue bottom-right .", SCENE
    )
    assert found.errors == () and found.coverage == 1.0 and len(found.mentions) == 3


def test_each_kind_of_error_is_listed_with_its_span_and_what_was_expected():
    text = "this kitchen has car one blue bottom-left , bus two red top-left ."
    found = scoring.score(text, SCENE)
    assert words(found.objects) == [("bus", ("person", "dog"))]
    assert words(found.numbers) == [("one", ("two",))]
    assert words(found.colors) == [("blue", ("red",))]
    assert words(found.positions) == [("bottom-left", ("top-left",))]
    assert words(found.places) == [("kitchen", ("street",))]
    assert [text[e.claim.start : e.claim.end] for e in found.errors] == ["kitchen", "one", "blue", "bottom-left", "bus"]
    assert [e.claim.type for e in found.errors] == ["misc", "number", "attribute", "position", "object"]
    assert found.coverage == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "text", ["", " ", ".", ", , ,", "this", "this has has .", "two red , top-left .", "İ\x00 カー car2 ;", "a" * 99]
)
def test_any_text_can_be_scored_and_words_without_an_object_claim_nothing(text):
    found = scoring.score(text, SCENE)
    assert found.errors == () and found.covered == int("car" in text)


def test_spans_count_in_the_text_as_given_whatever_its_case_or_letters():
    text = "İİ This Street has CAR three Red top-left"
    (error,) = scoring.score(text, SCENE).errors
    assert text[error.claim.start : error.claim.end] == "three"


def test_missing_attributes_and_truncation_are_no_errors():
    for text in (
        "this street has car",
        "this street has car two",
        "this street has car red , person top-",
        "car , dog",
    ):
        assert scoring.score(text, SCENE).errors == ()


def test_every_attribute_word_of_a_mention_is_a_claim_of_its_own():
    assert words(scoring.score("car two three red blue top-left", SCENE).errors) == [
        ("three", ("two",)),
        ("blue", ("red",)),
    ]


def test_a_comma_ends_a_mention():
    assert scoring.score("car , three blue", SCENE).errors == ()
    assert len(scoring.score("car three blue", SCENE).errors) == 2


def test_a_repeat_is_a_mention_without_coverage_and_its_claims_are_checked():
    found = scoring.score("car two red top-left , car one red top-left .", SCENE)
    assert (found.repeats, found.covered, len(found.mentions)) == (1, 1, 2)
    assert words(found.errors) == [("one", ("two",))]


def test_a_repeated_hallucination_counts_as_two_mentions():
    found = scoring.score("bus one red top-left , bus one red top-left .", SCENE)
    assert len(found.objects) == 2 and found.repeats == 1 and found.covered == 0


def test_two_word_places_are_read_as_one():
    scene = Scene("living room", SCENE.groups, 0)
    assert scoring.score("this living room has car two", scene).errors == ()
    assert words(scoring.score("this living room has car", SCENE).errors) == [("living room", ("street",))]
    assert words(scoring.score("this street has car", scene).errors) == [("street", ("living room",))]


def test_four_of_six_groups_are_full_coverage():
    names = world.CLASSES[:6]
    scene = Scene("street", tuple(Group(name, 1, "red", cell) for cell, name in enumerate(names)), 0)
    assert scoring.score(" , ".join(names[:3]), scene).coverage == pytest.approx(0.75)
    assert scoring.score(" , ".join(names[:4]), scene).coverage == 1.0
    assert scoring.score(" , ".join(names), scene).coverage == 1.0


def corrupt(text, rng):
    """Damage a caption the ways a model does: another place; words dropped, repeated, swapped, cut off."""
    if rng.random() < 0.2:
        text = re.sub("^this .* has", f"this {world.KINDS[rng.integers(4)]} has", text)
    parts = text.split()
    for _ in range(rng.integers(0, 6)):
        at = int(rng.integers(len(parts)))
        how = rng.integers(4)
        if how == 0 and len(parts) > 1:
            del parts[at]
        elif how == 1:
            parts.insert(at, parts[at])
        elif how == 2:
            parts[at] = captions.WORDS[rng.integers(len(captions.WORDS))]
        else:
            parts = parts[: max(at, 1)]
    return " ".join(parts)


def regex_reading(text, scene):
    """Count errors with regular expressions on comma-separated pieces: nothing here is shared with the scorer."""
    nouns, numbers = "|".join(world.CLASSES), ["one", "two", "three"]
    truth = {g.name: (numbers[g.number - 1], g.color, g.position) for g in scene.groups}
    counts = {"objects": 0, "numbers": 0, "colors": 0, "positions": 0, "mentions": 0}
    seen = []
    for piece in re.split(r"[,.]", text):
        for noun, tail in re.findall(rf"\b({nouns})\b(.*?)(?=\b(?:{nouns})\b|$)", piece):
            counts["mentions"] += 1
            seen.append(noun)
            if noun not in truth:
                counts["objects"] += 1
                continue
            said = (
                re.findall(r"\b(?:one|two|three)\b", tail),
                re.findall(r"\b(?:red|green|blue|yellow|purple|white)\b", tail),
                re.findall(r"(?:top|bottom)-(?:left|right)", tail),
            )
            for kind, found, true in zip(("numbers", "colors", "positions"), said, truth[noun], strict=True):
                counts[kind] += sum(word != true for word in found)
    counts["covered"] = min(len(set(seen) & set(truth)), 4)
    places = re.findall(r"\bthis (street|kitchen|bathroom|living room)\b", text)
    counts["places"] = sum(place != scene.kind for place in places)
    return counts


def test_the_scorer_agrees_with_an_independent_regex_reading_of_corrupted_answers():
    rng = np.random.default_rng(11)
    totals = dict.fromkeys(("objects", "numbers", "colors", "positions", "places"), 0)
    for _ in range(400):
        scene = world.sample_scene(rng)
        text = corrupt(captions.caption(scene, rng, captions.NOISY), rng)
        found = scoring.score(text, scene)
        got = {name: len(getattr(found, name)) for name in totals} | {"mentions": len(found.mentions)}
        assert got | {"covered": found.covered} == regex_reading(text, scene), text
        for name in totals:
            totals[name] += got[name]
        for error in found.errors:
            assert text[error.claim.start : error.claim.end] == error.claim.word
    assert min(totals.values()) > 0 and totals["objects"] > 100
