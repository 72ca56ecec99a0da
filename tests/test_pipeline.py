"""From records to batches: credit, padding, order and resumption."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from rlhfv_jax.data import buckets, encoding, images, pipeline
from rlhfv_jax.data.chat import MUFFIN, encode_row
from rlhfv_jax.data.sources import PreferenceRecord, Segment
from rlhfv_jax.data.tokenizer import MuffinTokenizer
from rlhfv_jax.errors import UserError
from rlhfv_jax.structs import IGNORE

QUERIES, GAMMA, SIZE = 4, 5.0, 16


def encode(records, tokenizer, **kwargs):
    return encoding.encode_pairs(records, tokenizer, MUFFIN, QUERIES, **({"gamma": GAMMA} | kwargs))


@pytest.fixture(scope="module")
def llama(fixtures) -> MuffinTokenizer:
    return MuffinTokenizer.from_file(fixtures / "tiny-muffin/tokenizer.model")


@pytest.fixture(scope="module")
def pairs(coco_records, tokenizer):
    return encode(coco_records, tokenizer)[0]


def source_of(pairs, tokenizer, length=0, **kwargs) -> pipeline.PairSource:
    longest = max(len(row.tokens) for pair in pairs for row in pair.rows)
    return pipeline.PairSource(pairs, SIZE, tokenizer.pad_id, length or buckets.rounded(longest), **kwargs)


@pytest.fixture(scope="module")
def source(pairs, tokenizer) -> pipeline.PairSource:
    """13 pairs, so that nothing divides evenly."""
    return source_of(pairs[::10], tokenizer)


def take(iterator, number: int) -> list:
    return [next(iterator) for _ in range(number)]


def same(left, right) -> None:
    for name, a, b in zip(left._fields, left, right, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


# Rows, targets and credit.


def test_every_pair_is_its_two_rows(coco_records, pairs, tokenizer):
    assert [pair.record.id for pair in pairs] == [record.id for record in coco_records]
    for pair in pairs:
        for row, answer in zip(pair.rows, (pair.record.chosen, pair.record.rejected), strict=True):
            expected = encode_row(tokenizer, MUFFIN, pair.record.question, answer, QUERIES)
            np.testing.assert_array_equal(row.tokens, expected.tokens)
            np.testing.assert_array_equal(row.labels, expected.labels)


def test_credit_is_zero_one_or_gamma_and_nonzero_on_every_target(pairs):
    for pair in pairs:
        for row, weights in zip(pair.rows, pair.weights, strict=True):
            assert weights.dtype == np.float32 and weights.shape == row.labels.shape
            np.testing.assert_array_equal(weights > 0, row.labels != IGNORE)
            assert set(weights.tolist()) <= {0.0, 1.0, GAMMA}


def edit(left: str, right: str) -> tuple[list[str], list[str]]:
    """What is left of both texts, in words, without the words they begin and end with."""
    a, b = left.split(), right.split()
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return a, b


def test_gamma_stands_exactly_on_the_words_that_differ(coco_records, llama):
    """An oracle without alignment: words that both answers begin and end with, and no token shared between the rest."""
    found = 0
    for pair in encode(coco_records, llama)[0]:
        middles = edit(pair.record.chosen, pair.record.rejected)
        marked, plain = [], []
        for row, weights in zip(pair.rows, pair.weights, strict=True):
            pieces = [llama.piece(token) for token in row.tokens[row.answer].tolist()]
            credit = weights[row.answer.start - 1 : row.answer.stop - 1]
            marked.append("".join(p for p, w in zip(pieces, credit, strict=True) if w == GAMMA).split("▁"))
            plain.append([p for p, w in zip(pieces, credit, strict=True) if w == 1])
            assert (weights[row.answer.stop - 1 :] <= 1).all(), "the end of turn is never corrected"
        tokens = [{t for word in middle for t in llama.encode(word)[1:]} for middle in middles]
        if tokens[0] & tokens[1]:
            continue
        found += 1
        assert [[word for word in side if word] for side in marked] == [list(middle) for middle in middles]
        assert plain[0] == plain[1]
    assert found > 60


def test_pairs_with_insertions_and_deletions_only_have_credit_on_one_side(coco_records, llama):
    one_sided = [record for record in coco_records if [] in edit(record.chosen, record.rejected)]
    assert len(one_sided) > 10
    for pair in encode(one_sided, llama)[0]:
        longer = int(len(pair.record.rejected) > len(pair.record.chosen))
        assert (pair.weights[longer] == GAMMA).any() and not (pair.weights[1 - longer] == GAMMA).any()


def test_corrections_equal_the_references_difference_without_its_thresholds(fixtures, llama):
    """ddpo.json lists every gap that difflib leaves, with autojunk off where that changes nothing."""
    pairs = json.loads((fixtures / "ddpo.json").read_text())["pairs"]
    rows = [p for p in pairs if p["without_autojunk_same"] and p["kind"] not in ("identical", "completely_different")]
    assert len(rows) >= 7
    for i, golden in enumerate(rows):
        record = dataclasses.replace(RECORD, id=str(i), **{k: golden[k] for k in ("question", "chosen", "rejected")})
        (pair,), _ = encoding.encode_pairs([record], llama, MUFFIN, 8, gamma=GAMMA)
        for weights, name in zip(pair.weights, ("win", "rej"), strict=True):
            gaps = {i for start, stop in golden[f"all_gap_spans_{name}"] for i in range(start, stop)}
            marked = set(np.flatnonzero(weights == GAMMA).tolist())
            # The reference drops blocks of fewer than three tokens, so it may mark a few tokens more.
            assert marked <= gaps and len(gaps - marked) <= 4, golden["kind"]
            assert bool(marked) == bool(gaps)


RECORD = PreferenceRecord("0", b"", "", "", "")


def test_the_annotators_segments_win_over_the_difference(coco_records, llama):
    record = dataclasses.replace(
        coco_records[0],
        chosen="A red bus and a dog.",
        rejected="A blue bus and a cat.",
        segments=((Segment(2, 5),), ()),
    )

    def corrected(spans: str) -> list[str]:
        (pair,), _ = encode([record], llama, spans=spans)
        sides = zip(pair.rows, pair.weights, strict=True)
        return [llama.decode(row.tokens[1:][weights == GAMMA].tolist()) for row, weights in sides]

    assert corrected("auto") == ["red", ""]
    assert corrected("diff") == ["red dog", "blue cat"]


def test_a_segment_with_the_space_after_a_word_marks_that_word_only(coco_records, llama):
    """Double clicks select the space that follows; the next word's token begins with it."""
    record = dataclasses.replace(
        coco_records[0], chosen="A red bus.", rejected="A blue bus.", segments=((Segment(2, 6),), (Segment(2, 7),))
    )
    (pair,), _ = encode([record], llama)
    marked = [r.tokens[1:][w == GAMMA].tolist() for r, w in zip(pair.rows, pair.weights, strict=True)]
    assert [llama.decode(tokens) for tokens in marked] == ["red", "blue"]


