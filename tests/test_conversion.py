"""Weights go from PyTorch to Orbax and back without a changed bit, by a table that misses nothing."""

import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from conftest import shared
from safetensors.numpy import save_file
from torch_weights import TINY_MUFFIN, tiny_muffin

from rlhfv_jax import checkpoint, sharding, trees
from rlhfv_jax.conversion import job, layouts, sizes, torch_files
from rlhfv_jax.conversion.job import Options
from rlhfv_jax.conversion.layout import Hints
from rlhfv_jax.errors import UserError
from rlhfv_jax.models import muffin, vlm

FORM = layouts.LAYOUTS["muffin"]


def restore(path: Path, config=TINY_MUFFIN, dtype=None):
    """The checkpoint's parameters by the ordinary way."""
    return checkpoint.restore_params(path, vlm.abstract_params(config), sharding.make_mesh(fsdp=1), dtype)


def state_dict(path: Path) -> dict[str, np.ndarray]:
    tensors = torch_files.open_tensors(path)
    return {name: np.array(tensors.read(name)) for name in tensors.shapes}


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    """Equal names, shapes, dtypes and bits."""
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert (array.shape, array.dtype) == (second[name].shape, second[name].dtype), name
        assert array.tobytes() == second[name].tobytes(), name


@pytest.fixture(scope="module")
def original() -> Path:
    """The reference's float32 file; beside it lies a float16 one, a tokenizer and config.json."""
    return shared("fixtures/tiny-muffin/pytorch_model.bin")


@pytest.fixture(scope="module")
def converted(original, tmp_path_factory) -> tuple[Path, dict]:
    """The reference's checkpoint as Orbax, and the report."""
    folder = tmp_path_factory.mktemp("converted") / "orbax"
    return folder, job.run_to_orbax(Options(str(original), str(folder), tower_heads=4, verify=True))


@pytest.fixture(scope="module")
def exported(converted, tmp_path_factory) -> tuple[Path, dict]:
    """And back."""
    folder = tmp_path_factory.mktemp("exported") / "torch"
    return folder, job.run_to_torch(Options(str(converted[0]), str(folder), verify=True))


def test_every_parameter_is_what_an_independent_loader_makes_of_the_file(converted):
    found, expected = restore(converted[0]), tiny_muffin()
    assert trees.diff(expected, found) == []
    assert trees.digest(found) == trees.digest(expected)


def test_the_report_accounts_for_every_tensor_on_both_sides(converted, original):
    names = torch_files.open_tensors(original).shapes
    report = converted[1]
    assert report["tensors"] + len(report["ignored"]) == len(names) == 115
    assert report["verified"] == report["tensors"] == 113
    assert all(name.endswith("inv_freq") for name in report["ignored"])
    assert report["parameters"] == len(list(trees.paths(restore(converted[0]))))


def test_a_round_trip_in_float32_changes_no_bit_name_or_shape(original, exported):
    """Rotary tables included, which the reference saves and the export computes."""
    same(state_dict(original), state_dict(exported[0]))
    assert exported[1]["verified"] == 113


def test_a_round_trip_in_bfloat16_changes_no_bit(original, converted, tmp_path):
    """The reference's weights are exact in bfloat16. Out in bfloat16, in as bfloat16, out in float32."""
    job.run_to_torch(Options(str(converted[0]), str(tmp_path / "half"), dtype="bfloat16", verify=True))
    half = state_dict(tmp_path / "half")
    weights = {name: array for name, array in half.items() if not name.endswith("inv_freq")}
    assert {array.dtype for array in weights.values()} == {np.dtype(ml_dtypes.bfloat16)}
    job.run_to_orbax(
        Options(str(tmp_path / "half"), str(tmp_path / "orbax"), dtype="bfloat16", tower_heads=4, verify=True)
    )
    stored = checkpoint.stored_params(tmp_path / "orbax")
    assert {np.dtype(leaf.dtype) for leaf in jax.tree.leaves(stored)} == {np.dtype(ml_dtypes.bfloat16)}
    job.run_to_torch(Options(str(tmp_path / "orbax"), str(tmp_path / "again"), verify=True))
    same(half, state_dict(tmp_path / "again"))
    job.run_to_torch(Options(str(tmp_path / "orbax"), str(tmp_path / "full"), dtype="float32"))
    same(state_dict(original), state_dict(tmp_path / "full"))


