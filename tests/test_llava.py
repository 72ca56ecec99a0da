"""LLaVA against the PyTorch reference's golden files, and against transformers with random weights."""

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import shared
from family_weights import load
from token_decoding import TokenDecoder

from rlhfv_jax import losses, trees
from rlhfv_jax.data import images
from rlhfv_jax.data.chat import LLAVA_V1, encode_turns
from rlhfv_jax.data.tokenizer import MuffinTokenizer
from rlhfv_jax.decoding.settings import GenerationSettings
from rlhfv_jax.models import clip, vlm
from rlhfv_jax.models.clip import Clip, ClipConfig
from rlhfv_jax.models.llama import LlamaConfig, head_kernel
from rlhfv_jax.models.llava import Llava15Config
from rlhfv_jax.ops.logprobs import token_log_probs
from rlhfv_jax.structs import IGNORE

PLACE = -200  # what stands for an image in the reference's rows
TOKEN = 32_001


@pytest.fixture(scope="module")
def folder() -> Path:
    return shared("fixtures/other-models/llava")


@pytest.fixture(scope="module")
def llava15(folder):
    return load(folder / "tiny-llava15", TOKEN, tower_heads=4)


def nhwc(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def expanded(ids: np.ndarray, queries: int) -> list[int]:
    return [i for token in ids.tolist() for i in ([TOKEN] * queries if token == PLACE else [token])]


def padded(rows: list[list[int]], value: int = 0) -> np.ndarray:
    width = max(map(len, rows))
    return np.asarray([row + [value] * (width - len(row)) for row in rows], np.int32)


@pytest.fixture(params=["15", "10"])
def golden(request, folder):
    """(golden arrays, configuration, parameters, our tokens) of LLaVA 1.5 and of the one with a linear projector."""
    arrays = np.load(folder / f"forward{request.param}.npz")
    heads = {"15": 4, "10": 2}[request.param]
    config, params = load(folder / f"tiny-llava{request.param}", TOKEN, tower_heads=heads)
    ids, mask = arrays["input_ids"], arrays["attention_mask"].astype(bool)
    tokens = padded([expanded(row[keep], config.image_tokens) for row, keep in zip(ids, mask, strict=True)])
    return arrays, config, params, tokens


def close(found, expected, tolerance=1e-4) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, atol=tolerance, rtol=0)


# --- the reference's golden files -----------------------------------------------------------------------------------


def test_the_towers_features_and_the_projectors_are_the_references(golden):
    arrays, config, params, _ = golden
    pixels = nhwc(arrays["pixel_values"])
    features = jax.jit(lambda p, x: Clip(config.tower).apply({"params": p}, x))(params["tower"], pixels)
    close(features, arrays["tower_out"])
    close(features, arrays["clip_hidden_states_all"][-2][:, 1:])
    close(jax.jit(partial(vlm.encode, config))(params, pixels), arrays["projector_out"])


def test_hidden_states_logits_and_log_probs_are_the_references(golden):
    arrays, config, params, tokens = golden
    lengths = arrays["new_lengths"].astype(np.int32)
    labels = arrays["new_labels"][:, 1:].astype(np.int32)
    model = vlm.Vlm(config)

    @jax.jit
    def forward(p, image):
        hidden = model.apply({"params": p}, tokens, image, lengths=lengths)[0]
        return hidden, token_log_probs(hidden[:, :-1], head_kernel(p["llm"]), labels, config.llm.vocab_size)

    hidden, logps = (np.asarray(x) for x in forward(params, nhwc(arrays["pixel_values"])))
    real, scored = np.arange(tokens.shape[1]) < lengths[:, None], labels != IGNORE
    np.testing.assert_array_equal(real, arrays["new_attention_mask"].astype(bool))
    close(hidden[real], arrays["hidden_states_all"][-1][real])
    every = "logits" in arrays
    ids = slice(config.llm.vocab_size) if every else arrays["logits_subset_ids"]
    logits = hidden @ params["llm"]["head"]["kernel"][:, ids]
    close(logits[real], arrays["logits" if every else "logits_subset"][real])
    close(logps[scored], arrays["per_token_logps"][scored])
    close(logps.sum(axis=1), arrays["sum_logps"], 1e-3)
    close(-logps.sum() / scored.sum(), arrays["ce_loss"])


