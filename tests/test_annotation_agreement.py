"""Agreement against other programs, textbooks, brute force and simulation."""

import itertools
import random
import re

import krippendorff
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

pytest.importorskip("regex")
from annotation_world import RESPONSE

from rlhfv_jax.annotation import agreement, agreement_report, diff, overlaps, project
from rlhfv_jax.annotation.agreement import Table
from rlhfv_jax.annotation.checks import Typed
from rlhfv_jax.annotation.collected import Finished, Outcome, outcome
from rlhfv_jax.annotation.diff import Change


def counted(ratings: np.ndarray, size: int) -> np.ndarray:
    """Counts [units, values] of ratings [raters, units], NaN for none."""
    return np.stack([(ratings == value).sum(0) for value in range(size)], 1)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_alpha_is_that_of_krippendorffs_package_on_random_tables_with_missing_data():
    rng = np.random.default_rng(0)
    undefined = 0
    for _ in range(300):
        raters, units, size = rng.integers(2, 6), rng.integers(1, 30), rng.integers(1, 8)
        ratings = rng.integers(0, size, (raters, units)).astype(float)
        ratings[rng.random((raters, units)) < rng.choice([0.0, 0.3, 0.7])] = np.nan
        counts = counted(ratings, size)
        paired = counts[counts.sum(1) >= 2]
        ours = agreement.alpha(counts)
        if not len(paired) or (paired.sum(0) > 0).sum() < 2:  # the package raises, or gives NaN
            assert ours is None
            undefined += 1
            continue
        assert ours == pytest.approx(krippendorff.alpha(ratings, level_of_measurement="nominal"), abs=1e-12)
    assert 20 < undefined < 150


@pytest.mark.filterwarnings("ignore")
def test_kappa_is_that_of_scikit_learn_on_random_tables():
    rng = np.random.default_rng(1)
    for _ in range(100):
        units, size = rng.integers(1, 40), rng.integers(1, 7)
        first, second = rng.integers(0, size, (2, units))
        second = np.where(rng.random(units) < 0.4, first, second)
        theirs = cohen_kappa_score(first, second)
        ours = agreement.kappa(first, second)
        assert ours is None if np.isnan(theirs) else ours == pytest.approx(theirs, abs=1e-12)


def test_textbook_values():
    data = """1 2 3 3 2 1 4 1 2 * * *
              1 2 3 3 2 2 4 1 2 5 * 3
              * 3 3 3 2 3 4 2 2 5 1 *
              1 2 3 3 2 4 4 1 2 5 1 *"""  # Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C
    ratings = np.asarray([[np.nan if v == "*" else float(v) for v in line.split()] for line in data.splitlines()])
    assert agreement.alpha(counted(ratings, 6)) == pytest.approx(0.743, abs=5e-4)
    pairs = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15  # two readers of 50 grant proposals
    assert agreement.kappa(*zip(*pairs, strict=True)) == pytest.approx(0.4)


def test_where_nobody_varies_a_measure_is_undefined_and_says_so():
    assert agreement.alpha(np.asarray([[2, 0], [2, 0], [3, 0]])) is None
    assert agreement.kappa([0, 0], [0, 0]) is None
    terms = agreement.alpha_terms(np.tile([[2, 0]], (9, 1)))
    figures = agreement.figures(
        {
            "same": Table(terms, agreement.alphas, 9, "items"),
            "none": Table(np.zeros((9, 2)), agreement.ratios, 0, "segments"),
        }
    )
    assert agreement.spelled(figures["same"]) == "undefined (no variation)"
    assert agreement.spelled(figures["none"]) == "undefined (nothing to compare)"
    assert (figures["same"].value, figures["same"].low) == (None, None)


def covered(draw, truth: float, measure, trials: int = 120) -> int:
    """In how many of so many simulated projects the interval holds the truth."""
    hits = 0
    for trial in range(trials):
        (figure,) = agreement.figures({"": Table(draw(np.random.default_rng(trial)), measure, 1, "")}, trial).values()
        hits += figure.low <= truth <= figure.high
    return hits