def test_gamma_one_weighs_every_target_alike(coco_records, tokenizer):
    pairs, stats = encode(coco_records[:10], tokenizer, gamma=1.0)
    assert all(set(weights.tolist()) == {0.0, 1.0} for pair in pairs for weights in pair.weights)
    assert stats.without_corrected_tokens == 0


def test_pairs_without_a_corrected_token_are_counted(coco_records, tokenizer):
    empty = [dataclasses.replace(record, segments=((), ())) for record in coco_records[:3]]
    _, stats = encode([*empty, *coco_records[3:10]], tokenizer)
    assert (stats.pairs, stats.without_corrected_tokens) == (10, 3)


def test_a_long_pair_is_an_error_or_counted(coco_records, tokenizer):
    lengths = [max(len(row.tokens) for row in pair.rows) for pair in encode(coco_records, tokenizer)[0]]
    limit = sorted(lengths)[60]
    with pytest.raises(UserError) as caught:
        encode(coco_records, tokenizer, max_length=limit)
    first = next(i for i, length in enumerate(lengths) if length > limit)
    assert f"row {first}: the pair takes {lengths[first]} tokens" in str(caught.value)
    assert f"data.max_length is {limit}" in str(caught.value)

    kept, stats = encode(coco_records, tokenizer, max_length=limit, too_long="drop")
    fitting = [record.id for record, length in zip(coco_records, lengths, strict=True) if length <= limit]
    assert [pair.record.id for pair in kept] == fitting
    assert (stats.pairs, stats.too_long, stats.longest_row) == (len(fitting), 130 - len(fitting), limit)
    with pytest.raises(UserError, match="All 130 pairs are longer"):
        encode(coco_records, tokenizer, max_length=10, too_long="drop")


