"""A few static lengths: the best ones, every row once an epoch, and the batch a function of its step."""

import dataclasses
import itertools

import numpy as np
import pytest
from absl import flags

from rlhfv_jax.data import buckets, encoding, images, pipeline
from rlhfv_jax.data.chat import MUFFIN
from rlhfv_jax.errors import UserError

BATCH, SEED = 4, 3


@pytest.fixture(scope="module")
def pairs(coco_records, tokenizer) -> list[encoding.EncodedPair]:
    return encoding.encode_pairs(coco_records[::3], tokenizer, MUFFIN, 4, gamma=5.0)[0]


@pytest.fixture(scope="module")
def source(pairs, tokenizer) -> pipeline.PairSource:
    longest = buckets.rounded(max(pair.longest for pair in pairs))
    return pipeline.PairSource(pairs, 8, tokenizer.pad_id, longest)


@pytest.fixture(scope="module")
def bounds(source) -> list[int]:
    return buckets.choose(source.lengths, 3)


@pytest.fixture(scope="module")
def parsed_flags():
    """grain's worker processes read absl flags, which programs have parsed."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["tests"], known_only=True)


def take(number: int, source, bounds, **options) -> list:
    batches = pipeline.train_batches(source, BATCH, SEED, bounds=bounds, **options)
    return [next(batches) for _ in range(number)]


def same(left, right) -> None:
    for name, a, b in zip(left._fields, left, right, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def padded(lengths, bounds) -> int:
    return sum(min(bound for bound in bounds if bound >= length) for length in lengths)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 50])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_lengths_pad_less(seed, count):
    lengths = np.random.default_rng(seed).integers(1, 70, 25).tolist()
    tops = sorted({buckets.rounded(length) for length in lengths})
    chosen = buckets.choose(lengths, count)
    assert chosen == sorted(set(chosen)) and len(chosen) <= count and chosen[-1] == tops[-1]
    every = itertools.chain.from_iterable(
        itertools.combinations(tops[:-1], size) for size in range(min(count, len(tops)))
    )
    assert padded(lengths, chosen) == min(padded(lengths, [*other, tops[-1]]) for other in every)


def test_lengths_round_up_to_a_multiple_of_eight():
    assert [buckets.rounded(length) for length in (1, 8, 9, 2048)] == [8, 8, 16, 2048]


def test_every_row_comes_once_an_epoch_in_a_batch_it_fits(source, bounds):
    plan = buckets.Plan(source.lengths, bounds, BATCH, SEED)
    rows = []
    for step in range(4 * len(source) // BATCH):
        members, length = plan.batch(step)
        assert len(members) == BATCH and length in bounds
        assert max(source.lengths[row] for row in members) <= length
        rows += members.tolist()
    counts = np.bincount(rows, minlength=len(source))
    assert counts.max() - counts.min() <= 1 and counts.sum() == len(rows)


def test_epochs_differ_and_short_and_long_batches_mix(source, bounds):
    plan = buckets.Plan(source.lengths, bounds, BATCH, SEED)
    steps = len(source) // BATCH
    lengths = [plan.batch(step)[1] for step in range(2 * steps)]
    assert lengths[:steps] != lengths[steps:] and sorted(lengths[:steps]) != lengths[:steps]
    assert [plan.batch(step)[0].tolist() for step in range(steps)] != [
        plan.batch(step + steps)[0].tolist() for step in range(steps)
    ]


def test_a_bucketed_batch_is_its_rows_with_less_padding(source, bounds):
    seen = set()
    for batch in take(10, source, bounds):
        t = batch.tokens.shape[-1]
        seen.add(t)
        for i, row in enumerate(batch.row.tolist()):
            whole = source[row]
            np.testing.assert_array_equal(batch.image[i], whole.image)
            np.testing.assert_array_equal(batch.lengths[i], whole.lengths)
            for name in ("tokens", "labels", "weights", "ref_logps"):
                cut = getattr(whole, name)[..., : t if name == "tokens" else t - 1]
                np.testing.assert_array_equal(getattr(batch, name)[i], cut)
    assert len(seen) > 1 and seen <= set(bounds)


def test_reference_log_probs_follow_their_row_into_every_bucket(pairs, source, bounds, tokenizer):
    logps = np.random.default_rng(0).normal(size=(len(pairs), 2, bounds[-1] - 1)).astype(np.float32)
    with_logps = pipeline.PairSource(pairs, 8, tokenizer.pad_id, bounds[-1], logps)
    for batch in take(6, with_logps, bounds):
        np.testing.assert_array_equal(batch.ref_logps, logps[batch.row, :, : batch.ref_logps.shape[-1]])


@pytest.mark.parametrize("start", [1, 9, 30])
@pytest.mark.parametrize("augment", ["none", "untrustworthy"])
def test_resuming_needs_the_step_alone(source, bounds, start, augment):
    options = {"augment": images.AUGMENTATIONS[augment]}
    whole = take(start + 3, source, bounds, **options)
    for left, right in zip(take(3, source, bounds, start=start, **options), whole[start:], strict=True):
        same(left, right)


def test_processes_share_the_global_batch(source, bounds):
    whole = take(6, source, bounds)
    shares = [take(6, source, bounds, shares=pipeline.Shares((i,), 2)) for i in range(2)]
    for step, batch in enumerate(whole):
        np.testing.assert_array_equal(batch.row, np.concatenate([share[step].row for share in shares]))
        assert shares[0][step].tokens.shape == shares[1][step].tokens.shape


@pytest.mark.parametrize("static", [1, 3])
def test_worker_processes_give_the_same_batches(parsed_flags, source, bounds, static):
    options = {"augment": images.AUGMENTATIONS["untrustworthy"], "start": 2}
    chosen = bounds if static > 1 else bounds[-1:]
    for left, right in zip(
        take(4, source, chosen, **options), take(4, source, chosen, workers=2, **options), strict=True
    ):
        same(left, right)


def test_an_unreadable_image_in_a_worker_is_the_users_error(parsed_flags, pairs, tokenizer):
    broken = dataclasses.replace(pairs[0], record=dataclasses.replace(pairs[0].record, image=b"no image"))
    source = pipeline.PairSource([broken], 8, tokenizer.pad_id, 400)
    with pytest.raises(UserError, match=r"pairs\.jsonl, row 0, image: not a readable image"):
        take(1, source, [], workers=1)
