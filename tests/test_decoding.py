"""Decoding with the static cache against the model applied to ever longer rows."""

import jax
import numpy as np
import pytest
from scipy import stats

from rlhfv_jax.decoding import processors, sample
from rlhfv_jax.decoding.forward import Inputs, Network, cache_bytes, extend
from rlhfv_jax.decoding.settings import GenerationSettings
from rlhfv_jax.models import vlm
from rlhfv_jax.models.llama import head_kernel

NEW, PAD = 6, 99
LENGTHS = np.array([14, 11, 12, 14], np.int32)


@pytest.fixture(scope="module")
def prompts():
    """Four prompts of mixed lengths, two to an image."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 90, (4, 14)).astype(np.int32)
    tokens[:, 2:6] = 97
    return tokens, rng.integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def plain(tiny_config, tiny_params, prompts):
    """Greedy continuations by whole forward passes over unpadded rows."""
    tokens, image = prompts
    forward = jax.jit(lambda row, image: vlm.Muffin(tiny_config).apply({"params": tiny_params}, row, image)[0])
    rows = []
    for r, length in enumerate(LENGTHS):
        row = list(tokens[r, :length])
        for _ in range(NEW):
            padded = np.zeros((1, 20), np.int32)
            padded[0, : len(row)] = row  # causal: what follows does not matter
            hidden = forward(padded, image[r // 2 : r // 2 + 1])[0, len(row) - 1]
            row.append(int(np.argmax(np.asarray(hidden @ head_kernel(tiny_params["llm"]))[:100])))
        rows.append(row[length:])
    return np.asarray(rows)


def decode(config, params, prompts, temperature, stop=98, seeds=(1, 2, 3, 4), lengths=LENGTHS, new=NEW):
    """The answers, int32[rows, new]; PAD from the stop token on."""
    (tokens, image), network = prompts, Network(config)
    settings = GenerationSettings(new, temperature=temperature)
    program = sample.programs(network, sample.mode(settings))
    controls = processors.controls(settings, 128, [stop], processors.no_stop_strings())
    params = network.unstack(params)
    image_of = np.arange(len(tokens)) // (len(tokens) // len(image))
    inputs = Inputs(tokens, np.asarray(lengths), network.features(params, image), image_of)
    state = program.start(params, inputs, np.asarray(seeds, np.uint32), controls, new, slots=new)
    state = program.advance(params, state, controls, new, width=tokens.shape[1])
    found = np.array(state.tokens)
    return np.where((np.arange(new) < np.asarray(state.lengths)[:, None]) & (found != stop), found, PAD)


def test_greedy_answers_equal_whole_forward_passes(tiny_config, tiny_params, prompts, plain):
    assert np.array_equal(decode(tiny_config, tiny_params, prompts, 0.0), plain)


def test_an_answer_ends_before_the_stop_token(tiny_config, tiny_params, prompts, plain):
    stop = int(plain[1, 2])
    found = decode(tiny_config, tiny_params, prompts, 0.0, stop=stop)
    for row, whole in zip(found, plain, strict=True):
        end = list(whole).index(stop) if stop in whole else NEW
        assert list(row) == [*whole[:end], *[PAD] * (NEW - end)]


def test_a_sampled_row_depends_on_its_own_seed_alone(tiny_config, tiny_params, prompts):
    both = decode(tiny_config, tiny_params, prompts, 1.0)
    others = decode(tiny_config, tiny_params, prompts, 1.0, seeds=(7, 8, 3, 9))
    assert np.array_equal(both[2], others[2])
    assert not np.array_equal(both[:2], others[:2])
    tokens, image = prompts
    alone = decode(tiny_config, tiny_params, (tokens[2:], image[1:]), 1.0, seeds=(3, 4), lengths=LENGTHS[2:])
    assert np.array_equal(alone, both[2:])


def test_every_position_decoded_with_the_cache_has_the_full_forwards_logits(tiny_config, tiny_params, prompts):
    """Prefill of the first tokens, then a token a step, against one pass over the whole rows: to 1e-5 everywhere."""
    tokens, image = prompts
    network, start = Network(tiny_config), 8
    params = network.unstack(tiny_params)
    hidden = vlm.Muffin(tiny_config).apply({"params": tiny_params}, tokens, image)[0]
    whole = np.asarray(hidden @ head_kernel(tiny_params["llm"]))[..., :100]
    lengths = np.full(len(tokens), start, np.int32)
    inputs = Inputs(tokens[:, :start], lengths, network.features(params, image), np.array([0, 0, 1, 1]))
    logits, cache = network.prefill(params, inputs)
    cache = extend(cache, 1, tokens.shape[1] - start)
    for position in range(start, tokens.shape[1]):
        np.testing.assert_allclose(logits[:, :100], whole[:, position - 1], atol=1e-5)
        logits, cache = network.step(params, tokens[:, position], cache, position, lengths, start)
    np.testing.assert_allclose(logits[:, :100], whole[:, -1], atol=1e-5)
    held = sum(array.nbytes for array in jax.tree.leaves(cache))
    assert held == cache_bytes(tiny_config.llm, *tokens.shape)


@pytest.mark.parametrize("warp", [{}, {"top_k": 5}, {"top_p": 0.6}, {"top_k": 12, "top_p": 0.8}])
def test_sampling_follows_the_models_distribution(tiny_config, tiny_params, prompts, warp):
    """Frequencies of the first token over many seeds against the softmax that Hugging Face's warpers leave."""
    torch, generation = pytest.importorskip("torch"), pytest.importorskip("transformers.generation")
    tokens, image = prompts
    count, temperature, network = 3000, 0.7, Network(tiny_config)
    settings = GenerationSettings(1, temperature=temperature, **warp)
    controls = processors.controls(settings, 128, [98], processors.no_stop_strings())
    params = network.unstack(tiny_params)
    many = Inputs(np.repeat(tokens[:1], count, axis=0), np.full(count, 14), network.features(params, image[:1]), None)
    many = many._replace(image_of=np.zeros(count, np.int32))
    seeds = np.arange(count, dtype=np.uint32)
    state = sample.programs(network, sample.mode(settings)).start(params, many, seeds, controls, 1, slots=1)

    hidden = vlm.Muffin(tiny_config).apply({"params": tiny_params}, tokens[:1], image[:1])[0][0, -1]
    scores = torch.tensor(np.asarray(hidden @ head_kernel(tiny_params["llm"]))[None, :100]) / temperature
    if "top_k" in warp:
        scores = generation.TopKLogitsWarper(warp["top_k"])(None, scores)
    if "top_p" in warp:
        scores = generation.TopPLogitsWarper(warp["top_p"])(None, scores)
    expected = torch.softmax(scores[0].double(), -1).numpy()
    seen = np.bincount(np.asarray(state.tokens)[:, 0], minlength=100)
    assert np.array_equal(seen[expected == 0], np.zeros((expected == 0).sum()))
    assert _chi_square(seen, expected * count) > 1e-4


def _chi_square(seen: np.ndarray, expected: np.ndarray) -> float:
    """The p-value; cells of which fewer than five are expected count as one."""
    small = expected < 5
    seen, expected = (np.append(x[~small], x[small].sum()) for x in (seen, expected))
    kept = expected > 0
    return stats.chisquare(seen[kept], expected[kept]).pvalue