@pytest.mark.parametrize("field", ["question", "chosen", "rejected"])
def test_a_reserved_token_names_row_and_field(coco_records, tokenizer, field):
    record = dataclasses.replace(coco_records[7], **{field: "a <im_patch> b"})
    with pytest.raises(UserError, match=rf"pairs\.jsonl, row 7, {field}: .*<im_patch>"):
        encode([record], tokenizer)


# Padding.


def test_a_padded_pair_is_the_unpadded_one_and_padding(pairs, tokenizer):
    source = source_of(pairs[:20], tokenizer)
    for index, pair in enumerate(pairs[:20]):
        item = source[index]
        assert item.row == index and item.valid
        np.testing.assert_array_equal(item.image, images.decode(pair.record.image, SIZE))
        for side, (row, weights) in enumerate(zip(pair.rows, pair.weights, strict=True)):
            t = len(row.tokens)
            assert item.lengths[side] == t
            np.testing.assert_array_equal(item.tokens[side, :t], row.tokens)
            np.testing.assert_array_equal(item.labels[side, : t - 1], row.labels)
            np.testing.assert_array_equal(item.weights[side, : t - 1], weights)
            assert (item.tokens[side, t:] == tokenizer.pad_id).all()
            assert (item.labels[side, t - 1 :] == IGNORE).all() and (item.weights[side, t - 1 :] == 0).all()


def test_longer_padding_does_not_change_the_real_part(pairs, tokenizer):
    short, long = (source_of(pairs[:10], tokenizer, length) for length in (256, 320))
    for index in range(10):
        a, b = short[index], long[index]
        assert (a.tokens.shape, b.tokens.shape, b.labels.shape) == ((2, 256), (2, 320), (2, 319))
        np.testing.assert_array_equal(b.tokens[:, :256], a.tokens)
        for name in ("labels", "weights", "ref_logps"):
            np.testing.assert_array_equal(getattr(b, name)[:, :255], getattr(a, name))
        for name in ("image", "lengths", "row", "valid"):
            np.testing.assert_array_equal(getattr(b, name), getattr(a, name))


def test_reference_log_probs_follow_their_row(pairs, tokenizer):
    logps = np.random.default_rng(0).normal(size=(13, 2, 255)).astype(np.float32)
    source = source_of(pairs[::10], tokenizer, 256, ref_logps=logps)
    for batch in take(pipeline.train_batches(source, 5, seed=1), 6):
        np.testing.assert_array_equal(batch.ref_logps, logps[batch.row])


def test_lengths_round_up_to_the_next_multiple():
    step = buckets.rounded(1)
    assert step % 8 == 0
    for length in (1, step - 1, step, step + 1, 2048):
        assert buckets.rounded(length) % step == 0 and 0 <= buckets.rounded(length) - length < step


