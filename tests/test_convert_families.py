"""Every family's weights go from PyTorch to Orbax and back without a changed bit, in every form that they come in."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import shared
from test_conversion import same, state_dict

from rlhfv_jax import checkpoint, settings
from rlhfv_jax.conversion import job, layouts, sizes, torch_files
from rlhfv_jax.conversion.job import Options
from rlhfv_jax.conversion.layout import Hints
from rlhfv_jax.errors import UserError
from rlhfv_jax.models import llava


@pytest.fixture(scope="module")
def others():
    return shared("fixtures/other-models")


@pytest.fixture(scope="module")
def llama_tokenizer():
    return str(shared("fixtures/tiny-muffin/tokenizer.model"))


@pytest.fixture(scope="module")
def llava15(others, llama_tokenizer, tmp_path_factory):
    """The reference's tiny LLaVA 1.5, its CLIP inside, as Orbax in its own bfloat16."""
    folder = tmp_path_factory.mktemp("llava15") / "orbax"
    options = Options(
        str(others / "llava/tiny-llava15"), str(folder), "bfloat16", llama_tokenizer, tower_heads=4, verify=True
    )
    report = job.run_to_orbax(options)
    assert report["model"] == "llava15" and report["verified"] == report["tensors"]
    return folder


def test_llava_goes_there_and_back_without_a_changed_bit(others, llava15, tmp_path):
    """Layers that LLaVA never reads included."""
    job.run_to_torch(Options(str(llava15), str(tmp_path / "torch"), verify=True))
    original = state_dict(others / "llava/tiny-llava15")
    same(original, state_dict(tmp_path / "torch"))
    folders = others / "llava/tiny-llava15", tmp_path / "torch"
    theirs, ours = (json.loads((folder / "config.json").read_text()) for folder in folders)
    for key in ("model_type", "architectures", "hidden_size", "rms_norm_eps", "mm_projector_type", "vocab_size"):
        assert ours[key] == theirs[key], key


def test_a_clip_beside_is_the_clip_inside(others, llava15, llama_tokenizer, tmp_path):
    """Of the reference's file without its tower; and one inside gives way to the one that is named."""
    tensors = state_dict(others / "llava/tiny-llava15")
    bare = {name: value for name, value in tensors.items() if "vision_tower" not in name}
    save(bare, tmp_path / "bare", others / "llava/tiny-llava15/config.json")
    tower = str(others / "llava/clip-tiny")
    options = {"tokenizer": llama_tokenizer, "tower": tower, "tower_heads": 4, "dtype": "bfloat16"}
    job.run_to_orbax(Options(str(tmp_path / "bare"), str(tmp_path / "orbax"), **options))
    job.run_to_torch(Options(str(tmp_path / "orbax"), str(tmp_path / "torch")))
    same(tensors, state_dict(tmp_path / "torch"))
    with pytest.raises(UserError, match=r"no vision tower .*; give the folder of its CLIP as --tower"):
        job.run_to_orbax(Options(str(tmp_path / "bare"), str(tmp_path / "none"), tokenizer=llama_tokenizer))


def test_llava_1_0_goes_there_and_back_without_a_changed_bit(others, llama_tokenizer, tmp_path):
    """Of the tiny 1.5 with the linear projector and the four rows of added tokens that 1.0 has."""
    tensors = state_dict(others / "llava/tiny-llava15")
    bits, rng = tensors["model.norm.weight"].dtype, np.random.default_rng(0)
    for name in [name for name in tensors if "mm_projector" in name]:
        del tensors[name]
    for name, shape in {"model.mm_projector.weight": (12, 32), "model.mm_projector.bias": (12,)}.items():
        tensors[name] = rng.normal(size=shape).astype(bits)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = np.concatenate([tensors[name], rng.normal(size=(4, 12)).astype(bits)])
    config = json.loads((others / "llava/tiny-llava15/config.json").read_text())
    config |= {"vocab_size": 32_004, "mm_projector_type": "linear", "mm_use_im_patch_token": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save(tensors, tmp_path / "llava", tmp_path / "config.json")
    options = Options(
        str(tmp_path / "llava"), str(tmp_path / "orbax"), "bfloat16", llama_tokenizer, tower_heads=4, verify=True
    )
    assert job.run_to_orbax(options)["model"] == "llava"
    job.run_to_torch(Options(str(tmp_path / "orbax"), str(tmp_path / "torch"), verify=True))
    same(tensors, state_dict(tmp_path / "torch"))
    assert json.loads((tmp_path / "torch/config.json").read_text())["mm_projector_type"] == "linear"


def save(tensors: dict, folder, config) -> None:
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    shutil.copy(config, folder)
    as_torch = {name: torch.from_numpy(array.view(np.int16).copy()) for name, array in tensors.items()}
    save_file({name: value.view(torch.bfloat16) for name, value in as_torch.items()}, folder / "model.safetensors")


def test_llava_becomes_hugging_faces_and_comes_back(others, llava15, llama_tokenizer, tmp_path):
    """From the original form to `llava-hf`, opened by transformers with nothing missing, and back."""
    import transformers

    job.run_to_torch(Options(str(llava15), str(tmp_path / "hf"), layout="llava_hf", verify=True))
    _, found = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), found
    assert (tmp_path / "hf/tokenizer.model").read_bytes() == Path(llama_tokenizer).read_bytes()
    job.run_to_orbax(Options(str(tmp_path / "hf"), str(tmp_path / "orbax"), "bfloat16", verify=True))
    records = [checkpoint.read_meta(folder)["model"] for folder in (llava15, tmp_path / "orbax")]
    assert records[0] == records[1]
    job.run_to_torch(Options(str(tmp_path / "orbax"), str(tmp_path / "torch")))
    same(state_dict(others / "llava/tiny-llava15"), state_dict(tmp_path / "torch"))


