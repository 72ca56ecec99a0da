"""The engine against the golden runs of the released evaluation."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from torch_weights import TINY_MUFFIN, tiny_muffin

from rlhfv_jax import sharding
from rlhfv_jax.data.chat import TEMPLATES
from rlhfv_jax.data.tokenizer import MuffinTokenizer
from rlhfv_jax.decoding import batch
from rlhfv_jax.decoding.engine import Engine
from rlhfv_jax.decoding.forward import cache_bytes
from rlhfv_jax.decoding.settings import GenerationSettings, muffin_release
from rlhfv_jax.decoding.text import cut
from rlhfv_jax.errors import UserError
from rlhfv_jax.models import vlm
from rlhfv_jax.models.llama import head_kernel


@pytest.fixture(scope="module")
def engine(fixtures):
    pytest.importorskip("torch")
    mesh = sharding.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
    return Engine(
        TINY_MUFFIN, tiny_muffin(), MuffinTokenizer.from_file(fixtures / "tiny-muffin/tokenizer.model"), mesh=mesh
    )


@pytest.mark.slow
def test_every_golden_run_has_the_released_codes_ids(engine, fixtures, monkeypatch):
    """Where the reference goes on after a row's end (padding, a keyword that another row lacks), up to that end."""
    monkeypatch.setattr(batch, "PROMPT_MULTIPLE", 96)
    golden = json.loads((fixtures / "generate.json").read_text())
    for run in golden["runs"]:
        options = {k: v for k, v in run["generate_kwargs"].items() if k not in ("use_cache", "temperature")}
        options.pop("pad_token_id", None)
        ends = (options.pop("eos_token_id", 1),)
        base = {"max_new_tokens": 24, "num_beams": 1, "repetition_penalty": 1.0, "stop_ids": ends}
        preset = muffin_release(stop=tuple(run["stop_keywords"]), **(base | options))
        prompts = []
        for i in run["prompts"]:
            facts = golden["prompts"][i]
            image = Image.open(fixtures / "images" / facts["image"])
            prompts.append(engine.prompt(facts["question"], image, TEMPLATES[preset.template]))
            assert engine.tokenizer.encode(prompts[-1].text) == facts["input_ids"]
        for row, [answer] in enumerate(engine.answer(prompts, preset.settings)):
            ids, wanted = list(answer.token_ids), run["new_tokens"][row]
            assert ids == wanted[: len(ids)], run["name"]
            if answer.finish_reason == "length":
                assert len(ids) == len(wanted)
            elif ids[-1] not in ends:  # a stop string ended it
                assert answer.text == cut(run["texts"][row], run["stop_keywords"])[0]
            if len(prompts) == 1 and answer.score is not None:
                assert answer.score == pytest.approx(run["sequences_scores"][0], abs=1e-5)


def test_a_mixed_batch_on_eight_devices_and_a_stream_are_the_answers_one_by_one(engine, fixtures):
    images = [Image.open(path) for path in sorted((fixtures / "images").glob("img*.png"))[:2]]
    prompts = [
        engine.prompt("What is this?", images[0]),
        engine.prompt("Say a word."),
        engine.prompt("Who?", images[1]),
    ]
    settings = muffin_release(max_new_tokens=10, num_beams=1).settings
    alone = [engine.answer([prompt], settings)[0][0] for prompt in prompts]
    many = Engine(TINY_MUFFIN, tiny_muffin(), engine.tokenizer, mesh=sharding.make_mesh(data=4, fsdp=2))
    for found in (engine.answer(prompts, settings), many.answer(prompts, settings)):
        assert [answer.token_ids for [answer] in found] == [answer.token_ids for answer in alone]
    searched = dataclasses.replace(settings, num_beams=3)
    best = [[answer for [answer] in e.answer(prompts, searched)] for e in (engine, many)]
    assert [answer.token_ids for answer in best[0]] == [answer.token_ids for answer in best[1]]
    np.testing.assert_allclose([a.score for a in best[0]], [a.score for a in best[1]], atol=1e-5)
    texts = ["", "", ""]
    for deltas in engine.stream(prompts, settings, every=3):
        for delta in deltas:
            texts[delta.row] += delta.text
    assert texts == [answer.text for answer in alone]