def test_supervised_examples_are_the_chosen_answers(pairs, source, tokenizer):
    chosen = encoding.chosen_examples(pairs[::10])
    examples = pipeline.ExampleSource(chosen, SIZE, tokenizer.pad_id, source[0].tokens.shape[1])
    assert len(examples) == 13
    for index in range(3):
        pair, example = source[index], examples[index]
        np.testing.assert_array_equal(example.image, pair.image)
        np.testing.assert_array_equal(example.tokens, pair.tokens[:1])
        np.testing.assert_array_equal(example.labels, pair.labels[:1])
        np.testing.assert_array_equal(example.weights, pair.labels[:1] != IGNORE)
        np.testing.assert_array_equal(example.lengths, pair.lengths[:1])


# Order.


def test_batches_are_stacked_rows_of_the_source(source):
    for batch in take(pipeline.train_batches(source, 4, seed=0), 4):
        assert batch.tokens.shape[:2] == (4, 2) and batch.image.shape == (4, SIZE, SIZE, 3) and batch.valid.all()
        assert batch.image.dtype == np.uint8 and batch.tokens.dtype == np.int32 and batch.weights.dtype == np.float32
        for i, row in enumerate(batch.row):
            same(type(batch)(*(field[i] for field in batch)), source[row])


@pytest.mark.parametrize("start", [1, 3, 4, 9])
def test_a_batch_depends_on_its_step_alone(source, start):
    whole = take(pipeline.train_batches(source, 4, seed=3), 14)
    for left, right in zip(
        take(pipeline.train_batches(source, 4, seed=3, start=start), 5), whole[start:], strict=False
    ):
        same(left, right)


@pytest.mark.parametrize("augment", [None, images.AUGMENTATIONS["crop"]])
@pytest.mark.parametrize("processes", [2, 4])
def test_the_batch_at_a_step_is_identical_for_any_number_of_processes(source, processes, augment):
    """Rows, order and pixels: what the processes make, put together by place, is what one process makes."""
    whole = take(pipeline.train_batches(source, 4, seed=3, start=2, augment=augment), 9)
    shares = [
        take(pipeline.train_batches(source, 4, seed=3, start=2, augment=augment, shares=part), 9)
        for part in (pipeline.Shares((i,), processes) for i in range(processes))
    ]
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        assert {len(part.row) for part in parts} == {4 // processes}
        same(batch, type(batch)(*(np.concatenate(field) for field in zip(*parts, strict=True))))


def test_processes_share_every_row_of_an_evaluation_once(source):
    whole = list(pipeline.ordered_batches(source, 4))
    parts = [list(pipeline.ordered_batches(source, 4, shares=pipeline.Shares(mine, 4))) for mine in ((0, 2), (1, 3))]
    for batch, even, odd in zip(whole, *parts, strict=True):
        for name, value in batch._asdict().items():
            np.testing.assert_array_equal(value[0::2], getattr(even, name), err_msg=name)
            np.testing.assert_array_equal(value[1::2], getattr(odd, name), err_msg=name)


def test_every_epoch_covers_every_row_once_in_another_order(source):
    stream = [row for batch in take(pipeline.train_batches(source, 4, seed=0), 13) for row in batch.row.tolist()]
    epochs = [stream[i : i + 13] for i in range(0, 52, 13)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(13))] * 4
    assert len({tuple(epoch) for epoch in epochs}) == 4
    other = [row for batch in take(pipeline.train_batches(source, 4, seed=1), 13) for row in batch.row.tolist()]
    assert other != stream


def test_augmentation_changes_pixels_alone_and_draws_anew_every_epoch(pairs, tokenizer):
    source = source_of(pairs[:6], tokenizer)
    plain = take(pipeline.train_batches(source, 3, seed=5), 20)
    cropped = take(pipeline.train_batches(source, 3, seed=5, augment=images.AUGMENTATIONS["crop"]), 20)
    for one, other in zip(plain, cropped, strict=True):
        np.testing.assert_array_equal(one.row, other.row)
        np.testing.assert_array_equal(one.tokens, other.tokens)
    looks: dict[int, set[bytes]] = {}
    for batch in cropped:
        for row, image in zip(batch.row.tolist(), batch.image, strict=True):
            looks.setdefault(row, set()).add(image.tobytes())
    assert all(len(seen) > 1 for seen in looks.values())
    resumed = next(pipeline.train_batches(source, 3, seed=5, start=11, augment=images.AUGMENTATIONS["crop"]))
    np.testing.assert_array_equal(resumed.image, cropped[11].image)


