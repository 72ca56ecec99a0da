"""A sliding window: Mistral against transformers, and the same log-probs in rows, packed, and token by token."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_rows import pair_batch
from family_weights import load
from token_decoding import TokenDecoder

from rlhfv_jax import steps
from rlhfv_jax.data import packing
from rlhfv_jax.decoding.settings import GenerationSettings
from rlhfv_jax.models import llama, vlm
from rlhfv_jax.ops.attention import attention

WINDOW = 5


@pytest.fixture(scope="module")
def mistral(tmp_path_factory):
    """A random MistralForCausalLM in torch, and ours from what it saved."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=WINDOW,
        head_dim=8,
    )
    config._attn_implementation = "eager"
    model = transformers.MistralForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    saved = tmp_path_factory.mktemp("mistral")
    model.save_pretrained(saved)
    return model, *load(saved)


def test_logits_and_greedy_ids_are_those_of_transformers(mistral):
    """Three windows long, so that the first tokens are out of sight of the last."""
    import torch

    model, config, params = mistral
    assert config.window == WINDOW
    tokens = np.random.default_rng(0).integers(3, 128, (2, 16)).astype(np.int32)
    with torch.no_grad():
        expected = model(torch.tensor(tokens)).logits.numpy()
        ids = model.generate(torch.tensor(tokens), do_sample=False, max_new_tokens=8, eos_token_id=127, pad_token_id=0)
    hidden, _ = llama.Llama(config).apply({"params": params["llm"]}, tokens)
    np.testing.assert_allclose(hidden @ params["llm"]["head"]["kernel"], expected, atol=1e-4)
    settings = GenerationSettings(max_new_tokens=8, stop_ids=(127,), temperature=0.0)
    for row, want in zip(TokenDecoder(config, params).ids(tokens.tolist(), settings), ids.numpy(), strict=True):
        assert row == want[16 : 16 + len(row)].tolist() and row


@pytest.mark.slow
def test_packed_pairs_have_the_log_probs_of_their_rows(tiny_config, tiny_params):
    """The rejected answer stands behind the chosen one in its unit; distances are those in its own row."""
    config = replace(tiny_config, llm=replace(tiny_config.llm, window=WINDOW))
    batch = pair_batch(config, 4, 24)
    model = vlm.Vlm(config)
    rows = np.asarray(steps.reference(model)(tiny_params, batch))
    packed = packing.from_rows(batch, image_token=config.image_token, queries=config.image_tokens)
    found = np.asarray(steps.reference(model)(tiny_params, packed))
    for place, row in enumerate(packed.row.tolist()):
        for side in range(2):
            scored = batch.weights[row, side] > 0
            np.testing.assert_allclose(found[place, side][: scored.sum()], rows[row, side][scored], atol=1e-4)
    wide = np.asarray(steps.reference(vlm.Vlm(tiny_config))(tiny_params, batch))
    assert np.abs(wide - rows).max() > 1e-3  # the window is in the way of something


@pytest.mark.slow
def test_the_splash_kernel_and_xla_look_back_equally_far():
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 128, 2, 64)) for i in range(3))
    options = {"causal": True, "window": 7, "key_lengths": jnp.asarray([100])}
    found, expected = (attention(q, k, v, backend=name, **options) for name in ("splash", "xla"))
    np.testing.assert_allclose(found[:, :100], expected[:, :100], atol=2e-5)