@pytest.mark.slow
def test_gradient_norms_are_the_references_and_the_fixed_layers_have_none(golden, folder):
    arrays, config, params, tokens = golden
    labels, lengths = arrays["new_labels"][:, 1:].astype(np.int32), arrays["new_lengths"]

    def loss(p):
        logps = vlm.log_probs(vlm.Vlm(config), p, nhwc(arrays["pixel_values"]), tokens, labels, lengths)
        return -logps.sum() / (labels != IGNORE).sum()

    grads = dict(trees.paths(jax.jit(jax.grad(loss))(params)))
    norms = json.loads((folder / "grad_norms.json").read_text())["llava15" if config.family == "llava15" else "llava10"]
    for name, path in (("lm_head.weight", "llm/head/kernel"), ("model.norm.weight", "llm/final_norm/scale")):
        assert float(np.linalg.norm(grads[path])) == pytest.approx(norms[name], rel=1e-3)
    for path, grad in grads.items():
        assert bool(np.any(np.asarray(grad))) == ("fixed_" not in path), path


def test_pictures_become_squares_as_the_references(folder):
    """Padded for chat and, here, for training; the central crop is what the released training saw."""
    arrays, forward = np.load(folder / "preprocess.npz"), np.load(folder / "forward15.npz")["pixel_values"]
    config = Llava15Config(clip.large(), LlamaConfig(1, 2, 1, 1, 1, 1), TOKEN)
    pad, crop = (images.fit(name, config.mean) for name in ("pad", "crop"))
    assert pad.keywords["color"] == tuple(arrays["pad_background"])

    def pixels(picture, size):
        return np.asarray(vlm.normalize(images.resize(picture, size)[None], config))[0].transpose(2, 0, 1)

    for i, path in enumerate(sorted((folder / "images").glob("*.png"))):
        picture = images.open_image(path.read_bytes())
        np.testing.assert_array_equal(np.asarray(pad(picture, 56)), arrays[f"{path.stem}_padsquare_uint8_hwc"])
        close(pixels(pad(picture, 56), 56), forward[i], 2e-6)
        close(pixels(pad(picture, 336), 336)[:, 150:182, 100:132], arrays[f"{path.stem}_chat_to336_crop"], 2e-6)
        close(pixels(crop(picture, 56), 56), arrays[f"{path.stem}_train_to56"], 2e-6)
        found = pixels(crop(picture, 336), 336)[:, 150:182, 100:132]
        close(found, arrays[f"{path.stem}_train_to336_crop"], 2e-6)


def test_rows_and_targets_are_the_references(folder, fixtures):
    """The sample that the reference drops, an answer with its own role in it, is an ordinary one here."""
    model = fixtures / "tiny-muffin/tokenizer.model"
    tokenizer = MuffinTokenizer(model.read_bytes(), kind="llava")
    for item in json.loads((folder / "conversation.json").read_text())["conversations"]:
        golden, turns = item["legacy_false"], [turn["value"] for turn in item["conversation"]]
        has_image = PLACE in golden["input_ids"]
        pairs = list(zip(turns[::2], turns[1::2], strict=True))
        tokens, labels, _ = encode_turns(tokenizer, LLAVA_V1, pairs, 1 if has_image else 0)
        expected = np.where(np.asarray(golden["input_ids"]) == PLACE, tokenizer.image_token, golden["input_ids"])
        np.testing.assert_array_equal(tokens, expected, err_msg=item["name"])
        if not golden["warning"]:
            np.testing.assert_array_equal(labels, golden["labels"][1:], err_msg=item["name"])
        prompt = LLAVA_V1.prompt(pairs[-1][0], int(has_image), pairs[:-1])
        asked = [PLACE if token == tokenizer.image_token else token for token in tokenizer.encode(prompt)]
        assert asked == item["legacy_false"].get("inference_input_ids", asked)


