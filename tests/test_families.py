"""Every family goes through every stage with the same code: what a new family gets for free."""

import json
import math
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from conftest import shared
from family_rows import pair_batch

from rlhfv_jax import cli, experiment, losses, optim, reference, settings, sharding, steps, trees
from rlhfv_jax.data import packing, sources
from rlhfv_jax.decoding.engine import Engine
from rlhfv_jax.decoding.settings import GenerationSettings
from rlhfv_jax.errors import UserError
from rlhfv_jax.models import families, vlm
from rlhfv_jax.models.beit3 import Beit3Config
from rlhfv_jax.models.clip import ClipConfig
from rlhfv_jax.models.eva import EvaConfig
from rlhfv_jax.models.llama import LlamaConfig
from rlhfv_jax.models.llava import Llava15Config, LlavaConfig
from rlhfv_jax.models.muffin import MuffinConfig
from rlhfv_jax.models.omnilmm import OmniLMMConfig
from rlhfv_jax.planning import estimate, targets

LLM = LlamaConfig(100, width=32, layers=2, heads=4, kv_heads=2, ffn=32, init_std=None)
CLIP = ClipConfig(28, 14, width=16, layers=3, heads=2, ffn=16, init_std=None)
TINY = {
    "muffin": MuffinConfig(Beit3Config(32, 16, 16, 2, 2, 16, queries=4, query_positions=8, init_std=None), LLM, 97),
    "llava": LlavaConfig(CLIP, LLM, 97),
    "llava15": Llava15Config(CLIP, LLM, 101),  # behind the vocabulary
    "omnilmm": OmniLMMConfig(
        EvaConfig(28, 14, 16, 2, 2, 16, grid=4, init_std=None), replace(LLM, window=16), 97, queries=4
    ),
}
CONFIGS = {"muffin": "ddpo.py", "llava": "ddpo_llava.py", "llava15": "ddpo_llava15.py", "omnilmm": "ddpo_omnilmm.py"}


def test_the_matrix_has_every_family():
    assert set(TINY) == set(CONFIGS) == set(families.FAMILIES)


MARKS = {"omnilmm": (), "llava15": pytest.mark.slow, "muffin": pytest.mark.long, "llava": pytest.mark.long}
STAGES = MARKS | {"omnilmm": pytest.mark.slow, "llava15": pytest.mark.long}


def marked(marks: dict) -> list:
    return [pytest.param(name, marks=marks[name]) for name in TINY]


@pytest.fixture(scope="module", params=marked(MARKS))
def step(request):
    """(configuration, parameters, batch with the reference's log-probs, jitted loss with its gradients)."""
    config = TINY[request.param]
    model = vlm.Vlm(config)
    params = jax.jit(lambda key: vlm.init(model, key))(jax.random.key(0))
    batch = pair_batch(config, 8, 20)

    def loss(params, batch, preference):
        logps = steps.batch_log_probs(model, params, batch)
        value, _ = losses.preference(logps, batch.ref_logps, batch.weights, batch.valid, preference)
        return value, logps

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=2)
    ddpo = losses.Preference(beta=0.5, average=True)
    (_, logps), _ = grad(params, batch, ddpo)
    return config, params, batch._replace(ref_logps=np.asarray(logps)), partial(grad, preference=ddpo)


def test_the_first_step_is_ln_2_with_gradients_exactly_where_parameters_train(step):
    config, params, batch, grad = step
    (value, _), grads = grad(params, batch)
    assert float(value) == pytest.approx(math.log(2), abs=1e-6)
    unread = {"muffin": ("final_norm/A",), "omnilmm": ()}.get(config.family, ())
    trains = dict(trees.paths(optim.trainable_mask(params, "full")))
    for path, leaf in trees.paths(grads):
        leaf = np.asarray(leaf)
        assert np.isfinite(leaf).all(), path
        if not any(name in path for name in unread):
            assert leaf.any() == trains[path], path
    frozen = dict(trees.paths(optim.trainable_mask(params, "frozen")))
    assert {path for path in trains if trains[path] and not frozen[path]} == {
        path for path in trains if path.startswith("tower/") and "fixed_" not in path
    }


