"""Muffin against the PyTorch reference's golden files and transformers, and the invariances a decoder must have."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shared
from torch_weights import TINY_MUFFIN, llama_entries, muffin_entries, tiny_muffin, to_params, to_torch

from rlhfv_jax import trees
from rlhfv_jax.models import beit3, llama, vlm
from rlhfv_jax.models.beit3 import Beit3, Beit3Config
from rlhfv_jax.models.muffin import MuffinConfig, muffin_13b
from rlhfv_jax.ops.logprobs import token_log_probs

TOLERANCE = 1e-4  # the fixtures' README: float32 noise of the reference itself is 1e-5


# --- the PyTorch reference's golden files ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    return np.load(shared("fixtures/forward.npz"))


@pytest.fixture(scope="module")
def muffin():
    """(params, jitted forward) of the reference's checkpoint; its padding rows hold garbage that must not matter."""
    model = vlm.Vlm(TINY_MUFFIN)
    params = jax.device_put(tiny_muffin(pad=50.0))

    @jax.jit
    def forward(tokens, image=None, lengths=None, positions=None, mask=None):
        return model.apply({"params": params}, tokens, image, positions, lengths, mask)[0]

    return params, forward


def images(golden, name: str = "pixel_values") -> np.ndarray:
    return np.ascontiguousarray(golden[name].transpose(0, 2, 3, 1))


@pytest.fixture(scope="module")
def image_rows(golden, muffin) -> np.ndarray:
    """Final hidden states of the three right-padded image rows."""
    _, forward = muffin
    lengths = golden["attention_mask"].sum(1).astype(np.int32)
    return np.asarray(forward(golden["input_ids"].astype(np.int32), images(golden), lengths))


def close(found, expected, where=None) -> None:
    where = np.ones(expected.shape[:-1], bool) if where is None else where.astype(bool)
    np.testing.assert_allclose(np.asarray(found)[where], expected[where], atol=TOLERANCE, rtol=0)


def test_the_reference_checkpoint_has_exactly_our_parameters_and_maps_back(muffin):
    import torch

    model = vlm.Vlm(TINY_MUFFIN)
    expected = jax.eval_shape(lambda key: vlm.init(model, key), jax.random.key(0))
    assert trees.diff(expected, muffin[0]) == []
    state = torch.load(shared("fixtures/tiny-muffin/pytorch_model.bin"), weights_only=True)
    back = to_torch(muffin[0], muffin_entries(TINY_MUFFIN), TINY_MUFFIN.llm.vocab_size)
    for name, array in back.items():
        np.testing.assert_array_equal(array, state[name].numpy(), err_msg=name)


def test_every_tower_layer_is_the_references(golden, muffin):
    """Layer by layer, each from the reference's own input, both streams; then the final norm of the queries."""
    tower = muffin[0]["tower"]
    block = jax.jit(lambda p, a, b: beit3.Block(TINY_MUFFIN.tower, jnp.float32).apply({"params": p}, (a, b), None)[0])
    split = TINY_MUFFIN.tower.patches + 1
    x = golden["beit3_embed_plus_pos"]
    for i in range(2):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], tower["layers"])
        x, expected = jnp.concatenate(block(layer, x[:, :split], x[:, split:]), axis=1), golden[f"beit3_layer{i}_out"]
        close(x, expected)
        x = expected


def test_vision_tower_and_projector_are_the_references(golden, muffin):
    params = muffin[0]
    tower = jax.jit(lambda p, image: Beit3(TINY_MUFFIN.tower).apply({"params": p}, image))
    queries = tower(params["tower"], images(golden))
    close(queries, golden["vision_tower_out"])
    projector = to_torch(params, muffin_entries(TINY_MUFFIN), TINY_MUFFIN.llm.vocab_size)
    projected = queries @ projector["model.mm_projector.weight"].T + projector["model.mm_projector.bias"][None, None]
    close(projected, golden["projector_out"])