def test_intervals_hold_the_truth_in_95_of_100_simulated_projects():
    """120 projects of 120 items: from 104 to 119 hits are 99 % of the cases (binomial) where the coverage lies between
    0.935 and 0.955, as that of percentile intervals does at this size. Words of an item go together, as in answers."""

    def twice(rng, items=120):  # both raters see the truth with an error of 15 %
        truth = rng.random(items) < 0.4
        return [np.where(rng.random(items) < 0.15, ~truth, truth).astype(int) for _ in range(2)]

    def kappa_terms(rng):
        return agreement.confusion(*twice(rng), 2)

    def alpha_terms(rng, items=120):  # ten words of each item, marked with a chance that belongs to the item
        chance = rng.beta(1, 4, (items, 1))
        truth = rng.random((items, 10)) < chance
        seen = [np.where(rng.random((items, 10)) < 0.1, ~truth, truth) for _ in range(2)]
        ones = np.stack(seen).sum(0).reshape(-1)
        return agreement.alpha_terms(np.stack([2 - ones, ones], 1)).reshape(items, 10, 3).sum(1)

    marked = 0.4 * 0.85 + 0.6 * 0.15
    same, chance = 0.85**2 + 0.15**2, marked**2 + (1 - marked) ** 2
    low, high = 104, 119
    assert low <= covered(kappa_terms, (same - chance) / (1 - chance), agreement.kappas) <= high
    marked = 0.2 * 0.9 + 0.8 * 0.1
    same, chance = 0.9**2 + 0.1**2, marked**2 + (1 - marked) ** 2
    assert low <= covered(alpha_terms, (same - chance) / (1 - chance), agreement.alphas) <= high


def test_segments_are_matched_as_brute_force_would():
    rng = random.Random(0)

    def some() -> list[tuple[int, int]]:
        ends = sorted(rng.sample(range(12), 2 * rng.randint(0, 3)))
        return list(zip(ends[::2], ends[1::2], strict=True))

    def both(a: tuple[int, int], b: tuple[int, int]) -> int:
        return min(a[1], b[1]) - max(a[0], b[0])

    for _ in range(300):
        left, right = some(), some()
        best = (0, 0)
        for n in range(min(len(left), len(right)) + 1):
            for a in itertools.permutations(range(len(left)), n):
                for b in itertools.combinations(range(len(right)), n):
                    shared = [both(left[i], right[j]) for i, j in zip(a, b, strict=True)]
                    if min(shared, default=1) > 0:
                        best = max(best, (n, sum(shared)))
        found = overlaps.matched(left, right)
        sizes = [both(left[i], right[j]) for i, j in found]
        assert (len(found), sum(sizes)) == best and min(sizes, default=1) > 0
        assert len(overlaps.matched(right, left)) == len(found)


def test_places_that_are_the_same_are_matched_without_a_look_at_words():
    rng = random.Random(0)
    for _ in range(300):
        sides = []
        for _ in range(2):
            ends = sorted(rng.choices(range(len(RESPONSE)), k=2 * rng.randint(0, 3)))
            sides.append([Change(a, b, 0, 0) for a, b in zip(ends[::2], ends[1::2], strict=True)])
        for left, right in (sides, sides[:1] * 2):
            marks = [overlaps.stretches(side, RESPONSE) for side in (left, right)]
            assert len(overlaps.pairs(left, right, RESPONSE)) == len(overlaps.matched(*marks))


def test_common_words_are_a_longest_common_subsequence():
    rng = random.Random(0)
    for _ in range(200):
        a, b = ([rng.choice("abcd") for _ in range(rng.randint(0, 30))] for _ in range(2))
        best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]  # of a[i:] and b[j:], the usual table
        for i, j in itertools.product(reversed(range(len(a))), reversed(range(len(b)))):
            best[i][j] = 1 + best[i + 1][j + 1] if a[i] == b[j] else max(best[i + 1][j], best[i][j + 1])
        assert overlaps.common_words(a, b) == best[0][0]
        rows = diff.common_rows(a, b)
        for i, j in itertools.product(range(len(a) + 1), range(len(b) + 1)):
            assert (rows[i] & (1 << len(b) - j) - 1).bit_count() == best[i][j]


def test_an_insertion_marks_the_word_before_it():
    text = "A bus, red."
    places = overlaps.stretches([Change(0, 0, 0, 1), Change(5, 5, 5, 9), Change(5, 6, 5, 5), Change(7, 10, 7, 7)], text)
    assert places == [(0, 1), (1, 2), (1, 2), (2, 3)]  # nothing stands before the first; a comma is no word


def annotated(item: int, annotator: int, marks: dict[str, str], **more) -> Finished:
    """A response whose words are taken out, with a type each; none: no hallucination."""
    segments = []
    for word, kind in marks.items():
        at = re.search(rf"\b{word}\b", RESPONSE).start()
        segments.append(Typed(Change(at, at + len(word), at, at), word, "", "delete", kind))
    segments.sort()
    values = {
        **{"item": item, "ext_id": str(item), "image_sha256": "0" * 64, "image_name": "", "prompt": "p"},
        **{"response": RESPONSE, "model": "m", "source": {}, "annotator": annotator, "rev": 1, "skip_reason": ""},
        **{"verdict": "corrected" if marks else "clean", "corrected": RESPONSE, "active_ms": 1, "opened": 0.0},
        **{"updated": 0.0, "segments": tuple(segments), "n_annotators": 2},
    }
    return Finished(**(values | more))


def made(*works: tuple[dict[str, str], dict[str, str]]) -> list[Outcome]:
    return [outcome(tuple(annotated(i, r + 1, w) for r, w in enumerate(of))) for i, of in enumerate(works)]