def test_a_bfloat16_checkpoint_is_restored_as_float32_only_when_asked(converted, tmp_path):
    out = tmp_path / "half"
    job.run_to_torch(Options(str(converted[0]), str(tmp_path / "torch"), dtype="bfloat16"))
    job.run_to_orbax(Options(str(tmp_path / "torch"), str(out), dtype="bfloat16", tower_heads=4))
    with pytest.raises(UserError, match=r"expected float32\[.*found bfloat16"):
        restore(out)
    assert trees.digest(restore(out, dtype=np.float32)) == trees.digest(tiny_muffin())


def test_the_exported_directory_says_what_the_released_one_says(original, exported):
    folder = exported[0]
    theirs, ours = (json.loads((path / "config.json").read_text()) for path in (original.parent, folder))
    assert {key: ours.get(key) for key in theirs if key not in ("max_position_embeddings", "transformers_version")} == {
        key: value for key, value in theirs.items() if key not in ("max_position_embeddings", "transformers_version")
    }
    assert json.loads((folder / "added_tokens.json").read_text()) == json.loads(
        (original.parent / "added_tokens.json").read_text()
    )
    assert (folder / "tokenizer.model").read_bytes() == (original.parent / "tokenizer.model").read_bytes()


def test_safetensors_shards_and_one_bin_file_are_the_same_checkpoint(original, converted, exported, tmp_path):
    """Exported in shards of 2 MB, found through their index, converted again."""
    sharded = tmp_path / "sharded"
    job.run_to_torch(Options(str(converted[0]), str(sharded), shard_gb=0.002))
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in state_dict(sharded).values())
    same(state_dict(original), state_dict(sharded))
    job.run_to_orbax(Options(str(sharded), str(tmp_path / "again"), tower_heads=4))
    assert trees.digest(restore(tmp_path / "again")) == trees.digest(restore(converted[0]))


