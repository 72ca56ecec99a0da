"""Packed pairs against plain rows: the same losses, metrics and gradients, on one device and on eight."""

import functools

import jax
import numpy as np
import pytest

from rlhfv_jax import experiment, losses, metrics, sharding, steps
from rlhfv_jax.data import buckets, encoding, packing, pipeline
from rlhfv_jax.data.chat import MUFFIN
from rlhfv_jax.models import vlm
from rlhfv_jax.ops.logprobs import token_log_probs
from rlhfv_jax.structs import IGNORE, PairBatch

B, T, QUERIES, IMAGE = 8, 48, 4, 97
PREFERENCE = losses.Preference(beta=0.5, nll=0.1)
KINDS = ("replace", "insert", "delete", "identical", "one token", "text only", "unlike", "prefix of it")


def answer_pair(rng: np.random.Generator, kind: str) -> list[np.ndarray]:
    """Two answers, not closed yet."""
    base = rng.integers(1, 90, rng.integers(5, 16))
    at = rng.integers(0, len(base) - 2)
    if kind == "insert":
        return [np.insert(base, at, rng.integers(1, 90, 3)), base]
    if kind == "delete":
        return [np.delete(base, [at, at + 1]), base]
    if kind == "identical":
        return [base, base]
    if kind == "one token":
        return [base[:1], rng.integers(1, 90, 1)]
    if kind == "unlike":
        return [rng.integers(1, 45, 9), rng.integers(45, 90, 12)]
    if kind == "prefix of it":
        return [base[:4], base]
    other = base.copy()
    other[at : at + 2] = rng.integers(1, 90, 2)
    return [other, base]


def random_pairs(seed: int) -> PairBatch:
    """Pairs of every kind in random order; prompts with two targets before the image, as the v0 template leaves them.

    Credit is random and differs between the two answers, also where they agree.
    """
    rng = np.random.default_rng(seed)
    tokens = np.full((B, 2, T), 99, np.int32)
    labels, weights = np.full((B, 2, T - 1), IGNORE, np.int32), np.zeros((B, 2, T - 1), np.float32)
    lengths = np.zeros((B, 2), np.int32)
    for b, kind in enumerate(rng.permutation(KINDS)):
        question = rng.integers(1, 90, rng.integers(1, 5))
        image = [] if kind == "text only" else [IMAGE] * QUERIES
        prompt = np.concatenate([rng.integers(1, 90, 5), image, question]).astype(np.int32)
        for side, answer in enumerate(answer_pair(rng, kind)):
            row = np.concatenate([prompt, answer, [91, 92]])
            lengths[b, side] = len(row)
            tokens[b, side, : len(row)] = row
            scored = np.concatenate([np.arange(2, 4), np.arange(len(prompt), len(row) - 1)]) - 1
            labels[b, side, scored] = row[scored + 1]
            weights[b, side, scored] = np.where(rng.random(len(scored)) < 0.3, 5.0, 1.0)
    ref = np.where(labels == IGNORE, 0.0, -rng.random(labels.shape) * 5).astype(np.float32)
    valid = np.arange(B) != rng.integers(0, 2 * B)
    image = rng.integers(0, 256, (B, 32, 32, 3)).astype(np.uint8)
    return PairBatch(image, tokens, labels, weights, lengths, ref, np.arange(B, dtype=np.int32), valid)


TARGETS = 24


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Units of some 40 tokens take several blocks, and the last of them fewer units."""
    monkeypatch.setattr(packing, "BLOCK", 16)


def units_of(batch: PairBatch) -> list[packing.Unit]:
    rows = [[batch.tokens[b, s, : batch.lengths[b, s]] for s in range(2)] for b in range(B)]
    labels = [[batch.labels[b, s, : batch.lengths[b, s] - 1] for s in range(2)] for b in range(B)]
    return [packing.make_unit(tuple(r), tuple(y)) for r, y in zip(rows, labels, strict=True)]


@functools.cache
def sizes_of(groups: int) -> packing.Sizes:
    """One for all seeds, so that one program serves them."""
    needs = []
    for seed in range(200):
        units = units_of(random_pairs(seed))
        needs.append(packing.need(units, packing.balance(np.array([len(u.tokens) for u in units]), groups)))
    longest = tuple(max(lengths) for lengths in zip(*(one.units for one in needs), strict=True))
    most = packing.Sizes(max(one.tokens for one in needs), longest, max(one.targets for one in needs))
    return packing.rounded(most)


def packed(batch: PairBatch, groups: int = 1):
    units = units_of(batch)
    members = packing.balance(np.array([len(u.tokens) for u in units]), groups)
    given = {"image": batch.image, "weights": batch.weights, "ref_logps": batch.ref_logps}
    given |= {"row": batch.row, "valid": batch.valid, "pad_id": 99, "image_token": IMAGE, "queries": QUERIES}
    return packing.assemble(units, members, sizes_of(groups), TARGETS, **given)


def test_a_buffers_blocks_are_fewer_the_longer_the_units_that_reach_them():
    batch = packed(random_pairs(0))
    counts = [block.shape[1] for block in batch.blocks]
    assert len(counts) > 2 and counts[0] == B and counts[-1] < B and counts == sorted(counts, reverse=True)
    held = np.concatenate([block.reshape(1, -1) for block in batch.blocks], axis=1)
    tokens = sum(len(unit.tokens) for unit in units_of(random_pairs(0)))
    assert sorted(held[held < batch.tokens.shape[1]]) == list(range(tokens))  # every token once
    np.testing.assert_array_equal(held[0, batch.place[0, :tokens]], np.arange(tokens))


@pytest.fixture(scope="module")
def gradient(tiny_config):
    loss = steps.preference_loss(vlm.Vlm(tiny_config), PREFERENCE)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def same(found, expected) -> None:
    """Loss and every metric equal; every gradient within 1e-5 of its array's largest entry."""
    (loss, metrics), grads = jax.device_get(found)
    (wanted, wanted_metrics), wanted_grads = jax.device_get(expected)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    for name, value in wanted_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-5, atol=1e-5, err_msg=name)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(wanted_grads), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max(), jax.tree_util.keystr(path)