def test_every_llama_block_is_the_references(golden, muffin):
    """From the reference's input embeddings, which hold its projector's outputs, through each block."""
    config, states = TINY_MUFFIN.llm, golden["hidden_states_all"]
    mask = golden["attention_mask"]
    positions = np.broadcast_to(np.arange(mask.shape[1], dtype=np.int32), mask.shape)
    block = llama.Block(config, jnp.float32)
    apply = jax.jit(lambda p, x: block.apply({"params": p}, x, None, positions, mask.sum(1), None, None)[0])
    layers = muffin[0]["llm"]["layers"]
    first = apply(jax.tree.map(lambda leaf: leaf[0], layers), states[0])
    close(first, states[1], mask)


def test_image_rows_are_the_references(golden, image_rows):
    close(image_rows, golden["final_hidden"], golden["attention_mask"])


def test_logits_and_their_normaliser_are_the_references(golden, muffin, image_rows):
    """The subset's logits, recovered as log-prob plus the reference's logsumexp over its 32,004 entries."""
    ids = golden["logits_subset_ids"].astype(np.int32)
    rows, positions = np.nonzero(golden["attention_mask"])
    picked = slice(None, None, 5)
    hidden = image_rows[rows, positions][picked]
    head = muffin[0]["llm"]["head"]["kernel"]
    every = jnp.broadcast_to(hidden[:, None], (len(hidden), len(ids), hidden.shape[-1]))
    logits = hidden @ np.asarray(head)[:, ids]
    close(logits, golden["logits_subset"][rows, positions][picked])
    labels = np.broadcast_to(ids[:3], (len(hidden), 3))
    found = jax.jit(token_log_probs, static_argnums=3)(every[:, :3], head, labels, TINY_MUFFIN.llm.vocab_size)
    normaliser = golden["logits_logsumexp"][rows, positions][picked]
    close(found + normaliser[:, None], golden["logits_subset"][rows, positions, :3][picked])


def test_per_token_log_probs_and_their_sums_are_the_references(golden, muffin, image_rows):
    logps = np.load(shared("fixtures/logps.npz"))
    labels = logps["labels"][:, 1:].astype(np.int32)
    found = np.asarray(
        jax.jit(token_log_probs, static_argnums=3)(
            image_rows[:, :-1], muffin[0]["llm"]["head"]["kernel"], labels, TINY_MUFFIN.llm.vocab_size
        )
    )
    close(found[..., None], logps["per_token_logps"][..., None], labels >= 0)
    np.testing.assert_allclose(found.sum(-1), logps["sum_logps"], atol=1e-3, rtol=1e-5)
    np.testing.assert_allclose(-found.sum() / (labels >= 0).sum(), golden["ce_loss"], atol=1e-4)


def test_text_only_rows_are_the_references(golden, muffin):
    close(muffin[1](golden["text_input_ids"].astype(np.int32)), golden["text_final_hidden"])


def test_left_padding_through_a_mask_is_the_references(golden, muffin):
    """Positions run over the padding, as in the reference; one mask says who sees whom."""
    attended = golden["left_attention_mask"].astype(bool)
    length = attended.shape[1]
    mask = attended[:, None, :] & np.tri(length, dtype=bool)[None]
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), attended.shape)
    tokens = golden["left_input_ids"].astype(np.int32)
    found = muffin[1](tokens, images(golden), positions=positions, mask=mask)
    close(found, golden["left_final_hidden"], attended)


def test_each_row_of_a_mixed_batch_reads_its_own_image(golden, muffin, image_rows):
    """Rows: image 0, text only, image 1. The reference gives row 2 the blank image of row 1; we do not."""
    tokens, attended = golden["mixed_input_ids"].astype(np.int32), golden["mixed_attention_mask"]
    found = np.asarray(muffin[1](tokens, images(golden, "mixed_pixel_values"), attended.sum(1).astype(np.int32)))
    close(found[[0, 2]], golden["final_hidden"][:2], attended[[0, 2]])
    text = golden["text_final_hidden"]
    close(found[1:2, : text.shape[1]], text)
    assert np.abs(found[2] - golden["mixed_final_hidden"][2])[attended[2].astype(bool)].max() > 0.1