def mirrored(source: pipeline.PairSource, row: int) -> float:
    """Share of 40 views of the row that are mirrored; its image is dark at the left and bright at the right."""
    augment = images.AUGMENTATIONS["untrustworthy"]
    views = [source.draw(row, augment, np.random.default_rng(seed)).image.astype(float) for seed in range(40)]
    return float(np.mean([view[:, :4].mean() > view[:, -4:].mean() for view in views]))


def test_a_row_that_says_left_or_right_is_not_mirrored_unless_forced(coco_records, tokenizer, monkeypatch):
    monkeypatch.setattr(images, "RAND_AUGMENT", (lambda picture, rng: picture,))
    stream = io.BytesIO()
    Image.fromarray(np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))).save(stream, "PNG")
    plain = dataclasses.replace(coco_records[0], image=stream.getvalue())
    rows = [
        dataclasses.replace(plain, question="What is it?", chosen="A cup.", rejected="A mug."),
        dataclasses.replace(plain, question="What is on the left?", chosen="A cup.", rejected="A mug."),
        dataclasses.replace(plain, question="What is it?", chosen="A cup.", rejected="A cup at the right."),
    ]
    pairs = encode(rows, tokenizer)[0]
    safe, forced = source_of(pairs, tokenizer), source_of(pairs, tokenizer, flip_any=True)
    assert 0.3 < mirrored(safe, 0) < 0.7
    assert mirrored(safe, 1) == mirrored(safe, 2) == 0
    assert all(0.3 < mirrored(forced, row) < 0.7 for row in range(3))


def test_the_references_random_view_is_drawn_from_the_seed_and_the_row(source):
    augment = images.AUGMENTATIONS["untrustworthy"]
    first, again, other = (
        np.concatenate([batch.image for batch in pipeline.ordered_batches(source, size, augment, seed)])[:13]
        for size, seed in ((4, 1), (13, 1), (4, 2))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], source[0].image)


def test_a_batch_may_be_larger_than_the_source(source):
    rows = next(pipeline.train_batches(source, 30, seed=0)).row.tolist()
    assert [sorted(rows[:13]), sorted(rows[13:26])] == [list(range(13))] * 2


@pytest.mark.parametrize(("batch_size", "fillers"), [(1, 0), (4, 3), (13, 0), (16, 3)])
def test_ordered_batches_hold_every_row_once(source, batch_size, fillers):
    batches = list(pipeline.ordered_batches(source, batch_size))
    assert all(batch.tokens.shape[0] == batch_size for batch in batches)
    rows, valid = (np.concatenate([getattr(batch, name) for batch in batches]) for name in ("row", "valid"))
    np.testing.assert_array_equal(rows[valid], np.arange(13))
    assert valid.tolist() == [True] * 13 + [False] * fillers


# Bad images.


@pytest.fixture(scope="module")
def damaged(coco_records, tokenizer) -> pipeline.PairSource:
    records = list(coco_records[:8])
    records[5] = dataclasses.replace(records[5], image=records[5].image[:300])
    return source_of(encode(records, tokenizer)[0], tokenizer)


def test_an_unreadable_image_names_row_and_field(damaged):
    with pytest.raises(UserError, match=r"pairs\.jsonl, row 5, image: not a readable image"):
        damaged[5]


def test_an_unreadable_image_stops_training_with_the_users_error(damaged):
    """The error crosses grain's prefetch thread unchanged."""
    with pytest.raises(UserError, match=r"pairs\.jsonl, row 5, image: not a readable image"):
        take(pipeline.train_batches(damaged, 2, seed=0), 4)


def test_an_unreadable_image_stops_ordered_batches(damaged):
    with pytest.raises(UserError, match="row 5, image"):
        list(pipeline.ordered_batches(damaged, 4))