@pytest.mark.parametrize("seed", range(20))
def test_packed_pairs_have_the_loss_and_the_gradients_of_rows(gradient, tiny_params, seed):
    batch = random_pairs(seed)
    same(gradient(tiny_params, packed(batch)), gradient(tiny_params, batch))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20, 200))
def test_packed_pairs_have_the_loss_and_the_gradients_of_rows_on_many_more(gradient, tiny_params, seed):
    batch = random_pairs(seed)
    same(gradient(tiny_params, packed(batch)), gradient(tiny_params, batch))


@pytest.fixture(scope="module")
def on_eight(tiny_config, tiny_params):
    mesh = sharding.make_mesh(fsdp=8)
    loss = steps.preference_loss(vlm.Vlm(tiny_config), PREFERENCE)
    with jax.set_mesh(mesh):
        where = sharding.shardings(tiny_params, mesh)
        params = jax.device_put(tiny_params, where)
        step = jax.jit(jax.value_and_grad(loss, has_aux=True), out_shardings=(None, where))
        yield lambda batch: step(params, sharding.put(batch, mesh))


@pytest.mark.parametrize("seed", range(3))
def test_packed_pairs_on_eight_devices_have_the_loss_and_the_gradients_of_rows_on_one(
    on_eight, gradient, tiny_params, seed
):
    batch = random_pairs(seed)
    same(on_eight(packed(batch, groups=8)), gradient(tiny_params, batch))


def test_every_token_sees_in_its_unit_what_it_sees_in_its_row():
    """The tree mask against brute force: whoever stands before a token in the row that it belongs to."""
    batch = packed(random_pairs(5))
    mask = np.asarray(vlm.tree_mask(batch.segment))
    for p, segment in enumerate(batch.segment[0]):
        rows = [np.flatnonzero((segment == 0) | (segment == side)) for side in (1, 2)]
        for t in np.flatnonzero(segment >= 0):
            row = next(row for row in rows if t in row)
            assert np.flatnonzero(mask[p, t]).tolist() == [key for key in row if key <= t]


def test_the_shared_part_is_computed_once_and_its_targets_count_for_both():
    rows = np.array([1, 2, 3, 4, 5]), np.array([1, 2, 3, 9, 8, 7])
    unit = packing.make_unit(rows, tuple(row[1:] for row in rows))
    assert unit.tokens.tolist() == [1, 2, 3, 4, 5, 9, 8, 7]
    assert unit.positions.tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    assert unit.segment.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    couples = [[(unit.head[i], unit.labels[i]) for i in pick] for pick in unit.pick]
    assert couples[0] == [(0, 2), (1, 3), (2, 4), (3, 5)]
    assert couples[1] == [(0, 2), (1, 3), (2, 9), (5, 8), (6, 7)]
    assert len(unit.head) == 7  # two targets shared, and the last shared token predicts two


def test_balance_gives_every_buffer_as_many_pairs_and_nearly_as_many_tokens():
    lengths = np.random.default_rng(0).lognormal(5.6, 0.45, 32).astype(int)
    members = packing.balance(lengths, 8)
    assert sorted(members.reshape(-1).tolist()) == list(range(32))
    loads = lengths[members].sum(axis=1)
    unbalanced = lengths.reshape(8, 4).sum(axis=1)
    assert loads.max() < 1.15 * lengths.sum() / 8 < unbalanced.max()