def test_what_newer_transformers_write_is_read_and_written_back(llava15, tmp_path):
    """They leave `vision_model.` out of the tower's names."""
    import transformers

    job.run_to_torch(Options(str(llava15), str(tmp_path / "hf"), layout="llava_hf"))
    model = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf")
    model.save_pretrained(tmp_path / "saved")
    shutil.copy(tmp_path / "hf/tokenizer.model", tmp_path / "saved")
    job.run_to_orbax(Options(str(tmp_path / "saved"), str(tmp_path / "orbax"), "bfloat16", verify=True))
    job.run_to_torch(Options(str(tmp_path / "orbax"), str(tmp_path / "again"), layout="llava_hf"))
    same(state_dict(tmp_path / "hf"), state_dict(tmp_path / "again"))


def test_the_released_llava_is_recognized_from_names_and_shapes_alone(others):
    keys = others / "llava/llava15_7b_keys.txt"
    report = job.run_to_orbax(Options(str(keys), model="llava15_7b", dry_run=True))
    assert (report["model"], report["tensors"], report["scalars"]) == ("llava15", 686, 7_062_902_784)
    shapes = dict(torch_files.read_list(keys))
    assert layouts.LAYOUTS["llava15"].sizes(llava.llava15_7b()) == report["sizes"]
    for name, shape in list(shapes.items())[::60]:
        wrong = shapes | {name: (*shape[:-1], shape[-1] + 1)}
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            sizes.plan(wrong, Hints(report["sizes"]))


def test_a_form_of_another_family_is_refused(llava15, tmp_path):
    with pytest.raises(UserError, match="choose one of llava15, llava_hf"):
        job.run_to_torch(Options(str(llava15), str(tmp_path / "torch"), layout="muffin"))


def test_the_record_says_which_family_it_is(llava15):
    record = checkpoint.read_meta(llava15)
    config = settings.model_of(record)
    assert (config.family, config.image_token, record["template"]) == ("llava15", 32_001, "llava_v1")
    assert record["tokenizer_kind"] == "llava"


# --- OmniLMM --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def omnilmm(others, tmp_path_factory):
    """The reference's tiny OmniLMM as Orbax, with a tokenizer.json that has its added tokens."""
    folder = tmp_path_factory.mktemp("omnilmm")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(others / "omnilmm/tiny-omnilmm" / name, folder)
    words = {f"w{i}": i for i in range(600)} | {"<s>": 1, "</s>": 2, "<unk>": 0}
    special = {"<im_patch>": 591, "<im_start>": 592, "<im_end>": 593}
    words = {word: i for word, i in words.items() if word not in {f"w{i}" for i in (0, 1, 2, 591, 592, 593)}} | special
    save_tokenizer(words, [*special, "<s>", "</s>"], folder)
    (folder / "tokenizer.model").write_bytes(b"not read: it does not know the added tokens")
    report = job.run_to_orbax(Options(str(folder), str(folder / "orbax"), "bfloat16", tower_heads=4, verify=True))
    assert report["model"] == "omnilmm" and report["verified"] == report["tensors"]
    return folder / "orbax"


def save_tokenizer(words: dict, special: list[str], folder: Path) -> None:
    import tokenizers
    import transformers

    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>")
    fast.add_special_tokens({"additional_special_tokens": special})
    fast.save_pretrained(folder)


def test_omnilmm_goes_there_and_back_without_a_changed_bit(others, omnilmm, tmp_path):
    """Its resampler's positions as they are, rounded."""
    job.run_to_torch(Options(str(omnilmm), str(tmp_path / "torch"), verify=True))
    same(state_dict(others / "omnilmm/tiny-omnilmm"), state_dict(tmp_path / "torch"))
    folders = others / "omnilmm/tiny-omnilmm", tmp_path / "torch"
    theirs, ours = (json.loads((folder / "config.json").read_text()) for folder in folders)
    unequal = {key for key in theirs if ours.get(key) != theirs[key]}
    assert unequal <= {"max_position_embeddings", "transformers_version", "use_cache"}
    config = settings.model_of(checkpoint.read_meta(omnilmm))
    assert (config.image_token, config.tower.image_size, config.llm.window) == (591, 84, 4096)


def test_the_12b_omnilmm_is_recognized_from_names_and_shapes_alone(others):
    keys = others / "omnilmm/omnilmm12b_keys.txt"
    report = job.run_to_orbax(Options(str(keys), model="omnilmm_12b", dry_run=True))
    assert (report["model"], report["tensors"], report["scalars"]) == ("omnilmm", 1130, 11_614_393_088)
    shapes = dict(torch_files.read_list(keys))
    for name, shape in list(shapes.items())[::120]:
        wrong = shapes | {name: (*shape[:-1], shape[-1] + 1)}
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            sizes.plan(wrong, Hints(report["sizes"]))
