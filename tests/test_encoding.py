"""Credit: gamma exactly on what was corrected, whatever the unit, and nothing cut that must stay."""

import dataclasses
import gzip
import json
import re

import numpy as np
import pytest
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhfv_jax.data import encoding, images, pipeline, segments
from rlhfv_jax.data.chat import MUFFIN, encode_row
from rlhfv_jax.data.records import PreferenceRecord, Segment
from rlhfv_jax.data.segments import Diff
from rlhfv_jax.data.tokenizer import ADDED, CONTROL, MuffinTokenizer
from rlhfv_jax.errors import UserError
from rlhfv_jax.structs import IGNORE

GAMMA, QUERIES = 5.0, 4
BLANK = PreferenceRecord("0", b"", "What is it?", "", "", where="pairs.jsonl, row 0")
# Ordinary words, none of which shares a token with another one.
SAME = ("the", "man", "in", "a", "with", "and", "his", "table", "city", "small")
OLD = ("red", "dog", "two", "left", "standing", "street")
NEW = ("blue", "cat", "three", "right", "sitting", "kitchen")

quick = settings(max_examples=150, deadline=None)


@pytest.fixture(scope="module")
def llama(fixtures) -> MuffinTokenizer:
    return MuffinTokenizer.from_file(fixtures / "tiny-muffin/tokenizer.model")


def encode(record: PreferenceRecord, tokenizer, **options) -> encoding.EncodedPair:
    return encoding.encode_pairs([record], tokenizer, MUFFIN, QUERIES, **({"gamma": GAMMA} | options))[0][0]


def pair_of(chosen: str, rejected: str, **fields) -> PreferenceRecord:
    return dataclasses.replace(BLANK, chosen=chosen, rejected=rejected, **fields)


def marked(pair: encoding.EncodedPair, side: int) -> list[bool]:
    """For each token of the answer, whether it weighs gamma."""
    answer = pair.rows[side].answer
    return (pair.weights[side][answer.start - 1 : answer.stop - 1] == GAMMA).tolist()


# Property tests: the paper's preset.


@st.composite
def edited(draw) -> tuple[str, str, list[tuple[int, int]], list[tuple[int, int]]]:
    """(chosen, rejected, changed characters of each): words kept, replaced, inserted and deleted, one blank apart.

    No two edits touch, so which words changed is beyond dispute.
    """
    texts: list[list[str]] = [[], []]
    spans: list[list[tuple[int, int]]] = [[], []]

    def add(side: int, word: str, changed: bool) -> None:
        start = len(" ".join(texts[side])) + bool(texts[side])
        texts[side].append(word)
        if changed:
            spans[side].append((start, start + len(word)))

    kept = draw(st.permutations(SAME))[: draw(st.integers(2, 8))]
    news, olds = iter(draw(st.permutations(NEW))), iter(draw(st.permutations(OLD)))
    for word in kept:
        for side in (0, 1):
            add(side, word, False)
        edit = draw(st.sampled_from(["none", "none", "replace", "insert", "delete"]))
        if edit in ("replace", "insert") and (new := next(news, None)):
            add(0, new, True)
        if edit in ("replace", "delete") and (old := next(olds, None)):
            add(1, old, True)
    chosen, rejected = (" ".join(words) for words in texts)
    return chosen, rejected, spans[0], spans[1]


def test_the_vocabulary_of_these_tests_shares_no_tokens(llama):
    pieces = [piece for word in (*SAME, *OLD, *NEW) for piece in llama.encode(word)[1:]]
    assert len(pieces) == len(set(pieces))


@quick
@given(edited())
def test_gamma_is_exactly_on_the_tokens_that_touch_a_changed_character(llama, case):
    chosen, rejected, *changed = case
    pair = encode(pair_of(chosen, rejected), llama)
    for side, (text, spans) in enumerate(zip((chosen, rejected), changed, strict=True)):
        row, weights = pair.rows[side], pair.weights[side]
        visible = [segments.trimmed(text, span) for span in row.spans]
        touches = [any(a < stop and start < b for start, stop in spans) for a, b in visible]
        assert marked(pair, side) == touches
        assert (weights > 0).tolist() == (row.labels != IGNORE).tolist()
        assert set(weights.tolist()) <= {0.0, 1.0, GAMMA}