# --- transformers' LLaMA --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_llama_is_transformers_llama(kv_heads):
    """Random weights, grouped-query heads, a small rotary base, right padding: hidden states and log-probs."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = llama.LlamaConfig(90, 32, 3, heads=4, kv_heads=kv_heads, ffn=48, norm_eps=1e-5, rope_theta=500.0)
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=90,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
            initializer_range=0.2,
            attn_implementation="eager",
        )
    ).eval()
    for name, parameter in theirs.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.2)
    rng = np.random.default_rng(0)
    tokens, lengths = rng.integers(0, 90, (3, 17)), np.array([17, 9, 1])
    attended = np.arange(17) < lengths[:, None]
    with torch.no_grad():
        out = theirs(torch.from_numpy(tokens), torch.from_numpy(attended).long(), output_hidden_states=True)
    state = {name: tensor.detach().numpy() for name, tensor in theirs.state_dict().items()}
    params = jax.device_put(to_params(state, llama_entries(config), config.padded_vocab)["llm"])

    @jax.jit
    def ours(tokens, lengths):
        hidden, _ = llama.Llama(config).apply({"params": params}, tokens, lengths=lengths)
        return hidden, token_log_probs(hidden[:, :-1], llama.head_kernel(params), tokens[:, 1:], config.vocab_size)

    hidden, logps = ours(tokens.astype(np.int32), lengths.astype(np.int32))
    close(hidden, out.hidden_states[-1].numpy(), attended)
    expected = torch.log_softmax(out.logits[:, :-1], -1).gather(-1, torch.from_numpy(tokens[:, 1:, None]))
    close(logps[..., None], expected.numpy(), attended[:, 1:])


# --- invariances on the small random model --------------------------------------------------------------------------


def rows(config: MuffinConfig, batch: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random right-padded rows of different lengths, each with its Q image tokens near the start."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 97, (batch, length)).astype(np.int32)
    tokens[:, 2 : 2 + config.tower.queries] = config.image_token
    size = config.tower.image_size
    return {
        "image": rng.integers(0, 256, (batch, size, size, 3), np.uint8),
        "tokens": tokens,
        "labels": rng.integers(0, 97, (batch, length - 1)).astype(np.int32),
        "lengths": rng.integers(length // 2, length + 1, batch).astype(np.int32),
    }


@pytest.fixture(scope="module")
def apply(tiny_config, tiny_params):
    """Jitted (tokens, image, lengths) -> hidden states of the small model."""
    model = vlm.Vlm(tiny_config)
    return jax.jit(lambda tokens, image, lengths: model.apply({"params": tiny_params}, tokens, image, None, lengths)[0])


def test_longer_padding_never_changes_real_positions(tiny_config, apply):
    """Nor does what the padding holds: text, or stray image tokens."""
    batch = rows(tiny_config, 4, 20)
    real = np.arange(20) < batch["lengths"][:, None]
    short = np.asarray(apply(batch["tokens"], batch["image"], batch["lengths"]))
    rng = np.random.default_rng(1)
    longer = rng.integers(0, 98, (4, 33)).astype(np.int32)
    longer[:, :20][real] = batch["tokens"][real]
    long = np.asarray(apply(longer, batch["image"], batch["lengths"]))
    np.testing.assert_allclose(long[:, :20][real], short[real], atol=1e-5)


def test_no_position_sees_a_later_token(tiny_config, apply):
    batch = rows(tiny_config, 4, 20)
    full = np.full(4, 20, np.int32)
    before = np.asarray(apply(batch["tokens"], batch["image"], full))
    changed = batch["tokens"].copy()
    changed[:, 12:] = (changed[:, 12:] + 1) % 97
    after = np.asarray(apply(changed, batch["image"], full))
    np.testing.assert_array_equal(after[:, :12], before[:, :12])
    assert np.all(np.abs(after[:, 12:] - before[:, 12:]).max(-1) > 1e-3)


def test_the_order_of_rows_does_not_matter(tiny_config, apply):
    batch = rows(tiny_config, 4, 20)
    order = np.array([2, 0, 3, 1])
    found = apply(batch["tokens"][order], batch["image"][order], batch["lengths"][order])
    expected = np.asarray(apply(batch["tokens"], batch["image"], batch["lengths"]))[order]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_both_rows_of_a_pair_read_the_pairs_image(tiny_config, apply):
    """Eight rows on four images equal the same rows with every image given twice."""
    batch = rows(tiny_config, 8, 20)
    shared_image = apply(batch["tokens"], batch["image"][:4], batch["lengths"])
    repeated = apply(batch["tokens"], np.repeat(batch["image"][:4], 2, axis=0), batch["lengths"])
    np.testing.assert_allclose(shared_image, repeated, atol=1e-5)
    swapped = apply(batch["tokens"], np.repeat(batch["image"][[1, 0, 2, 3]], 2, axis=0), batch["lengths"])
    assert np.abs(swapped - shared_image)[:4, -1].max() > 1e-3


def test_uint8_images_are_the_floats_of_totensor_and_normalize():
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    expected = (image.astype(np.float64) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(vlm.normalize(jnp.asarray(image), TINY_MUFFIN), expected, atol=1e-6)
    floats = jnp.asarray(expected, jnp.float32)
    assert vlm.normalize(floats, TINY_MUFFIN) is floats


def test_splice_fills_slots_in_order_and_leaves_rows_without_slots_untouched():
    """Against a loop; slots need not be neighbours."""
    rng = np.random.default_rng(0)
    embeds, features = rng.normal(size=(4, 9, 5)).astype(np.float32), rng.normal(size=(4, 3, 5)).astype(np.float32)
    slots = np.zeros((4, 9), bool)
    slots[0, 1:4] = slots[2, [0, 4, 8]] = slots[3, 6:] = True  # row 1 has none
    expected = embeds.copy()
    for row in range(4):
        for feature, t in enumerate(np.flatnonzero(slots[row])):
            expected[row, t] = features[row, feature]
    found = jax.jit(vlm.splice)(embeds, features, slots)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found[1], embeds[1])


def test_decoding_with_the_cache_is_the_full_forward_pass(tiny_config, tiny_params):
    """Left-padded prompts of different lengths, prefilled with their images, then token by token."""
    batch, prompt, steps = rows(tiny_config, 3, 10), 10, 5
    lengths, slots = np.array([10, 8, 7]), 16  # one slot more than is ever written
    rng = np.random.default_rng(3)
    new = rng.integers(0, 97, (3, steps)).astype(np.int32)
    left = np.zeros((3, prompt), np.int32)
    for i, n in enumerate(lengths):
        left[i, prompt - n :] = batch["tokens"][i, :n]
    start = (prompt - lengths).astype(np.int32)[:, None]
    model = vlm.Vlm(tiny_config)

    @partial(jax.jit, static_argnames="has_image")
    def extend(tokens, image, cache, has_image):
        at = cache.cursor + jnp.arange(tokens.shape[1])  # the slots that are written now
        keys = jnp.arange(slots)
        mask = (keys[None, None, :] <= at[None, :, None]) & (keys[None, None, :] >= start[:, :, None])
        positions = jnp.maximum(at[None, :] - start, 0)
        image = image if has_image else None
        return model.apply({"params": tiny_params}, tokens, image, positions, None, mask, cache)

    hidden, cache = extend(left, batch["image"], llama.empty_cache(tiny_config.llm, 3, slots), has_image=True)
    found = [np.asarray(hidden[:, -1:])]
    for t in range(steps):
        hidden, cache = extend(new[:, t : t + 1], None, cache, has_image=False)
        found.append(np.asarray(hidden))
    assert int(cache.cursor) == prompt + steps
    found = np.concatenate(found, axis=1)
    full = np.zeros((3, prompt + steps), np.int32)
    for i, n in enumerate(lengths):
        full[i, : n + steps] = np.concatenate([batch["tokens"][i, :n], new[i]])
    expected, _ = jax.jit(lambda *a, lengths: model.apply({"params": tiny_params}, *a, lengths=lengths))(
        full, batch["image"], lengths=(lengths + steps).astype(np.int32)
    )
    for i, n in enumerate(lengths):
        np.testing.assert_allclose(found[i], expected[i, n - 1 : n + steps], atol=1e-5)


@pytest.fixture(scope="module")
def log_prob_gradients(tiny_config, tiny_params):
    """Log-probs, and the gradient of their sum, under every kind of rematerialisation."""
    batch = rows(tiny_config, 2, 16)

    def run(remat: str):
        def total(params):
            logps = vlm.log_probs(vlm.Vlm(tiny_config, remat=remat), params, **batch)
            return logps.sum(), logps

        (_, logps), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(tiny_params)
        return logps, gradient

    return {remat: run(remat) for remat in ("none", "named", "full")}


@pytest.mark.parametrize("remat", ["named", "full"])
def test_rematerialisation_changes_neither_outputs_nor_gradients(log_prob_gradients, remat):
    logps, gradient = log_prob_gradients["none"]
    found_logps, found = log_prob_gradients[remat]
    np.testing.assert_allclose(found_logps, logps, atol=1e-5)
    for path, leaf in trees.paths(gradient):
        scale = float(jnp.abs(leaf).max())
        np.testing.assert_allclose(dict(trees.paths(found))[path], leaf, atol=1e-5 * scale + 1e-7, err_msg=path)


def test_unknown_rematerialisation_is_refused(tiny_config, tiny_params):
    batch = rows(tiny_config, 1, 16)
    with pytest.raises(ValueError, match="remat='nmaed' is not known"):
        vlm.log_probs(vlm.Vlm(tiny_config, remat="nmaed"), tiny_params, **batch)


def test_every_parameter_that_is_read_gets_a_gradient(log_prob_gradients, tiny_config):
    """All but what no output depends on: unread position rows, the image branch after its last use, absent words."""
    _, gradient = log_prob_gradients["none"]
    last = tiny_config.tower.layers - 1
    unread = {"tower/final_norm/A/scale", "tower/final_norm/A/bias"}
    for path, leaf in trees.paths(gradient):
        if path in unread:
            assert not np.any(leaf), path
            continue
        assert np.any(leaf), path
        if path.startswith("tower/layers") and "/A/" in path:
            dead = "/mlp" in path or "/o/" in path or "inner_norm" in path or "attention/q/" in path
            assert np.any(leaf[last]) != dead, path  # the last layer's image outputs leave nowhere
    assert not np.any(gradient["tower"]["positions"]["A"][:2])
    assert not np.any(gradient["tower"]["positions"]["B"][:2])
    assert not np.any(gradient["llm"]["embed"]["embedding"][tiny_config.image_token])  # always replaced


def test_padding_entries_of_the_vocabulary_never_matter(tiny_config, tiny_params, log_prob_gradients):
    """Whatever they hold, log-probs stay bit for bit, and they get no gradient."""
    batch, vocab = rows(tiny_config, 2, 16), tiny_config.llm.vocab_size
    assert tiny_config.llm.padded_vocab == 128 > vocab
    llm = tiny_params["llm"]
    head = llm["head"]["kernel"].at[:, vocab:].set(100.0)
    table = llm["embed"]["embedding"].at[vocab:].set(jnp.nan)
    garbage = tiny_params | {"llm": llm | {"head": {"kernel": head}, "embed": {"embedding": table}}}
    log_probs = jax.jit(partial(vlm.log_probs, vlm.Vlm(tiny_config)))
    np.testing.assert_array_equal(log_probs(garbage, **batch), log_probs(tiny_params, **batch))
    _, gradient = log_prob_gradients["none"]
    assert not np.any(gradient["llm"]["head"]["kernel"][:, vocab:])
    assert not np.any(gradient["llm"]["embed"]["embedding"][vocab:])


def test_13b_has_the_released_models_parameters():
    """13,628,976,128 in the released files, and 124 rows of padding in the embedding and the head."""
    model = vlm.Vlm(muffin_13b())
    params = jax.eval_shape(lambda key: vlm.init(model, key), jax.random.key(0))
    assert trees.count(params) == 13_628_976_128 + 124 * 5120 * 2
    assert trees.count(params["tower"]) == 607_757_312 + 64 * 1024  # the queries are not the tower's in the files


def test_13b_has_the_released_models_shapes():
    """Every key and shape of the released checkpoint, from ours."""
    config = muffin_13b()
    model = vlm.Vlm(config)
    shapes = {p: x.shape for p, x in trees.paths(jax.eval_shape(lambda k: vlm.init(model, k), jax.random.key(0)))}
    lines = shared("fixtures/muffin13b_keys.txt").read_text().splitlines()
    released = dict(line.split("\t")[:2] for line in lines if line and not line.startswith("#"))
    released = {name: text for name, text in released.items() if not name.endswith("inv_freq")}
    entries = list(muffin_entries(config))
    assert {entry.name for entry in entries} == set(released)
    seen: dict[str, int] = {}
    for entry in entries:
        shape = tuple(int(n) for n in released[entry.name].strip("()").split(",") if n.strip())
        ours = shapes[entry.path][entry.layer is not None :]
        if entry.path in ("llm/embed/embedding", "llm/head/kernel"):
            shape = tuple(32_128 if n == 32_004 else n for n in shape)
        assert np.prod(ours) == np.prod(shape), entry
        seen[entry.path] = seen.get(entry.path, 0) + 1
    assert set(seen) == set(shapes)
    assert all(count == (shapes[p][0] if "/layers/" in p else 1) for p, count in seen.items())


def test_bfloat16_log_probs_stay_near_float32(tiny_config, tiny_params):
    """Compute type alone: 8 bits of mantissa (2^-9 relative a rounding) through two small layers."""
    batch = rows(tiny_config, 8, 24)
    found = {
        dtype: np.asarray(jax.jit(partial(vlm.log_probs, vlm.Vlm(tiny_config, dtype)))(tiny_params, **batch))
        for dtype in (jnp.bfloat16, jnp.float32)
    }
    assert found[jnp.bfloat16].dtype == np.float32
    real = np.arange(1, 24) < batch["lengths"][:, None]
    difference = np.abs(found[jnp.bfloat16] - found[jnp.float32])[real]
    assert 0 < difference.max() < 0.1
    assert difference.mean() < 0.02


def test_rotary_angles_keep_neighbouring_positions_apart_in_bfloat16():
    """bfloat16 cannot tell position 256 from 257; angles are float32, so a shift of all positions changes nothing."""
    from rlhfv_jax.models.layers import rotary

    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 2, 1, 16)), jnp.bfloat16) for _ in range(2))

    def scores(first: int) -> np.ndarray:
        positions = jnp.array([[first, first + 1]])
        a, b = (np.asarray(rotary(x, positions, 10_000.0), np.float64) for x in (q, k))
        return np.einsum("btnh,bsnh->bts", a, b)

    np.testing.assert_allclose(scores(1000), scores(0), atol=0.1)
    a, b = (np.asarray(rotary(q[:, :1], jnp.array([[p]]), 10_000.0), np.float64) for p in (256, 257))
    assert np.abs(a - b).max() > 0.1


def test_a_tower_of_another_size_has_its_own_position_rows():
    config = Beit3Config(image_size=48, patch=16, width=8, layers=1, heads=2, ffn=16, queries=3, query_positions=6)
    params = jax.eval_shape(lambda key: Beit3(replace(config)).init(key, jnp.zeros((1, 48, 48, 3))), jax.random.key(0))[
        "params"
    ]
    assert params["positions"]["A"].shape == (9 + 3, 8)
    assert params["positions"]["B"].shape == (6, 8)
    assert params["query"].shape == (3, 8)