@pytest.mark.parametrize("beside", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_safetensors_are_read_where_a_directory_has_both(beside, tmp_path):
    save_file({"a.weight": np.ones((2, 3), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / beside).write_text('{"weight_map": {"b.weight": "pytorch_model-00001-of-00001.bin"}}')
    assert dict(torch_files.open_tensors(tmp_path).shapes) == {"a.weight": (2, 3)}


def test_a_directory_in_float16_is_widened_without_a_changed_value(original, converted, tmp_path):
    """The reference's model.safetensors holds the same values, every one exact in float16."""
    assert {a.dtype.name for a in state_dict(original.parent).values()} == {"float16", "float32"}
    job.run_to_orbax(Options(str(original.parent), str(tmp_path / "orbax"), tower_heads=4, verify=True))
    assert trees.digest(restore(tmp_path / "orbax")) == trees.digest(restore(converted[0]))


def test_what_training_saves_is_exported_too(converted, tmp_path):
    """A checkpoint written by the training loop is chunked otherwise and has an optimizer beside it."""
    params = jax.tree.map(lambda x: x + 1, restore(converted[0]))
    state = checkpoint.TrainState(np.int32(7), params, {"mu": params["projector"]})
    with checkpoint.Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.save(state, checkpoint.read_meta(converted[0]))
    report = job.run_to_torch(Options(str(tmp_path / "run"), str(tmp_path / "torch"), verify=True))
    assert report["verified"] == 113
    found = state_dict(tmp_path / "torch")
    expected = state_dict(shared("fixtures/tiny-muffin/pytorch_model.bin"))
    for name in ("model.query", "lm_head.weight", "model.layers.1.self_attn.k_proj.weight"):
        np.testing.assert_array_equal(found[name], expected[name] + 1)


# --- dry runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released 13B model."""
    return dict(torch_files.read_list(shared("fixtures/muffin13b_keys.txt")))


def test_the_released_13b_is_recognised_from_names_and_shapes_alone(released):
    report = job.run_to_orbax(Options(str(shared("fixtures/muffin13b_keys.txt")), dry_run=True))
    assert (report["tensors"], len(report["ignored"]), len(released)) == (1335, 40, 1375)
    assert report["scalars"] == 13_628_976_128
    assert sizes.plan(released, Hints()).config == muffin.muffin_13b()


def damaged(released: dict, name: str):
    """Every way in which one line can be wrong: gone, renamed, and each axis one longer."""
    without = {key: shape for key, shape in released.items() if key != name}
    yield "removed", without
    yield "renamed", without | {name + "x": released[name]}
    for axis, length in enumerate(released[name]):
        shape = (*released[name][:axis], length + 1, *released[name][axis + 1 :])
        yield f"axis {axis}", released | {name: shape}


def undetected(released: dict, names: list[str], hints: Hints) -> list[tuple[str, str]]:
    """The damages that pass a dry run, or fail it without the tensor's name."""
    missed = []
    for name in names:
        for kind, shapes in damaged(released, name):
            try:
                sizes.plan(shapes, hints)
                missed.append((name, kind))
            except UserError as error:
                if name not in str(error):
                    missed.append((name, kind))
    return missed


# One tensor alone tells these sizes, so any length is a possible model; --model=muffin_13b states them.
FREE = {("model.query", "axis 0"), ("model.vision_tower.beit3.encoder.embed_positions.B.weight", "axis 0")}


def one_of_a_kind(names: list[str]) -> list[str]:
    return [name for name in names if ".layers." not in name or ".layers.7." in name or ".layers.39." in name]


def test_one_wrong_line_fails_a_dry_run_by_name(released):
    names = one_of_a_kind(sizes.set_aside(released, FORM)[0])[::6]
    missed = undetected(released, names, Hints())
    assert set(missed) <= FREE


def test_with_the_models_name_no_wrong_line_passes(released):
    names = [name for name, _ in FREE]
    assert undetected(released, names, Hints(FORM.sizes(muffin.muffin_13b()))) == []


@pytest.mark.long
def test_every_wrong_line_fails_a_dry_run_by_name(released):
    names = list(sizes.set_aside(released, FORM)[0])
    assert set(undetected(released, names, Hints())) <= FREE
    assert undetected(released, names, Hints(FORM.sizes(muffin.muffin_13b()))) == []


def test_an_index_alone_is_checked_by_its_names(original, tmp_path):
    """Sizes then come from config.json."""
    names = torch_files.open_tensors(original).shapes
    shutil.copy(original.parent / "config.json", tmp_path)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "pytorch_model-00001-of-00002.bin")}))
    known = {"tower_width": 64, "tower_layers": 2, "tower_ffn": 256, "tower_heads": 4, "patch_x": 16, "patch_y": 16}
    known |= {"image_positions": 19, "query_positions": 1024}
    hints = sizes.hints_from_config(json.loads((tmp_path / "config.json").read_text()), known, FORM)
    listed = torch_files.open_tensors(tmp_path).shapes
    assert set(listed.values()) == {None}
    assert sizes.plan(listed, hints).config == TINY_MUFFIN
    released = {"mm_vision_tower": "beit3_large_patch16_448"}
    from_config = sizes.hints_from_config(json.loads((tmp_path / "config.json").read_text()) | released, {}, FORM)
    with pytest.raises(UserError, match=r"The shape of \S+B\.weight is not known, and with it the size query_pos"):
        sizes.plan(listed, from_config)
    fewer = {name: shape for name, shape in listed.items() if name != "model.norm.weight"}
    with pytest.raises(UserError, match=r"model\.norm\.weight is missing"):
        sizes.plan(fewer, hints)


def test_what_the_tower_and_the_config_disagree_on_is_named(original):
    shapes = torch_files.open_tensors(original).shapes
    with pytest.raises(UserError, match="give it as --tower_heads"):
        sizes.plan(shapes, Hints())
    config = json.loads((original.parent / "config.json").read_text())
    wrong = sizes.hints_from_config(config | {"num_query": 9}, {"tower_heads": 4}, FORM)
    with pytest.raises(UserError, match=r"model\.query has shape \(8, 64\), expected \(9, 64\)"):
        sizes.plan(shapes, wrong)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rotary positions of type 'linear'"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"hidden_size": 64, "num_attention_heads": 4, "head_dim": 32}, "head_dim=32"),
    ],
)
def test_a_llama_that_ours_is_not_is_refused(config, words):
    with pytest.raises(UserError, match=words):
        sizes.hints_from_config(config, {}, FORM)


def test_extra_tensors_are_errors_unless_ignored_by_name(released):
    more = released | {"mlm_head.weight": (64_010, 1024)}
    with pytest.raises(UserError, match=r"mlm_head\.weight is unknown"):
        sizes.plan(more, Hints())
    assert "mlm_head.weight" in sizes.plan(more, Hints(), [r"mlm_head\..*"]).ignored
    unused = {"model.vision_tower.beit3.text_embed.weight": (64_010, 1024)}
    unused["model.vision_tower.beit3.vision_embed.mask_token"] = (1, 1, 1024)
    assert set(unused) <= set(sizes.plan(released | unused, Hints()).ignored)
