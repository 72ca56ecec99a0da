"""OmniLMM against the PyTorch reference's golden files: tower, resampler, language model, gradients, generation."""

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import shared
from family_weights import load
from token_decoding import TokenDecoder

from rlhfv_jax import trees
from rlhfv_jax.conversion.omnilmm import OmniLMM
from rlhfv_jax.data import images
from rlhfv_jax.decoding.settings import GenerationSettings
from rlhfv_jax.models import omnilmm, vlm
from rlhfv_jax.models.eva import Eva
from rlhfv_jax.models.layers import resized_grid
from rlhfv_jax.models.llama import head_kernel
from rlhfv_jax.ops.logprobs import token_log_probs
from rlhfv_jax.structs import IGNORE

PATCH = 591  # the id of <im_patch>


@pytest.fixture(scope="module")
def folder() -> Path:
    return shared("fixtures/other-models/omnilmm")


@pytest.fixture(scope="module")
def golden(folder):
    return np.load(folder / "forward.npz")


@pytest.fixture(scope="module")
def model(folder):
    return load(folder / "tiny-omnilmm", PATCH, tower_heads=4)


def nhwc(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def close(found, expected, tolerance=1e-4) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, atol=tolerance, rtol=0)


def test_positions_are_resampled_by_the_two_bicubics_of_the_reference(folder):
    arrays = np.load(folder / "resampler.npz")
    table, expected = arrays["timm_pos_input_257"][0], arrays["timm_pos_16x16_to_32x32"][0]
    np.testing.assert_array_equal(table[0], expected[0])
    close(resized_grid(table[1:], 1024, antialias=True), expected[1:], 1e-5)
    close(omnilmm.sine_positions(9, 256), arrays["sincos_float32"], 1e-6)
    real = omnilmm.sine_positions(64, 4096)[:, arrays["real_columns"]]
    close(real, arrays["real_sincos_8x8_columns"], 1e-6)
    close(resized_grid(real, 1024), arrays["real_8x8_to_32x32_columns"], 1e-5)


def test_the_tower_is_the_references_at_every_size(golden, model):
    """Its own size, one that positions are interpolated for, and one that is no multiple of a patch."""
    config, params = model
    tower = jax.jit(lambda p, x: Eva(config.tower).apply({"params": p}, x))
    for name in ("", "basesize_", "padimg_"):
        found = tower(params["tower"], nhwc(golden[f"{name}pixel_values"]))
        close(found, golden[f"{name}tower_out"][:, 1:])


def test_the_resampler_is_the_references_for_every_grid(folder, golden, model):
    config, params = model
    arrays = np.load(folder / "resampler.npz")
    resampler = jax.jit(lambda p, x: config.projector().apply({"params": p}, x))
    for grid in ("grid2", "grid3", "grid5"):
        close(resampler(params["projector"], arrays[f"{grid}_input"]), arrays[f"{grid}_output"])
    close(jax.jit(partial(vlm.encode, config))(params, nhwc(golden["pixel_values"])), golden["resampler_out"])


@pytest.fixture(scope="module")
def outputs(golden, model):
    """Hidden states and log-probs of the three rows; the third has no image, and another's does not touch it."""
    config, params = model
    lengths = golden["attention_mask"].sum(axis=1).astype(np.int32)
    tokens, labels = golden["input_ids"].astype(np.int32), golden["labels"][:, 1:].astype(np.int32)

    @jax.jit
    def forward(p, image):
        hidden = vlm.Vlm(config).apply({"params": p}, tokens, image, lengths=lengths)[0]
        return hidden, token_log_probs(hidden[:, :-1], head_kernel(p["llm"]), labels, config.llm.vocab_size)

    hidden, logps = (np.asarray(x) for x in forward(params, nhwc(golden["pixel_values"])))
    return hidden, logps, labels


def test_hidden_states_logits_and_log_probs_are_the_references(golden, model, outputs):
    hidden, logps, labels = outputs
    real, scored = golden["attention_mask"].astype(bool), labels != IGNORE
    close(hidden[real], golden["hidden_states_all"][-1][real])
    logits = hidden @ model[1]["llm"]["head"]["kernel"][:, :600]
    close(logits[real], golden["logits"][real])
    close(logps[scored], golden["per_token_logps"][scored])
    close(logps.sum(axis=1), golden["sum_logps"], 1e-3)
    close(-logps.sum() / scored.sum(), golden["ce_loss"])


@pytest.mark.slow
def test_gradients_are_the_references_and_the_positions_have_none(folder, golden, model):
    """Tower included; compared in PyTorch's layout, through the conversion table read backwards."""
    config, params = model
    tokens, labels = golden["input_ids"].astype(np.int32), golden["labels"][:, 1:].astype(np.int32)
    lengths = golden["attention_mask"].sum(axis=1).astype(np.int32)

    def loss(p):
        logps = vlm.log_probs(vlm.Vlm(config), p, nhwc(golden["pixel_values"]), tokens, labels, lengths)
        return -logps.sum() / (labels != IGNORE).sum()

    grads = dict(trees.paths(jax.jit(jax.grad(loss))(params)))
    form, norms = OmniLMM(), json.loads((folder / "grad_norms.json").read_text())
    norms = norms["grad_norms"]
    arrays, sizes = np.load(folder / "grads.npz"), OmniLMM().sizes(config)
    compared = 0
    for entry in form.entries:
        layers = grads[entry.path] if entry.stack else grads[entry.path][None]
        for name, layer in zip(entry.names(sizes), layers, strict=True):
            found = entry.to_torch(np.asarray(layer), sizes)
            if "fixed_" in entry.path:
                assert not found.any(), name
                continue
            assert found.any(), name
            if norms.get(name) is not None:
                assert float(np.linalg.norm(found)) == pytest.approx(norms[name], rel=1e-3), name
                compared += 1
            if name in arrays:
                close(found, arrays[name], 1e-3 * np.abs(arrays[name]).max())
    assert compared > 60


def test_generated_ids_are_the_references(folder, golden, model):
    """Greedy, penalized and with beams; its left-padded batch attends to padding, which is not ours to repeat."""
    config, params = model
    decoder, pixels = TokenDecoder(config, params), nhwc(golden["pixel_values"])
    runs = [run for run in json.loads((folder / "generate.json").read_text()) if isinstance(run.get("image"), int)]
    assert len(runs) >= 3
    for run in runs:
        options = run["kwargs"]
        if options["num_beams"] > 1 or options.get("repetition_penalty", 1.0) != 1.0:
            continue  # the reference's count a beginning of sequence that the model never sees
        settings = GenerationSettings(max_new_tokens=options["max_new_tokens"], stop_ids=(2,), temperature=0.0)
        [found] = decoder.ids([run["input_ids"]], settings, image=pixels[[run["image"]]], image_of=[0])
        assert found == run["sequences"][1:], options


def test_pictures_are_squashed_as_the_references(folder, golden, model):
    arrays = np.load(folder / "preprocess.npz")
    fit = images.fit(model[0].fit, model[0].mean)
    for i, path in enumerate(sorted((folder / "images").glob("*.png"))):
        picture = fit(images.open_image(path.read_bytes()), 84)
        square = images.resize(picture, 84)
        np.testing.assert_array_equal(square, arrays[f"{path.stem}_to84_uint8_hwc"])
        close(vlm.normalize(square[None], model[0])[0], nhwc(golden["pixel_values"])[i], 2e-6)
