"""LLaMAs of transformers and llama2.c are the same function before, in between and after; Muffin from its parts."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shared
from token_decoding import TokenDecoder

from rlhfv_jax import checkpoint, settings, sharding
from rlhfv_jax.conversion import job, layouts, torch_files
from rlhfv_jax.conversion.job import Options
from rlhfv_jax.conversion.muffin import build_muffin
from rlhfv_jax.data import tokenizer_record
from rlhfv_jax.decoding.settings import GenerationSettings
from rlhfv_jax.errors import UserError
from rlhfv_jax.models import beit3, llama, vlm
from rlhfv_jax.models.llama import LlamaConfig


@pytest.fixture(scope="module")
def tokenizer_file() -> str:
    return str(shared("data/stories260K/tok512.model"))


def make_llama(folder: Path, kv_heads: int = 2, tied: bool = False):
    """A random LLaMA saved by transformers, in several shards."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        initializer_range=0.2,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder, max_shard_size="60KB")
    return model


def their_logits(model, tokens: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


def load(path: Path) -> tuple[LlamaConfig, dict]:
    config = settings.build(LlamaConfig, checkpoint.read_meta(path)["model"]["llm"])
    return config, checkpoint.restore_params(path, vlm.abstract_params(config), sharding.make_mesh(fsdp=1))


def our_logits(path: Path, tokens: np.ndarray) -> np.ndarray:
    config, params = load(path)
    hidden, _ = llama.Llama(config).apply({"params": params["llm"]}, tokens.astype(np.int32))
    return np.asarray(hidden @ llama.head_kernel(params["llm"]))[..., : config.vocab_size]


@pytest.mark.parametrize(("kv_heads", "tied"), [(2, False), (2, True), pytest.param(4, False, marks=pytest.mark.slow)])
def test_a_llama_gives_the_same_logits_before_in_between_and_after(tmp_path, tokenizer_file, kv_heads, tied):
    """From transformers' own shards, through Orbax, to a directory that transformers opens."""
    import transformers

    model = make_llama(tmp_path / "theirs", kv_heads, tied)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    report = job.run_to_orbax(
        Options(str(tmp_path / "theirs"), str(tmp_path / "ours"), tokenizer=tokenizer_file, verify=True)
    )
    assert report["model"] == "llama"
    tokens = np.random.default_rng(0).integers(0, 512, (2, 19))
    expected = their_logits(model, tokens)
    np.testing.assert_allclose(our_logits(tmp_path / "ours", tokens), expected, atol=1e-4)
    job.run_to_torch(Options(str(tmp_path / "ours"), str(tmp_path / "back"), verify=True))
    again, info = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "back", output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    np.testing.assert_array_equal(their_logits(again.eval(), tokens), expected)


def test_stories260k_tells_its_documented_story(tmp_path, tokenizer_file):
    """A really trained LLaMA with grouped-query heads, converted, restored and decoded greedily with the cache."""
    story = shared("data/stories260K/golden_greedy.txt").read_text()
    job.run_to_orbax(
        Options(
            str(shared("data/stories260K/stories260K.bin")),
            str(tmp_path / "stories"),
            tokenizer=tokenizer_file,
            model="stories260k",
            verify=True,
        )
    )
    config, params = load(tmp_path / "stories")
    assert config == llama.stories260k()
    tokenizer = tokenizer_record.from_record(checkpoint.read_meta(tmp_path / "stories"))
    greedy = GenerationSettings(256, stop_ids=(tokenizer.bos_id,))
    [tokens] = TokenDecoder(config, params).ids([[tokenizer.bos_id]], greedy)
    assert tokenizer.decode([token for token in tokens if token != tokenizer.bos_id]) == story


# --- Muffin from its parts ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare_tower(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """A bare BEiT-3 in the form of its release: the fixture's tower with a text embedding, under `model`."""
    import torch

    reference = torch.load(shared("fixtures/tiny-muffin/pytorch_model.bin"), weights_only=True)
    root = "model.vision_tower."
    state = {name.removeprefix(root): tensor for name, tensor in reference.items() if name.startswith(root)}
    state["beit3.text_embed.weight"] = torch.randn(100, 64, generator=torch.Generator().manual_seed(0))
    state["beit3.vision_embed.mask_token"] = torch.zeros(1, 1, 64)
    path = tmp_path_factory.mktemp("tower") / "beit3_tiny_patch16_64.pth"
    torch.save({"model": state}, path)
    return path, {name: tensor.numpy() for name, tensor in state.items()}


def test_a_muffin_is_built_from_llama_and_beit3(tmp_path, tokenizer_file, bare_tower):
    path, tower = bare_tower
    theirs = make_llama(tmp_path / "llama").state_dict()
    options = Options(
        str(tmp_path / "llama"),
        str(tmp_path / "muffin"),
        tokenizer=tokenizer_file,
        tower=str(path),
        queries=6,
        image_size=96,
        tower_heads=4,
        verify=True,
    )
    report = job.run_to_orbax(options)
    assert sorted(name.rsplit(".", 2)[-2] for name in report["ignored"]) == ["text_embed", "vision_embed"]
    config = settings.model_of(checkpoint.read_meta(tmp_path / "muffin"))
    assert (config.tower.image_size, config.tower.queries, config.llm.vocab_size) == (96, 6, 516)
    assert config.image_token == 513
    params = checkpoint.restore_params(tmp_path / "muffin", vlm.abstract_params(config), sharding.make_mesh(fsdp=1))
    query, text = params["tower"]["query"], tower["beit3.text_embed.weight"]
    np.testing.assert_array_equal(query[0], text[0])
    np.testing.assert_array_equal(query[-1], text[2])
    assert 0.005 < np.std(query[1:-1]) < 0.03 and np.abs(query[1:-1]).max() <= 0.04
    for name, table in (("model.embed_tokens", params["llm"]["embed"]["embedding"]),):
        words = theirs[f"{name}.weight"].numpy()
        np.testing.assert_array_equal(table[:512], words)
        np.testing.assert_allclose(table[512:516], np.repeat(words.mean(0, keepdims=True), 4, 0), atol=1e-6)
        assert not np.any(table[516:])
    patch = tower["beit3.vision_embed.proj.weight"].transpose(2, 3, 1, 0).reshape(-1, 64)
    np.testing.assert_array_equal(params["tower"]["patch"]["kernel"], patch)
    assert params["tower"]["positions"]["A"].shape == (36 + 3, 64)
    assert 0 < np.abs(params["projector"]["kernel"]).max() <= 64**-0.5 and not np.any(params["projector"]["bias"])
    image = np.zeros((1, 96, 96, 3), np.uint8)
    tokens = np.array([[1, 514, *[513] * 6, 515, 7]], np.int32)
    vlm.check_image_tokens(tokens, config)
    hidden = jax.jit(lambda p: vlm.Vlm(config).apply({"params": p}, tokens, image)[0])(params)
    assert np.isfinite(hidden).all()
    job.run_to_torch(Options(str(tmp_path / "muffin"), str(tmp_path / "back"), verify=True))


def test_the_same_seed_builds_the_same_muffin(tmp_path, bare_tower):
    make_llama(tmp_path / "llama")
    llm, tower = torch_files.open_tensors(tmp_path / "llama"), torch_files.open_tensors(bare_tower[0])
    first, again, other = (build_muffin(llm, tower, 6, seed) for seed in (1, 1, 2))
    for name in ("model.query", "model.mm_projector.weight"):
        np.testing.assert_array_equal(first.read(name), again.read(name))
        assert np.any(first.read(name) != other.read(name))
        assert first.read(name).shape == first.shapes[name]


def test_a_part_that_is_not_what_it_should_be_is_refused(tmp_path, bare_tower):
    make_llama(tmp_path / "llama")
    llm, tower = torch_files.open_tensors(tmp_path / "llama"), torch_files.open_tensors(bare_tower[0])
    with pytest.raises(UserError, match=r"no beit3\.text_embed\.weight"):
        build_muffin(llm, llm, 6, 0)
    with pytest.raises(UserError, match=r"no model\.embed_tokens\.weight"):
        build_muffin(tower, tower, 6, 0)
    with pytest.raises(UserError, match="--queries=1"):
        build_muffin(llm, tower, 1, 0)


# --- position interpolation -----------------------------------------------------------------------------------------


def test_positions_are_interpolated_as_the_reference_does():
    golden = np.load(shared("fixtures/posembed.npz"))
    found = beit3.interpolate_positions(golden["input_224"], 28**2)
    np.testing.assert_allclose(found, golden["output_224_to_448"], atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [(14, 28), (14, 24), (28, 14), (4, 7), (7, 4), (5, 5), (1, 3)])
def test_interpolation_up_and_down_equals_torch(old, new):
    import torch

    table = np.random.default_rng(0).normal(size=(old**2 + 3, 8)).astype(np.float32)
    grid = torch.from_numpy(table[3:]).reshape(1, old, old, 8).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    found = np.asarray(beit3.interpolate_positions(table, new**2))
    np.testing.assert_array_equal(found[:3], table[:3])
    np.testing.assert_allclose(found[3:], resized.permute(0, 2, 3, 1).reshape(-1, 8).numpy(), atol=1e-5)


def test_a_converted_towers_image_size_can_change(tmp_path):
    source = str(shared("fixtures/tiny-muffin"))
    job.run_to_orbax(Options(source, str(tmp_path / "larger"), image_size=128, tower_heads=4, verify=True))
    config = settings.model_of(checkpoint.read_meta(tmp_path / "larger"))
    assert config.tower.image_size == 128
    with pytest.raises(UserError, match="--image_size=100 is not a positive multiple of the patch size 16"):
        job.run_to_orbax(Options(source, str(tmp_path / "odd"), image_size=100, tower_heads=4))
    with pytest.raises(ValueError, match="both must be squares"):
        beit3.interpolate_positions(np.zeros((8, 2)), 9)


def test_named_sizes_are_those_of_the_published_models():
    """Against the parameter counts of Hugging Face's LLaMA 7B and 13B, and sizes by name on the command line."""
    counts = {"llama_7b": 6_738_415_616, "llama_13b": 13_015_864_320}
    for name, expected in counts.items():
        config = llama.SIZES[name]()
        known = layouts.LLAMA_ALONE.sizes(config)
        assert (
            sum(int(np.prod(e.torch_shape(known))) * len(e.names(known)) for e in layouts.LLAMA_ALONE.entries)
            == expected
        )
    assert {"muffin_13b", "llama_7b", "llama_13b", "stories260k"} <= set(job.NAMED)
    tower = jax.eval_shape(lambda k: beit3.Beit3(beit3.large()).init(k, jnp.zeros((1, 448, 448, 3))), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(tower)) == 607_757_312 + 64 * 1024