def test_few_sizes_hold_every_batch_with_little_padding():
    """Lengths as in performance plans: lognormal, cv 0.45; 32 pairs on eight devices."""
    rng = np.random.default_rng(1)
    units = []
    for length in rng.lognormal(5.6, 0.43, 1400).astype(int):
        row = rng.integers(1, 90, max(length, 20)).astype(np.int32)
        labels = np.where(np.arange(len(row) - 1) < 10, IGNORE, row[1:])
        units.append(packing.make_unit((row, row), (labels, labels)))
    sizes = packing.choose_sizes(units, 32, 8)
    assert len(sizes) <= 5
    real = padded = 0
    for _ in range(200):
        picked = [units[i] for i in rng.permutation(len(units))[:32]]
        members = packing.balance(np.array([len(u.tokens) for u in picked]), 8)
        size = packing.fitting(sizes, packing.need(picked, members))
        real += sum(len(u.tokens) for u in picked)
        padded += 8 * size.tokens
    assert real / padded > 0.8
    longest = sorted(units, key=lambda unit: -len(unit.tokens))[:4] * 8
    packing.fitting(sizes, packing.need(longest, np.arange(32).reshape(8, 4)))  # raises where nothing holds it


def test_an_image_behind_the_first_difference_is_refused():
    batch = random_pairs(0)
    batch.tokens[:, 0, 0] = 51
    batch.tokens[:, 1, 0] = 50
    with pytest.raises(ValueError, match="image tokens"):
        packing.from_rows(batch, image_token=IMAGE, queries=QUERIES)


# --- through the pipeline and the programs --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources_of_both_layouts(tokenizer, coco_records):
    pairs, stats = encoding.encode_pairs(coco_records[:21], tokenizer, MUFFIN, QUERIES, gamma=5.0, label_mask="muffin")
    length = buckets.rounded(stats.longest_row)
    ref = -np.random.default_rng(0).random((21, 2, length - 1)).astype(np.float32)
    given = {"image_token": tokenizer.image_token, "queries": QUERIES, "batch_size": 8}
    rows = pipeline.PairSource(pairs, 32, tokenizer.pad_id, length, ref)
    return rows, lambda groups: pipeline.PackedSource(pairs, 32, tokenizer.pad_id, length, ref, groups=groups, **given)


def test_both_layouts_have_the_same_pairs_at_every_step_for_any_number_of_processes(sources_of_both_layouts):
    rows, packed_source = sources_of_both_layouts
    plain = pipeline.train_batches(rows, 8, seed=3, start=2)
    halves = [pipeline.Shares((2 * i, 2 * i + 1), 4) for i in range(2)]
    shares = [pipeline.train_batches(packed_source(4), 8, 3, start=2, shares=half) for half in halves]
    for _ in range(6):
        batch, parts = next(plain), [next(share) for share in shares]
        assert parts[0].tokens.shape == parts[1].tokens.shape
        found = np.concatenate([part.row for part in parts])
        assert sorted(found.tolist()) == sorted(batch.row.tolist())
        images = dict(zip(batch.row.tolist(), batch.image, strict=True))
        for part in parts:
            for row, image in zip(part.row.tolist(), part.image, strict=True):
                np.testing.assert_array_equal(image, images[row])


def test_per_target_values_find_their_way_back_to_their_rows(sources_of_both_layouts):
    rows, packed_source = sources_of_both_layouts
    source = packed_source(2)
    wanted = {int(batch.row[i]): batch for batch in pipeline.ordered_batches(rows, 1) for i in range(1)}
    seen = []
    for batch in pipeline.ordered_batches(source, 8):
        numbers, logps = source.of_rows(batch, batch.ref_logps)
        for row, found in zip(numbers.tolist(), logps, strict=True):
            plain = wanted[row]
            scored = plain.labels[0] != IGNORE
            np.testing.assert_array_equal(found, np.where(scored, plain.ref_logps[0], 0.0))
        seen += numbers.tolist()
    assert sorted(seen) == list(range(21))


@pytest.mark.long
def test_a_packed_run_writes_the_metrics_of_a_run_on_rows(small_run, tmp_path):
    lines = {}
    for layout in ("rows", "packed"):
        config = small_run(
            {
                "data.layout": layout,
                "optim.steps": 2,
                "eval_share": 0.2,
                "optim.warmup": 0.0,
                "ddpo.label_mask": "muffin",
            }
        )
        experiment.train(config, tmp_path / layout)
        lines[layout] = metrics.read(tmp_path / layout / "metrics.jsonl")
    for found, wanted in zip(lines["packed"], lines["rows"], strict=True):
        noise = {"rewards/accuracies"} if found["step"] == 0 else set()  # whether a rounding error is positive
        for name in wanted.keys() - set(metrics.TIMING) - noise:
            assert found[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-4), name


def test_log_probs_in_chunks_are_those_at_once_in_value_and_gradient():
    keys = jax.random.split(jax.random.key(0), 3)
    hidden, head = jax.random.normal(keys[0], (2, 37, 16)), jax.random.normal(keys[1], (16, 128))
    labels = jax.random.randint(keys[2], (2, 37), 0, 100).at[:, ::5].set(IGNORE)

    def total(hidden, head, chunk):
        logps = token_log_probs(hidden, head, labels, 100, chunk)
        return (logps * (1 + labels)).sum(), logps

    whole, parts = (jax.value_and_grad(total, (0, 1), has_aux=True)(hidden, head, chunk) for chunk in (8192, 16))
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-3)