@pytest.mark.slow  # beside the family's own mark, which may be `long`
def test_eight_devices_give_the_loss_and_the_gradients_of_one(step):
    config, params, batch, grad = step
    (value, _), grads = grad(params, batch)
    whole = config.family == "omnilmm"  # its narrow resampler has one head of 128, which cannot be cut
    axis, sizes = ("fsdp", {"data": 2, "fsdp": 4}) if whole else ("tensor", {"data": 2, "fsdp": 2, "tensor": 2})
    mesh = sharding.make_mesh(**sizes)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.shardings(params, mesh))
        (found, _), sharded = grad(placed, sharding.put(batch, mesh))
    assert float(found) == pytest.approx(float(value), abs=1e-6)
    assert any(axis in str(leaf.sharding.spec) for leaf in jax.tree.leaves(placed["tower"]))
    for (path, one), other in zip(trees.paths(grads), jax.tree.leaves(sharded), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5, err_msg=path)


def test_packed_pairs_have_the_log_probs_of_their_rows(step):
    config, params, batch, _ = step
    packed = packing.from_rows(batch, image_token=config.image_token, queries=config.image_tokens, groups=2)
    found = np.asarray(steps.reference(vlm.Vlm(config))(params, packed))
    for place, row in enumerate(packed.row.tolist()):
        for side in range(2):
            scored = batch.weights[row, side] > 0
            np.testing.assert_allclose(
                found[place, side][: scored.sum()], batch.ref_logps[row, side][scored], atol=1e-4
            )


def test_what_only_muffin_can_freeze_is_refused_elsewhere():
    params = vlm.abstract_params(TINY["llava15"])
    with pytest.raises(UserError, match="this model's tower has no branches"):
        optim.trainable_mask(params, "frozen_A")


SMALL = {
    "mesh.fsdp": 1,
    "optim.batch_size": 4,
    "optim.steps": 2,
    "optim.warmup": 0.0,
    "eval_share": 0.3,
    "save_every": 0,
    "model.llm.width": 32,
    "model.llm.ffn": 32,
    "model.tower.width": 16,
    "model.tower.ffn": 16,
    "model.tower.heads": 2,
}
SIZES = {
    "muffin": {"model.tower.image_size": 32, "model.tower.queries": 4},
    "llava": {"model.tower.image_size": 28},
    "llava15": {"model.tower.image_size": 28},
    "omnilmm": {"model.tower.image_size": 28, "model.queries": 4},
}


@pytest.mark.parametrize("family", marked(STAGES))
def test_every_stage_runs_with_the_familys_config(family, tmp_path, coco_records):
    """DDPO with evaluation, a reference file, DPO that reads it, LoRA on packed pairs, answers, a plan."""
    data = tmp_path / "pairs.parquet"
    sources.write_parquet(coco_records[:16], data)

    def config(changes: dict) -> dict:
        c = cli._load(f"{cli.config_folder() / CONFIGS[family]}:mini")
        c.update_from_flattened_dict(SMALL | SIZES[family] | {"data.path": str(data)} | changes)
        return c.to_dict()

    def lines(folder) -> list[dict]:
        return [json.loads(line) for line in (folder / "metrics.jsonl").open()]

    first = {"tokenizer": str(shared("data/stories260K/tok512.model"))}
    experiment.train(config(first), tmp_path / "ddpo")
    found = lines(tmp_path / "ddpo")
    assert found[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and found[1]["loss"] != found[0]["loss"]
    assert "eval/rewards/accuracies" in found[-1]
    base = {"init_from": str(tmp_path / "ddpo"), "eval_share": 0.0, "optim.steps": 1}
    dpo = base | {"ddpo.gamma": 1.0, "ddpo.average": False}
    assert reference.write(config(dpo), tmp_path / "reference.parquet")["pairs"] == 16
    experiment.train(config(dpo | {"reference_cache": str(tmp_path / "reference.parquet")}), tmp_path / "dpo")
    assert lines(tmp_path / "dpo")[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    adapters = {"lora.rank": 2, "data.layout": "packed"}
    experiment.train(config(base | adapters), tmp_path / "lora")
    assert lines(tmp_path / "lora")[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)

    engine = Engine.load(tmp_path / "lora")
    assert engine.config.family == family
    prompts = [engine.prompt("What is this?", image) for image in (np.zeros((40, 30, 3), np.uint8), None)]
    for [answer] in engine.answer(prompts, GenerationSettings(max_new_tokens=4, stop=engine.stop)):
        assert 1 <= len(answer.token_ids) <= 4
    plan = settings.from_dict(config(first | {"optim.batch_size": 8, "mesh.fsdp": 8}))
    figures = estimate.plan(plan, targets.Target("cpu:8", jax.devices(), 1.0, {}), row_length=64, pairs=16)
    assert figures["alias_gib"] == pytest.approx(figures["state_gib"], rel=0.05)