def test_the_report_is_counted_as_by_hand_and_by_krippendorffs_package():
    o, p, a, n = "objects", "positions", "attributes", "numbers"
    works = [
        ({"red": a}, {"red": a}),
        ({"red": a, "left": p}, {"red": o}),
        ({}, {}),
        ({"two": a}, {}),
        ({"two": n}, {"two": n}),
    ] * 2
    found = agreement_report.report(made(*works), project.new("correction"))
    lines = {(line["level"], line["measure"]): line for line in found["measures"]}
    assert (found["items"], found["annotators"], found["annotations"]) == (10, 2, 20)
    assert found["states"] == {"agreed": 6, "needs_adjudication": 4, "adjudicated": 0, "open": 0}
    says = [[int(bool(w)) for w in side] for side in zip(*works, strict=True)]
    level = "responses, clean or hallucinated"
    assert lines[level, "kappa"]["value"] == pytest.approx(cohen_kappa_score(*says))
    assert lines[level, "alpha"]["value"] == pytest.approx(krippendorff.alpha(says, level_of_measurement="nominal"))
    words = RESPONSE.rstrip(".").split()
    codes = [
        [[*"-", o, p, a, n].index(w.get(word, "-")) for w in side for word in words]
        for side in zip(*works, strict=True)
    ]
    for level, wanted in (("words, by type", codes), ("words, marked or not", np.minimum(codes, 1))):
        line = lines[level, "alpha"]
        assert line["value"] == pytest.approx(krippendorff.alpha(wanted, level_of_measurement="nominal"))
        assert line["n"] == 100 and line["low"] <= line["value"] <= line["high"]
    for name in ("exact F1", "overlap F1"):
        assert lines["segments", name]["value"] == pytest.approx(12 / 16) and lines["segments", name]["n"] == 16
    types = [[0, 0, 1] * 2, [0, 2, 1] * 2]
    assert lines["types of matched segments", "kappa"]["value"] == pytest.approx(cohen_kappa_score(*types))
    assert lines["responses with actions", "alpha"]["undefined"] == "no variation"
    assert "undefined (no variation)" in [value for _, _, value, _ in agreement_report.lines(found)]
    (pair,) = found["pairs"]
    assert (pair["annotators"], pair["items"], pair["same_verdict"]) == (["annotator-1", "annotator-2"], 10, 8)
    assert agreement_report.with_others(made(*works))[1] == {
        **{"comparisons": 10, "same_verdict": 0.8, "overlap_f1": pytest.approx(12 / 16)}
    }
    assert len(agreement_report.raw(made(*works)).splitlines()) == 1 + 2 * len(words) * len(works)


def test_of_three_people_alpha_counts_and_kappa_is_left_to_pairs():
    rows = [
        annotated(i, r, {"red": "objects"} if r < 3 or i % 2 else {}, n_annotators=3)
        for i in range(6)
        for r in (1, 2, 3)
    ]
    found = agreement_report.report(
        [outcome(tuple(rows[i : i + 3])) for i in range(0, 18, 3)], project.new("correction")
    )
    first, second = found["measures"][:2]
    ratings = [[int(row.verdict == "corrected") for row in rows[r::3]] for r in range(3)]
    assert first["value"] == pytest.approx(krippendorff.alpha(ratings, level_of_measurement="nominal"))
    assert (second["value"], second["undefined"]) == (None, agreement_report.TWO_ONLY) and len(found["pairs"]) == 3


@pytest.mark.parametrize(
    ("first", "second", "state", "why"),
    [
        ({"red": "attributes"}, {"red": "attributes"}, "agreed", ""),
        ({"red": "attributes"}, {"red": "objects"}, "needs_adjudication", "types"),
        ({"red": "attributes", "left": "positions"}, {"red": "attributes"}, "agreed", ""),  # F1 of 2/3
        (
            {"red": "attributes", "left": "positions", "two": "numbers", "men": "objects"},
            {"red": "attributes"},
            "needs_adjudication",
            "segments",
        ),
        ({"red": "attributes"}, {}, "needs_adjudication", "verdict"),
        ({}, {}, "agreed", ""),
    ],
)
def test_an_item_needs_adjudication_where_verdict_segments_or_types_differ(first, second, state, why):
    (found,) = made((first, second))
    assert (found.state, found.why) == (state, why)
    assert found.counts == (found.rows[0] if state == "agreed" else None)


def test_an_item_counts_once_everybody_asked_is_done():
    one = annotated(1, 1, {"red": "objects"})
    assert outcome((one,)).state == "open" and outcome((one._replace(n_annotators=1),)).state == "single"
    skipped = one._replace(verdict="skipped", annotator=2)
    assert outcome((one, skipped)).why == "verdict" and outcome((skipped, skipped)).state == "agreed"
