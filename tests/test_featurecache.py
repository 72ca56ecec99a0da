"""Cached image features: the same training as with pixels, and an error for anything that they are not of."""

import dataclasses
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhfv_jax import experiment, featurecache, metrics, sharding, trees
from rlhfv_jax.data import pipeline
from rlhfv_jax.data.features import FeatureFile
from rlhfv_jax.errors import UserError
from rlhfv_jax.models import vlm

FACTS = {"tower": "abc", "dtype": "float32", "sizes": {"width": 16}}


@pytest.fixture(scope="module")
def encode(tiny_config, tiny_params):
    model = vlm.Vlm(tiny_config)
    return jax.jit(lambda image: vlm.tower_outputs(model, tiny_params, image))


@pytest.fixture(scope="module")
def path(tmp_path_factory, coco_records, encode, tiny_config) -> Path:
    where = tmp_path_factory.mktemp("features") / "features.arrow"
    mesh = sharding.make_mesh(data=4, fsdp=2)
    with jax.set_mesh(mesh):
        featurecache.compute(where, FACTS, coco_records[:13], encode, tiny_config.tower.image_size, 8, mesh)
    return where


def test_every_image_has_its_own_towers_outputs_in_any_order_and_process(path, coco_records, encode, tiny_config):
    found = featurecache.load(path, FACTS, coco_records[12:4:-1])
    other = pickle.loads(pickle.dumps(found))  # as a worker process gets it
    assert len(pickle.dumps(found)) < 1000
    for record in coco_records[:13]:
        pixels = pipeline.pixels(record, tiny_config.tower.image_size)
        wanted = encode(pixels[None])[0]
        np.testing.assert_allclose(found[record.image], wanted, atol=2e-5)
        np.testing.assert_array_equal(other[record.image], found[record.image])


def test_a_models_hidden_states_are_those_of_the_pixels(path, coco_records, tiny_config, tiny_params):
    model = vlm.Vlm(tiny_config)
    tokens = jnp.full((2, 12), 5).at[:, 2 : 2 + tiny_config.tower.queries].set(tiny_config.image_token)
    record = coco_records[3]
    pixels = pipeline.pixels(record, tiny_config.tower.image_size)[None]
    features = featurecache.load(path, FACTS, [record])[record.image][None]
    hidden = [model.apply({"params": tiny_params}, tokens, image)[0] for image in (pixels, features)]
    np.testing.assert_allclose(hidden[0], hidden[1], atol=2e-5)


def test_what_a_file_is_not_of_is_refused_by_name(path, coco_records, tmp_path):
    with pytest.raises(UserError, match=r"sizes/width \(16 there, 17 here\)"):
        featurecache.load(path, FACTS | {"sizes": {"width": 17}}, [])
    with pytest.raises(UserError, match=f"nothing for the image of .*{coco_records[20].id}|nothing for the image"):
        featurecache.load(path, FACTS, coco_records[20:21])
    content = path.read_bytes()
    for name, broken in (("cut", content[: len(content) // 2]), ("empty", b""), ("text", b"features")):
        where = tmp_path / name
        where.write_bytes(broken)
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            featurecache.load(where, FACTS, coco_records[:1])


def test_bfloat16_comes_back_bit_for_bit(coco_records, encode, tiny_config, tmp_path):
    mesh, where = sharding.make_mesh(fsdp=1), tmp_path / "half.arrow"
    half = jax.jit(lambda image: encode(image).astype(jnp.bfloat16))
    featurecache.compute(where, FACTS, coco_records[:2], half, tiny_config.tower.image_size, 2, mesh)
    pixels = np.stack([pipeline.pixels(record, tiny_config.tower.image_size) for record in coco_records[:2]])
    wanted, found = np.asarray(half(pixels)), FeatureFile(where)
    assert wanted.dtype == found[coco_records[0].image].dtype == jnp.bfloat16
    for record, row in zip(coco_records[:2], wanted, strict=True):
        assert found[record.image].tobytes() == row.tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim.trainable": "frozen_A"}, "tower that does not train"),
        ({"optim.trainable": "lm_only", "data.augment": "crop"}, "not augmented"),
        ({"optim.trainable": "lm_only", "data.reference_dtype": "bfloat16"}, "one dtype"),
    ],
)
def test_what_would_make_the_features_false_is_refused(small_run, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        experiment.train(small_run({"data.image_features": "cached"} | change), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("layout", ["rows", "packed"])
def test_a_run_on_features_writes_the_metrics_of_a_run_on_pixels(small_run, tmp_path, layout):
    lines, parameters = {}, {}
    for features in ("compute", "cached"):
        changes = {"data.image_features": features, "data.layout": layout, "optim.trainable": "frozen"}
        config = small_run(changes | {"optim.steps": 3, "eval_share": 0.2, "optim.warmup": 0.0})
        state = experiment.train(config, tmp_path / features)
        parameters[features] = dict(trees.paths(jax.device_get(state.params)))
        lines[features] = metrics.read(tmp_path / features / "metrics.jsonl")
    [file] = (tmp_path / "cached/features").iterdir()
    for found, wanted in zip(lines["cached"], lines["compute"], strict=True):
        noise = {"rewards/accuracies"} if found["step"] == 0 else set()  # whether a rounding error is positive
        for name in wanted.keys() - set(metrics.TIMING) - noise:
            assert found[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-4), name
    for name, value in parameters["compute"].items():
        np.testing.assert_allclose(parameters["cached"][name], value, atol=1e-4, err_msg=name)
    assert np.abs(parameters["cached"]["projector/kernel"]).sum() > 0  # the projector trains on the features
    # Continued, the run finds its features again; of another tower they are refused.
    before = file.stat().st_mtime_ns
    experiment.train(config, tmp_path / "cached")
    assert file.stat().st_mtime_ns == before


def test_the_plan_of_a_run_on_features_has_no_images(small_run):
    from rlhfv_jax import settings
    from rlhfv_jax.planning import estimate

    s = settings.from_dict(small_run({"data.image_features": "cached", "optim.trainable": "lm_only"}))
    assert estimate.batch_of(s, 64).image.shape == (s.optim.batch_size, s.model.tower.queries, s.model.tower.width)
    pixels = dataclasses.replace(s, data=dataclasses.replace(s.data, image_features="compute"))
    assert estimate.batch_of(pixels, 64).image.shape[1:] == (32, 32, 3)
