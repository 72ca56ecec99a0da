"""Cached log-probs belong to their pair, whatever the order, and to nothing else."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhfv_jax import refcache, sharding
from rlhfv_jax.data import buckets, encoding, pipeline
from rlhfv_jax.data.chat import MUFFIN
from rlhfv_jax.errors import UserError

KEY = refcache.key({"params": "abc", "dtype": "float32"})


@pytest.fixture(scope="module")
def pairs(coco_records, tokenizer) -> list[encoding.EncodedPair]:
    return encoding.encode_pairs(coco_records[::10], tokenizer, MUFFIN, 4, gamma=5.0)[0]


@pytest.fixture(scope="module")
def length(pairs) -> int:
    return buckets.rounded(max(len(row.tokens) for pair in pairs for row in pair.rows))


@pytest.fixture(scope="module")
def logps(pairs, length) -> np.ndarray:
    """A number of its own for every position, zero on padding."""
    values = -1 - np.arange(len(pairs) * 2 * (length - 1), dtype=np.float32).reshape(len(pairs), 2, length - 1) / 7
    for i, pair in enumerate(pairs):
        for side, row in enumerate(pair.rows):
            values[i, side, len(row.tokens) - 1 :] = 0
    return values


@pytest.fixture
def path(tmp_path, pairs, logps):
    refcache.save(tmp_path / "cache/reference.parquet", KEY, pairs, logps)
    return tmp_path / "cache/reference.parquet"


def test_values_return_bit_for_bit(path, pairs, length, logps):
    found = refcache.load(path, KEY, pairs, length)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, logps)
    assert [file.name for file in path.parent.iterdir()] == ["reference.parquet"]


def test_values_follow_their_pair_through_any_order(path, pairs, length, logps):
    order = np.random.default_rng(0).permutation(len(pairs))
    found = refcache.load(path, KEY, [pairs[i] for i in order], length)
    np.testing.assert_array_equal(found, logps[order])
    np.testing.assert_array_equal(refcache.load(path, KEY, pairs[3:5], length), logps[3:5])


def test_another_padding_keeps_the_values(path, pairs, length, logps):
    longer = refcache.load(path, KEY, pairs, length + 64)
    np.testing.assert_array_equal(longer[..., : length - 1], logps)
    assert (longer[..., length - 1 :] == 0).all()


def test_what_differs_is_named(path, pairs, length):
    row = pairs[0].rows[1]
    record = pairs[0].record
    changed = dataclasses.replace(row, tokens=np.where(np.arange(len(row.tokens)) == 3, 5, row.tokens))
    shorter = dataclasses.replace(row, tokens=row.tokens[:-1])
    for key, pair, sentence in (
        (refcache.key({"params": "abd"}), pairs[0], "was made for something else"),
        (KEY, dataclasses.replace(pairs[0], rows=(pairs[0].rows[0], changed)), "other rejected tokens for the pair 0"),
        (KEY, dataclasses.replace(pairs[0], rows=(shorter, row)), "other chosen tokens for the pair 0"),
        (KEY, dataclasses.replace(pairs[0], record=dataclasses.replace(record, id="new")), "no row for the pair new"),
    ):
        with pytest.raises(UserError, match=rf"reference\.parquet.*{sentence}"):
            refcache.load(path, key, [pair], length)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_a_damaged_file_is_refused(path, pairs, length, keep):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match=r"reference\.parquet cannot be read .*delete it"):
        refcache.load(path, KEY, pairs, length)


def test_the_key_depends_on_the_facts_and_not_on_their_order():
    facts = {"params": "abc", "dtype": "float32", "queries": 64}
    assert refcache.key(facts) == refcache.key(dict(reversed(facts.items())))
    keys = {refcache.key(facts | change) for change in ({}, {"params": "abd"}, {"queries": 65}, {"dtype": "bfloat16"})}
    assert len(keys) == 4


@pytest.mark.parametrize("batch_size", [8, 16])
def test_the_whole_source_is_computed_in_order_on_any_mesh(pairs, length, tokenizer, batch_size):
    """13 pairs in batches of 8 and 16: the filler rows of the last batch do not show."""
    source = pipeline.PairSource(pairs, 16, tokenizer.pad_id, length)
    forward = jax.jit(lambda scale, batch: scale * jnp.log1p(batch.tokens[:, :, 1:].astype(jnp.float32)))
    for devices in (1, 8):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        found = refcache.compute(forward, -2.0, source, batch_size, mesh)
        assert found.shape == (len(pairs), 2, length - 1)
        for i, pair in enumerate(pairs):
            for side, row in enumerate(pair.rows):
                expected = [-2 * math.log1p(token) for token in row.tokens[1:].tolist()]
                np.testing.assert_allclose(found[i, side, : len(expected)], expected, rtol=1e-6)
