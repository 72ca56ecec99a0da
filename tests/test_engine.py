"""The engine against the golden runs of the released evaluation."""

import json

import pytest
from PIL import Image
from torch_weights import TINY_MUFFIN, tiny_muffin

from rlhfv_jax import sharding
from rlhfv_jax.data.chat import TEMPLATES
from rlhfv_jax.data.tokenizer import MuffinTokenizer
from rlhfv_jax.decoding import batch
from rlhfv_jax.decoding.engine import Engine
from rlhfv_jax.decoding.settings import muffin_release
from rlhfv_jax.decoding.text import cut


@pytest.fixture(scope="module")
def engine(fixtures):
    pytest.importorskip("torch")
    import jax

    mesh = sharding.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
    return Engine(
        TINY_MUFFIN, tiny_muffin(), MuffinTokenizer.from_file(fixtures / "tiny-muffin/tokenizer.model"), mesh=mesh
    )


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
    texts = ["", "", ""]
    for deltas in engine.stream(prompts, settings, every=3):
        for delta in deltas:
            texts[delta.row] += delta.text
    assert texts == [answer.text for answer in alone]