ANY_TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40).filter(
    lambda text: text.strip() and not re.search("|".join(map(re.escape, (*ADDED, *CONTROL, "<image>"))), text)
)


@quick
@given(ANY_TEXT, ANY_TEXT, st.data())
def test_spans_from_the_sidecar_win_in_any_text(llama, chosen, rejected, data):
    """Whatever differs, gamma is on the tokens that share a visible character with the annotator's spans."""
    sides = []
    for text in (chosen, rejected):
        ends = st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).map(sorted)
        sides.append([tuple(span) for span in data.draw(st.lists(ends, max_size=3))])
    marks = tuple(tuple(Segment(a, b, "object") for a, b in side) for side in sides)
    pair = encode(pair_of(chosen, rejected, segments=marks), llama)
    for side, (text, spans) in enumerate(zip((chosen, rejected), sides, strict=True)):
        visible = [segments.trimmed(text, span) for span in spans]
        expected = [any(a < stop and start < b for start, stop in visible) for a, b in pair.rows[side].spans]
        assert marked(pair, side) == expected


@quick
@given(ANY_TEXT, ANY_TEXT)
def test_what_is_left_unmarked_is_the_same_on_both_sides_of_any_two_texts(llama, chosen, rejected):
    pair = encode(pair_of(chosen, rejected), llama)
    left = [
        [t for t, mark in zip(row.tokens[row.answer].tolist(), marked(pair, side), strict=True) if not mark]
        for side, row in enumerate(pair.rows)
    ]
    assert left[0] == left[1]


@settings(max_examples=15, deadline=None)
@given(st.lists(edited(), min_size=2, max_size=5), st.randoms(use_true_random=False), st.integers(0, 5))
def test_padding_order_and_bucket_change_nothing(llama, cases, random, longer):
    """A pair has the same numbers in any company, in any order, at any static length."""
    image = (shared("fixtures") / "images/img0_120x90_rgb.png").read_bytes()
    records = [pair_of(c, r + " .", id=str(i), image=image) for i, (c, r, _, _) in enumerate(cases)]
    alone = [encode(record, llama) for record in records]
    order = list(range(len(records)))
    random.shuffle(order)
    together, _ = encoding.encode_pairs([records[i] for i in order], llama, MUFFIN, QUERIES, gamma=GAMMA)
    length = max(pair.longest for pair in alone) + 8 * longer
    source = pipeline.PairSource(together, 8, llama.pad_id, length)
    for place, i in enumerate(order):
        item = source.item(place, length + 16)
        assert np.array_equal(item.image, images.decode(image, 8))
        for side, (row, weights) in enumerate(zip(alone[i].rows, alone[i].weights, strict=True)):
            t = len(row.tokens)
            assert item.tokens[side, :t].tolist() == row.tokens.tolist()
            assert item.labels[side, : t - 1].tolist() == row.labels.tolist()
            assert item.weights[side, : t - 1].tolist() == weights.tolist()
            assert not item.weights[side, t - 1 :].any() and (item.labels[side, t - 1 :] == IGNORE).all()


# Units.


@pytest.mark.parametrize(("name", "share"), [("relations", 0.999), ("action-replacement", 0.96)])
def test_word_spans_recover_the_words_that_valse_names(name, share):
    """Exactly the labelled words on both sides; the misses write a verb's other form into the label."""
    with gzip.open(shared(f"data/valse/{name}.json.gz")) as file:
        items = list(json.load(file).values())

    def words(text: str) -> list[str]:
        return [text[a:b].casefold() for a, b in segments.words(text)]

    right = 0
    for item in items:
        spans = segments.changed_words(item["foil"], item["caption"], Diff(unit="word"))
        texts, labels = (item["foil"], item["caption"]), (item["classes_foil"], item["classes"])
        found = [[word for a, b in side for word in words(text[a:b])] for text, side in zip(texts, spans, strict=True)]
        right += found == [words(label) for label in labels]
    assert right / len(items) >= share