@pytest.mark.slow
def test_generated_ids_are_the_references(folder, llava15):
    config, params = llava15
    decoder = TokenDecoder(config, params)
    pixels = {
        name: nhwc(np.load(folder / "forward15.npz")["pixel_values"])[i]
        for i, name in enumerate(sorted(path.stem for path in (folder / "images").glob("*.png")))
    }
    for run in json.loads((folder / "generate.json").read_text()):
        options = run["kwargs"]
        beams, count = options["num_beams"], options["max_new_tokens"]
        settings = GenerationSettings(num_beams=beams, max_new_tokens=count, stop_ids=(2,), temperature=0.0)
        prompt = expanded(np.asarray(run["input_ids"]), config.image_tokens)
        [found] = decoder.ids([prompt], settings, image=pixels[run["image"]][None], image_of=[0])
        assert found == run["sequences"][1:], run["kwargs"]


def test_dpo_on_the_references_batch_has_its_losses_and_gradients(folder, llava15):
    """Its rows, its central crops, the log-probs of another reference; β = 0.1 on sums."""
    config, params = llava15
    arrays = np.load(folder / "dpo.npz")
    image, at = nhwc(arrays["batch_images"]), "beta0.1_avg0_refB"
    tokens, labels = arrays["batch_concatenated_input_ids"], arrays["policy_new_labels"][:, 1:].astype(np.int32)
    rows = [expanded(row, config.image_tokens) for row in tokens]
    ids = padded(rows).reshape(2, 4, -1).swapaxes(0, 1)  # [4 pairs, chosen and rejected, T]
    labels = labels.reshape(2, 4, -1).swapaxes(0, 1)
    weights = (labels != IGNORE).astype(np.float32)
    reference = np.zeros(labels.shape, np.float32)
    for side, name in enumerate(("win", "rej")):
        reference[:, side, 0] = arrays[f"batch_ref_{name}_logp"]
    first = np.zeros(labels.shape, np.float32)
    first[..., 0] = 1.0
    preference = losses.Preference(beta=0.1, average=False)

    def loss(p):
        flat = ids.reshape(8, -1), labels.reshape(8, -1), np.full(8, ids.shape[-1], np.int32)
        logps = vlm.log_probs(vlm.Vlm(config), p, image, *flat).reshape(labels.shape)
        sums = (logps * weights).sum(-1, keepdims=True) * first  # the reference's are known as sums alone
        value, metrics = losses.preference(sums, reference, first, np.ones(4, bool), preference)
        return value, (logps, metrics)

    (value, (logps, _)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    expected = arrays["policy_logp"].reshape(2, 4).swapaxes(0, 1)
    close((np.asarray(logps) * weights).sum(-1), expected, 1e-3)
    close(value, arrays[f"{at}/total_loss"], 2e-4)
    flat = dict(trees.paths(grads))
    pairs = {
        "model.mm_projector.0.weight": flat["projector/up/kernel"].T,
        "model.mm_projector.2.bias": flat["projector/down/bias"],
        "model.layers.1.mlp.down_proj.weight": flat["llm/layers/mlp/down/kernel"][1].T,
        "model.norm.weight": flat["llm/final_norm/scale"],
    }
    for name, found in pairs.items():
        wanted = arrays[f"grad_{at}/{name}"]
        close(found, wanted, 1e-3 * np.abs(wanted).max())


# --- transformers, random weights -----------------------------------------------------------------------------------

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
VISION |= {"image_size": 28, "patch_size": 14}


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    """A random LlavaForConditionalGeneration in torch, saved, and ours from the saved folder."""
    import torch
    import transformers

    torch.manual_seed(0)
    text = transformers.LlamaConfig(
        vocab_size=160, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    both = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION), text_config=text, image_token_index=150
    )
    model = transformers.LlavaForConditionalGeneration(both).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * max(parameter.shape[-1], 2) ** -0.5)
    saved = tmp_path_factory.mktemp("hf") / "llava"
    model.save_pretrained(saved)
    return model, saved, *load(saved, 150)


