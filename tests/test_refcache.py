"""Cached log-probs belong to their pair, whatever the order, and to nothing else."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhfv_jax import provenance, refcache, sharding
from rlhfv_jax.data import buckets, encoding, pipeline
from rlhfv_jax.data.chat import MUFFIN
from rlhfv_jax.errors import UserError

FACTS = {"params": "abc", "dtype": "float32", "template": {"name": "muffin"}}


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
    refcache.save(tmp_path / "cache/reference.parquet", FACTS, pairs, logps)
    return tmp_path / "cache/reference.parquet"


def test_values_return_bit_for_bit(path, pairs, length, logps):
    found = refcache.load(path, FACTS, pairs, length)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, logps)
    assert [file.name for file in path.parent.iterdir()] == ["reference.parquet"]


def test_values_follow_their_pair_through_any_order(path, pairs, length, logps):
    order = np.random.default_rng(0).permutation(len(pairs))
    found = refcache.load(path, FACTS, [pairs[i] for i in order], length)
    np.testing.assert_array_equal(found, logps[order])
    np.testing.assert_array_equal(refcache.load(path, FACTS, pairs[3:5], length), logps[3:5])


def test_another_padding_keeps_the_values(path, pairs, length, logps):
    longer = refcache.load(path, FACTS, pairs, length + 64)
    np.testing.assert_array_equal(longer[..., : length - 1], logps)
    assert (longer[..., length - 1 :] == 0).all()


def test_what_differs_is_named(path, pairs, length):
    """Other weights, template, transform, dtype; another token, label, length, image or pair."""
    pair, record, (first, row) = pairs[0], pairs[0].record, pairs[0].rows
    changed = dataclasses.replace(row, tokens=np.where(np.arange(len(row.tokens)) == 3, 5, row.tokens))
    target = dataclasses.replace(row, labels=np.where(np.arange(len(row.labels)) == 3, 5, row.labels))
    shorter = dataclasses.replace(first, tokens=first.tokens[:-1])
    facts = {
        "params .abc there, abd here": FACTS | {"params": "abd"},
        "dtype .float32 there, bfloat16 here": FACTS | {"dtype": "bfloat16"},
        "template/name .muffin there, words here": FACTS | {"template": {"name": "words"}},
        "image_transform .None there, bicubic 448 here": FACTS | {"image_transform": "bicubic 448"},
    }
    rows = {
        "other rejected tokens for the pair 0": {"rows": (first, changed)},
        "other rejected labels for the pair 0": {"rows": (first, target)},
        "other chosen tokens for the pair 0": {"rows": (shorter, row)},
        "another image for the pair 0": {"record": dataclasses.replace(record, image=b"other")},
        "no row for the pair new": {"record": dataclasses.replace(record, id="new")},
    }
    cases = [(facts[words], pair, words) for words in facts]
    cases += [(FACTS, dataclasses.replace(pair, **change), words) for words, change in rows.items()]
    for wanted, one, words in cases:
        with pytest.raises(UserError, match=rf"reference\.parquet.*{words}"):
            refcache.load(path, wanted, [one], length)


def test_another_gamma_needs_no_other_cache(path, pairs, length, logps):
    heavier = [dataclasses.replace(pair, weights=tuple(3 * w for w in pair.weights)) for pair in pairs]
    np.testing.assert_array_equal(refcache.load(path, FACTS, heavier, length), logps)


def test_a_row_holds_id_tokens_labels_weights_and_log_probs_unpadded(path, pairs):
    for stored, pair in zip(pq.read_table(path).to_pylist(), pairs, strict=True):
        assert stored["id"] == pair.record.id
        for side, name in enumerate(("chosen", "rejected")):
            row = pair.rows[side]
            assert stored[f"{name}_tokens"] == row.tokens.tolist()
            assert stored[f"{name}_labels"] == row.labels.tolist()
            assert stored[f"{name}_weights"] == pair.weights[side].tolist()
            assert len(stored[f"{name}_logps"]) == len(row.tokens) - 1


def test_a_parquet_file_of_something_else_is_refused(tmp_path, pairs, length):
    pq.write_table(pa.table({"id": ["0"]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="no reference cache"):
        refcache.load(tmp_path / "other.parquet", FACTS, pairs, length)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_a_damaged_file_is_refused(path, pairs, length, keep):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match=r"reference\.parquet cannot be read .*delete it"):
        refcache.load(path, FACTS, pairs, length)


def test_the_key_depends_on_the_facts_and_not_on_their_order():
    facts = {"params": "abc", "dtype": "float32", "queries": 64}
    assert provenance.key(facts) == provenance.key(dict(reversed(facts.items())))
    keys = {
        provenance.key(facts | change) for change in ({}, {"params": "abd"}, {"queries": 65}, {"dtype": "bfloat16"})
    }
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