def test_log_probs_are_those_of_a_whole_forward_pass(engine, fixtures):
    """Of the model itself, whatever temperature, limits and penalties made of them."""
    image = Image.open(fixtures / "images" / "img0_120x90_rgb.png")
    prompt = engine.prompt("What is this?", image)
    options = {"temperature": 0.7, "top_k": 50, "repetition_penalty": 1.2}
    settings = GenerationSettings(max_new_tokens=8, log_probs=True, num_answers=2, seed=5, **options)
    [answers] = engine.answer([prompt], settings)
    assert answers[0].token_ids != answers[1].token_ids
    asked = engine.tokenizer.encode(prompt.text)
    for answer in answers:
        row = jnp.asarray([asked + list(answer.token_ids)])
        pixels = batch.picture(image, TINY_MUFFIN.tower.image_size)[None]
        params = tiny_muffin()
        hidden, _ = vlm.Vlm(TINY_MUFFIN).apply({"params": params}, row, pixels)
        logits = hidden[0, len(asked) - 1 : -1] @ head_kernel(params["llm"])[:, : TINY_MUFFIN.llm.vocab_size]
        wanted = jax.nn.log_softmax(logits)[jnp.arange(len(answer.token_ids)), jnp.asarray(answer.token_ids)]
        np.testing.assert_allclose(answer.log_probs, wanted, atol=2e-5)


@pytest.mark.slow
def test_scores_of_continuations_are_the_training_rows_mean_log_probs(engine, fixtures):
    """In one padded batch, over one image, as the model gives them row by row to what the template trains on."""
    image, template = Image.open(fixtures / "images" / "img0_120x90_rgb.png"), TEMPLATES["muffin"]
    asked = [("What is this?", image, ["a dog", "a small cat on a mat", "no"]), ("Say it.", None, ["yes", "a b c d"])]
    prompts = [engine.prompt(question, picture, template) for question, picture, _ in asked]
    found = engine.score(prompts, [[template.continuation(text) for text in texts] for _, _, texts in asked])
    params, tower = tiny_muffin(), TINY_MUFFIN.tower
    for (question, picture, texts), means in zip(asked, found, strict=True):
        for text, mean in zip(texts, means, strict=True):
            queries = tower.queries if picture else 0
            whole, [(_, start, end, _)] = template.training_text([(question, text)], queries)
            tokens = engine.tokenizer.encode(whole[:end])
            first = len(engine.tokenizer.encode(whole[: start - 1]))
            pixels = batch.picture(image, tower.image_size)[None]
            hidden, _ = vlm.Vlm(TINY_MUFFIN).apply({"params": params}, jnp.asarray([tokens]), pixels)
            logits = hidden[0, first - 1 : -1] @ head_kernel(params["llm"])[:, : TINY_MUFFIN.llm.vocab_size]
            wanted = jax.nn.log_softmax(logits)[jnp.arange(len(tokens) - first), jnp.asarray(tokens[first:])]
            np.testing.assert_allclose(mean, wanted.mean(), atol=2e-5)
    with pytest.raises(UserError, match="Prompt 0: the continuation '' has no tokens"):
        engine.score(prompts[:1], [[""]])


def test_bfloat16_computes_nearly_the_same_log_probs_with_half_the_cache(engine, fixtures):
    prompt = engine.prompt("What is this?", Image.open(fixtures / "images" / "img0_120x90_rgb.png"))
    settings = GenerationSettings(max_new_tokens=8, log_probs=True)
    half = Engine(TINY_MUFFIN, tiny_muffin(), engine.tokenizer, dtype=jnp.bfloat16, mesh=engine.mesh)
    [[exact]], [[rounded]] = (e.answer([prompt], settings) for e in (engine, half))
    assert exact.log_probs[0] != rounded.log_probs[0]
    assert exact.log_probs[0] == pytest.approx(rounded.log_probs[0], abs=0.05)
    sizes = [cache_bytes(TINY_MUFFIN.llm, rows=1, slots=96, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16)]
    assert sizes[0] == 2 * sizes[1]
