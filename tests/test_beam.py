"""Greedy and beam search against Hugging Face's own `generate` on a random LLaMA with the same weights."""

import numpy as np
import pytest
from token_decoding import TokenDecoder
from torch_weights import llama_entries, to_params

from rlhfv_jax.decoding.settings import GenerationSettings
from rlhfv_jax.models.llama import LlamaConfig

ENDS, NEW, PAD = (7, 11, 13, 17, 19, 23), 16, 1
CASES = [
    {},
    {"num_beams": 3},
    pytest.param({"num_beams": 5, "length_penalty": 0.8}, marks=pytest.mark.slow),
    {"num_beams": 5, "length_penalty": 1.2},
    pytest.param({"num_beams": 3, "repetition_penalty": 1.1}, marks=pytest.mark.slow),
    {"repetition_penalty": 1.3},
    pytest.param({"num_beams": 4, "early_stopping": True}, marks=pytest.mark.slow),
    {"num_beams": 4, "early_stopping": "never", "length_penalty": 1.5},
    {"num_beams": 3, "length_penalty": -0.5, "num_answers": 3},
]


@pytest.fixture(scope="module")
def pair():
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig as HfConfig
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": PAD}
    sizes = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "initializer_range": 0.25}
    model = LlamaForCausalLM(HfConfig(**sizes, **heads, **ids)).eval()
    config = LlamaConfig(120, width=32, layers=2, heads=4, kv_heads=2, ffn=64)
    tensors = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    return model, TokenDecoder(config, to_params(tensors, llama_entries(config), config.padded_vocab))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_200_random_prompts_give_the_ids_and_scores_of_hugging_face(pair, case):
    import torch

    model, decoder = pair
    rng = np.random.default_rng(0)
    groups = [rng.integers(2, 120, (20, length)) for length in (3, 5, 8, 11, 13, 16, 18, 21, 23, 24)]
    options = dict(case)
    options["num_return_sequences"] = options.pop("num_answers", 1)
    wanted, scores = [], []
    for group in groups:
        out = model.generate(
            torch.tensor(group),
            attention_mask=torch.ones(group.shape, dtype=torch.long),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=list(ENDS),
            pad_token_id=PAD,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
        new = out.sequences[:, group.shape[1] :].numpy()
        wanted.append(np.pad(new, ((0, 0), (0, NEW - new.shape[1])), constant_values=PAD))
        scores.append(out.sequences_scores.numpy() if "num_beams" in case else [])
    settings = GenerationSettings(max_new_tokens=NEW, stop_ids=ENDS, **case)
    found = decoder.progress([row for group in groups for row in group.tolist()], settings)
    ids = np.where(np.arange(NEW) < found.lengths[:, None], found.tokens, PAD)
    np.testing.assert_array_equal(ids, np.concatenate(wanted))
    if "num_beams" in case:
        np.testing.assert_allclose(found.scores, np.concatenate(scores), rtol=1e-5, atol=1e-5)