def test_a_word_is_corrected_as_a_whole(tokenizer):
    """The 512-piece tokenizer splits every longer word, and these two begin alike."""
    pair = encode(pair_of("A standing man.", "A stranded man."), tokenizer, diff=Diff(unit="word"))
    for side, word in ((0, "standing"), (1, "stranded")):
        row = pair.rows[side]
        tokens = [t for t, mark in zip(row.tokens[row.answer].tolist(), marked(pair, side), strict=True) if mark]
        assert tokenizer.decode(tokens).strip() == word
    assert not all(marked(encode(pair_of("A standing man.", "A stranded man."), tokenizer), 0)[1:4])


def test_a_change_of_case_is_no_correction_of_a_word(llama):
    pair = encode(pair_of("The man.", "the woman."), llama, diff=Diff(unit="word"))
    row = pair.rows[0]
    assert [llama.piece(t) for t, m in zip(row.tokens[row.answer].tolist(), marked(pair, 0), strict=True) if m] == [
        "▁man"
    ]


def test_the_annotators_spans_as_unit_take_nothing_else(llama):
    record = pair_of("A red bus.", "A blue bus.", segments=((Segment(6, 9, "object"),), ()))
    pair = encode(record, llama, diff=Diff(unit="span"), spans="diff")
    assert (marked(pair, 0).count(True), marked(pair, 1).count(True)) == (1, 0)
    with pytest.raises(UserError, match=r"pairs\.jsonl, row 0: the record has no segments"):
        encode(dataclasses.replace(record, segments=None), llama, diff=Diff(unit="span"))


def test_hallucination_types_are_counted(llama):
    record = pair_of(
        "A red bus.", "A blue bus.", segments=((Segment(2, 5, "attribute"),), (Segment(2, 6, "attribute"),))
    )
    other = pair_of("Two.", "Six.", id="1", segments=((Segment(0, 3, "number"),), ()))
    _, stats = encoding.encode_pairs([record, other], llama, MUFFIN, QUERIES, gamma=GAMMA)
    assert stats.types == {"attribute": 2, "number": 1}


# Earlier turns and length.


def test_earlier_turns_are_context_and_never_targets(llama):
    history = (("What is it?", "A bus."), ("And behind it?", "A wall."))
    pair = encode(pair_of("It is red.", "It is blue.", question="Which color?", history=history), llama)
    for row, answer in zip(pair.rows, ("It is red.", "It is blue."), strict=True):
        assert llama.decode(row.labels[row.labels != IGNORE].tolist()).strip() == f"{answer}\n###"
        text = llama.decode(row.tokens.tolist())
        assert all(part in text for turn in history for part in turn)


def test_a_cut_answer_keeps_image_and_question_whole_and_is_counted(llama, tokenizer):
    record = pair_of("A red bus and a dog. " * 8, "A cat.")
    whole = [encode_row(llama, MUFFIN, record.question, text, QUERIES) for text in (record.chosen, record.rejected)]
    limit = whole[0].answer.start + 7
    pairs, stats = encoding.encode_pairs(
        [record], llama, MUFFIN, QUERIES, gamma=GAMMA, max_length=limit, too_long="truncate"
    )
    assert (stats.truncated, stats.too_long, stats.longest_row) == (1, 0, limit)
    for row, before in zip(pairs[0].rows, whole, strict=True):
        kept = min(limit, len(before.tokens))
        assert row.tokens.tolist() == before.tokens[:kept].tolist()
        assert row.labels.tolist() == before.labels[: kept - 1].tolist()
        assert (row.tokens == llama.image_token).sum() == QUERIES
    with pytest.raises(UserError, match=r"row 0: image and question alone take \d+ tokens.*they are never cut"):
        encode(record, llama, max_length=whole[0].answer.start, too_long="truncate")


def test_the_release_sees_its_cut_rows_only(llama):
    """Whole rows are compared after the cut, as the released collator does; edits beyond it do not exist."""
    record = pair_of("A red bus stands in the street there now", "A red bus stands in the street there today")
    row = encode_row(llama, MUFFIN, record.question, record.chosen, QUERIES)
    options = {"diff": Diff("replace", 3, "token", "row", True), "max_length": row.answer.start + 5}
    pair = encode(record, llama, too_long="truncate", **options)
    assert not any(marked(pair, 0)) and not any(marked(pair, 1))