def test_logits_and_greedy_ids_are_those_of_transformers(hf):
    import torch

    model, _, config, params = hf
    assert (config.family, config.image_tokens) == ("llava15", 4)
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 150, (2, 12)).astype(np.int32)
    tokens[0, 2:6] = tokens[1, 5:9] = 150
    pixels = rng.normal(size=(2, 28, 28, 3)).astype(np.float32)
    inputs = {"input_ids": torch.tensor(tokens), "pixel_values": torch.tensor(pixels.transpose(0, 3, 1, 2).copy())}
    with torch.no_grad():
        expected = model(**inputs).logits.numpy()
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=8, eos_token_id=159, pad_token_id=0)
    hidden, _ = jax.jit(lambda p: vlm.Vlm(config).apply({"params": p}, tokens, pixels))(params)
    found = hidden @ params["llm"]["head"]["kernel"]
    close(found[..., :160], expected)
    settings = GenerationSettings(max_new_tokens=8, stop_ids=(159,), temperature=0.0)
    greedy = TokenDecoder(config, params).ids(tokens.tolist(), settings, image=pixels, image_of=[0, 1])
    for row, want in zip(greedy, ids.numpy()[:, 12:].tolist(), strict=True):
        assert row == want[: len(row)] and len(row) == 8


def test_clips_features_are_those_of_transformers():
    import torch
    import transformers

    torch.manual_seed(1)
    tower = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)).eval()
    config = ClipConfig(28, 14, 32, 3, 4, 48)
    state = {name.removeprefix("vision_model."): value.numpy() for name, value in tower.state_dict().items()}
    params = {
        "patch": {"kernel": state["embeddings.patch_embedding.weight"].transpose(2, 3, 1, 0).reshape(-1, 32)},
        "class_token": state["embeddings.class_embedding"],
        "positions": state["embeddings.position_embedding.weight"],
        "pre_norm": {"scale": state["pre_layrnorm.weight"], "bias": state["pre_layrnorm.bias"]},
        "layers": jax.tree.map(lambda *x: np.stack(x), *(clip_layer(state, i) for i in range(2))),
    }
    pixels = np.random.default_rng(0).normal(size=(2, 28, 28, 3)).astype(np.float32)
    with torch.no_grad():
        states = tower(torch.tensor(pixels.transpose(0, 3, 1, 2).copy()), output_hidden_states=True).hidden_states
    close(Clip(config).apply({"params": params}, pixels), states[-2][:, 1:].numpy())


def clip_layer(state: dict, i: int) -> dict:
    """One layer of transformers' tower, written out here, independent of the conversion table."""
    root = f"encoder.layers.{i}."

    def linear(name: str, inputs: tuple, outputs: tuple) -> dict:
        weight, bias = state[f"{root}{name}.weight"], state[f"{root}{name}.bias"]
        return {"kernel": weight.T.reshape(inputs + outputs), "bias": bias.reshape(outputs)}

    def norm(name: str) -> dict:
        return {"scale": state[f"{root}{name}.weight"], "bias": state[f"{root}{name}.bias"]}

    attention = {part: linear(f"self_attn.{part}_proj", (32,), (4, 8)) for part in "qkv"}
    return {
        "attention_norm": norm("layer_norm1"),
        "mlp_norm": norm("layer_norm2"),
        "attention": attention | {"o": linear("self_attn.out_proj", (4, 8), (32,))},
        "mlp": {"up": linear("mlp.fc1", (32,), (48,)), "down": linear("mlp.fc2", (48,), (32,))},
    }
