"""The model against the PyTorch reference's golden files, and against itself where the answer must not change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shared
from torch_weights import tiny_muffin

from rlhfv_jax import trees
from rlhfv_jax.models import beit3, llama, vlm
from rlhfv_jax.ops.logprobs import token_log_probs

GOLDEN = vlm.MuffinConfig(
    tower=beit3.Beit3Config(64, 16, width=64, layers=2, heads=4, ffn=256, queries=8),
    llm=llama.LlamaConfig(32_004, width=24, layers=2, heads=4, kv_heads=4, ffn=64),
    image_token=32_001,
)


@pytest.fixture(scope="module")
def golden():
    return np.load(shared("fixtures/forward.npz"))


@pytest.fixture(scope="module")
def params():
    shared("fixtures/tiny-muffin/pytorch_model.bin")
    return tiny_muffin()


def hidden(params, tokens, image=None, **kwargs):
    tokens = np.asarray(tokens, np.int32)
    run = jax.jit(lambda p: vlm.Muffin(GOLDEN).apply({"params": p}, tokens, image, **kwargs)[0])
    return np.asarray(run(params))


def pixels(golden, name="pixel_values"):
    return np.transpose(golden[name], (0, 2, 3, 1))


def test_the_towers_outputs_are_the_references(golden, params):
    tower = beit3.Beit3(GOLDEN.tower).apply({"params": params["tower"]}, pixels(golden))
    np.testing.assert_allclose(tower, golden["vision_tower_out"], atol=1e-4)
    projected = np.asarray(tower) @ np.asarray(params["projector"]["kernel"]) + np.asarray(params["projector"]["bias"])
    np.testing.assert_allclose(projected, golden["projector_out"], atol=1e-4)


def test_hidden_states_logits_and_log_probs_are_the_references(golden, params):
    mask = golden["attention_mask"].astype(bool)
    found = hidden(params, golden["input_ids"], pixels(golden), lengths=jnp.asarray(mask.sum(-1), jnp.int32))
    np.testing.assert_allclose(found[mask], golden["final_hidden"][mask], atol=1e-4)
    logits = found @ np.asarray(params["llm"]["head"]["kernel"])
    subset = logits[..., golden["logits_subset_ids"]]
    np.testing.assert_allclose(subset[mask], golden["logits_subset"][mask], atol=1e-4)
    logps = np.load(shared("fixtures/logps.npz"))
    labels = logps["labels"][:, 1:].astype(np.int32)
    ours = token_log_probs(jnp.asarray(found[:, :-1]), params["llm"]["head"]["kernel"], jnp.asarray(labels), 32_004)
    scored = labels != -100
    np.testing.assert_allclose(np.asarray(ours)[scored], logps["per_token_logps"][scored], atol=1e-4)


def test_text_only_rows_are_the_references(golden, params):
    found = hidden(params, golden["text_input_ids"])
    np.testing.assert_allclose(found, golden["text_final_hidden"], atol=1e-4)


def test_left_padded_rows_are_the_references(golden, params):
    real = golden["left_attention_mask"].astype(bool)
    steps = np.arange(real.shape[1])
    mask = real[:, None, :] & (steps[None, :] <= steps[:, None])
    found = hidden(params, golden["left_input_ids"], pixels(golden), mask=jnp.asarray(mask))
    np.testing.assert_allclose(found[real], golden["left_final_hidden"][real], atol=1e-4)


def test_a_row_without_image_between_image_rows_changes_nothing(golden, params):
    """The reference pastes the wrong image there; each of our rows equals itself alone with its own image."""
    tokens, images = golden["input_ids"].copy(), pixels(golden)
    length = golden["text_input_ids"].shape[1]
    tokens[1] = 32_000
    tokens[1, :length] = golden["text_input_ids"][0]
    found = hidden(params, tokens, images)
    for row in (0, 2):
        mask = golden["attention_mask"][row].astype(bool)
        np.testing.assert_allclose(found[row][mask], golden["final_hidden"][row][mask], atol=1e-4)
    np.testing.assert_allclose(found[1, :length], golden["text_final_hidden"][0], atol=1e-4)


def test_the_13b_model_has_the_released_number_of_parameters():
    model = vlm.Muffin(vlm.muffin_13b())
    abstract = jax.eval_shape(lambda key: vlm.init(model, key), jax.random.key(0))
    padding = (model.config.llm.padded_vocab - 32_004) * 5120 * 2
    assert trees.count(abstract) == 13_628_976_128 + padding


def test_llama_with_grouped_query_heads_is_transformers():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
    )
    theirs = LlamaForCausalLM(config).eval()
    weights = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
    ours = llama.LlamaConfig(96, width=32, layers=2, heads=4, kv_heads=2, ffn=48)
    parameters = from_transformers(weights, ours)
    tokens = np.random.default_rng(0).integers(0, 96, (3, 17))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    found, _ = llama.Llama(ours).apply({"params": parameters}, jnp.asarray(tokens, jnp.int32))
    np.testing.assert_allclose(np.asarray(found) @ parameters["head"]["kernel"][:, :96], expected, atol=1e-4)


def from_transformers(weights: dict, c: llama.LlamaConfig) -> dict:
    def stack(name, shape):
        return np.stack([weights[f"model.layers.{i}.{name}.weight"].T.reshape(shape) for i in range(c.layers)])

    def heads(name, count):
        return {"kernel": stack(f"self_attn.{name}", (c.width, count, c.head_size))}

    def norm(name):
        return {"scale": np.stack([weights[f"model.layers.{i}.{name}.weight"] for i in range(c.layers)])}

    pad = ((0, c.padded_vocab - c.vocab_size), (0, 0))
    attention = {"q": heads("q_proj", c.heads), "k": heads("k_proj", c.kv_heads), "v": heads("v_proj", c.kv_heads)}
    attention["o"] = {"kernel": stack("self_attn.o_proj", (c.heads, c.head_size, c.width))}
    mlp = {name: {"kernel": stack(f"mlp.{name}_proj", (c.width, c.ffn))} for name in ("gate", "up")}
    mlp["down"] = {"kernel": stack("mlp.down_proj", (c.ffn, c.width))}
    return {
        "embed": {"embedding": np.pad(weights["model.embed_tokens.weight"], pad)},
        "head": {"kernel": np.pad(weights["lm_head.weight"], pad).T},
        "final_norm": {"scale": weights["model.norm.weight"]},
        "layers": {
            "attention": attention,
            "mlp": mlp,
            "attention_norm": norm("input_layernorm"),
            "mlp_norm": norm("post_attention_layernorm"),
        },
    }


# Against itself, on the tiny model of conftest (grouped-query heads, vocabulary of 100, image token 97).


def batch(rows=2, length=16, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 90, (rows, length)).astype(np.int32)
    tokens[:, 2:6] = 97
    image = rng.integers(0, 256, (rows, 32, 32, 3)).astype(np.uint8)
    return tokens, image


def forward(config, params, tokens, image, remat="none", **kwargs):
    return vlm.Muffin(config, remat=remat).apply({"params": params}, tokens, image, **kwargs)[0]


def test_longer_padding_and_another_place_in_the_batch_change_nothing(tiny_config, tiny_params):
    tokens, image = batch()
    lengths = jnp.array([16, 12], jnp.int32)
    plain = np.asarray(forward(tiny_config, tiny_params, tokens, image, lengths=lengths))
    padded = np.pad(tokens, ((0, 0), (0, 9)), constant_values=99)
    longer = np.asarray(forward(tiny_config, tiny_params, padded, image, lengths=lengths))
    swapped = np.asarray(forward(tiny_config, tiny_params, tokens[::-1], image[::-1], lengths=lengths[::-1]))
    for row, length in enumerate((16, 12)):
        np.testing.assert_allclose(longer[row, :length], plain[row, :length], atol=1e-5)
        np.testing.assert_allclose(swapped[1 - row, :length], plain[row, :length], atol=1e-5)


def test_a_token_depends_on_the_image_and_on_no_later_token(tiny_config, tiny_params):
    tokens, image = batch()
    plain = np.asarray(forward(tiny_config, tiny_params, tokens, image))
    later = tokens.copy()
    later[:, 10:] = 5
    assert np.array_equal(np.asarray(forward(tiny_config, tiny_params, later, image))[:, :10], plain[:, :10])
    other = np.asarray(forward(tiny_config, tiny_params, tokens, 255 - image))
    assert np.abs(other[:, 6:] - plain[:, 6:]).max() > 1e-3
    assert np.array_equal(other[:, :2], plain[:, :2])


@pytest.mark.parametrize("remat", ["named", "full"])
def test_rematerialisation_changes_neither_outputs_nor_gradients(tiny_config, tiny_params, remat):
    tokens, image = batch()

    def loss(params, remat):
        return jnp.sum(jnp.square(forward(tiny_config, params, tokens, image, remat=remat)))

    plain, kept = (jax.jit(jax.value_and_grad(loss), static_argnums=1)(tiny_params, name) for name in ("none", remat))
    np.testing.assert_allclose(plain[0], kept[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(plain[1]), jax.tree.leaves(kept[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3 * max(1e-3, float(np.abs(a).max())))


def test_unrolled_layers_are_the_same_function(tiny_config, tiny_params):
    tokens, image = batch()
    unrolled = dataclasses.replace(
        tiny_config,
        tower=dataclasses.replace(tiny_config.tower, unroll=2),
        llm=dataclasses.replace(tiny_config.llm, unroll=2),
    )
    plain = forward(tiny_config, tiny_params, tokens, image)
    np.testing.assert_allclose(forward(unrolled, tiny_params, tokens, image), plain, atol=1e-5)


def test_decoding_token_by_token_with_the_cache_is_the_full_forward(tiny_config, tiny_params):
    tokens, image = batch()
    full = np.asarray(forward(tiny_config, tiny_params, tokens, image))
    model, slots = vlm.Muffin(tiny_config), np.arange(16)
    cache = llama.empty_cache(tiny_config.llm, 2, 16)
    prompt = np.broadcast_to(slots <= np.arange(8)[:, None], (2, 8, 16))
    out, cache = model.apply({"params": tiny_params}, tokens[:, :8], image, mask=jnp.asarray(prompt), cache=cache)
    parts = [out]
    for t in range(8, 16):
        out, cache = model.apply(
            {"params": tiny_params},
            tokens[:, t : t + 1],
            positions=jnp.full((2, 1), t, jnp.int32),
            mask=jnp.asarray(np.broadcast_to(slots <= t, (2, 1, 16))),
            cache=cache,
        )
        parts.append(out)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), full, atol=1e-5)


def test_bfloat16_log_probs_stay_near_float32(golden, params):
    mask = golden["attention_mask"].astype(bool)
    tokens = golden["input_ids"].astype(np.int32)
    lengths = jnp.asarray(mask.sum(-1), jnp.int32)
    labels = jnp.asarray(np.where(mask[:, 1:], tokens[:, 1:], -100))
    exact, rough = (
        np.asarray(vlm.log_probs(vlm.Muffin(GOLDEN, dtype), params, pixels(golden), tokens, labels, lengths))
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert 0 < np.abs(exact - rough).mean() < 0.05
