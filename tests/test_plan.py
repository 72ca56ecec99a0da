"""Plans: figures of the very train step, and what is refused; compiling for absent hardware where its compiler is."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rlhfv_jax import cli, settings, sharding
from rlhfv_jax.errors import UserError
from rlhfv_jax.planning import alternatives, estimate, roofline, schedule, targets

SIZES = {"optim.batch_size": 8, "mesh.fsdp": 8, "dtype": "bfloat16", "remat": "named"}


def small() -> settings.Settings:
    config = cli._load(f"{cli.config_folder() / 'ddpo.py'}:mini")
    config.update_from_flattened_dict(SIZES)
    return settings.from_dict(config.to_dict())


def test_a_scans_matrix_products_count_as_often_as_it_turns():
    def function(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    jaxpr = jax.make_jaxpr(jax.jit(function))(jnp.zeros((3, 4)), jnp.zeros((5, 4, 4)))
    assert estimate.dot_flops(jaxpr.jaxpr) == 5 * 2 * 3 * 4 * 4


def test_the_plan_of_simulated_devices_aliases_the_whole_state():
    """The state's bytes by the table are what the program takes and gives back in place, besides the batch."""
    found = estimate.plan(small(), targets.Target("cpu:8", jax.devices(), 1.0, {}), row_length=64, pairs=80)
    assert found["alias_gib"] == pytest.approx(found["state_gib"], rel=0.01)
    assert found["argument_gib"] > found["alias_gib"] and found["fits"] and found["steps"] == 100
    assert any(kind.startswith("all-gather") for kind in found["collectives"])
    assert found["estimate"] is None  # of a machine that nobody published peaks of


def forward_flops(s: settings.Settings, length: int, vocabulary: int) -> int:
    """2 a parameter and token, attention's two products apart, of one batch of padded rows."""
    tower, llm = s.model.tower, s.model.llm
    rows, images, image_tokens = 2 * s.optim.batch_size, s.optim.batch_size, tower.patches + 1 + tower.queries
    block = 4 * llm.width**2 + 3 * llm.width * llm.ffn
    total = rows * length * llm.layers * (2 * block + 4 * length * llm.width)
    total += rows * (length - 1) * 2 * llm.width * vocabulary
    vision = 4 * tower.width**2 + 2 * tower.width * tower.ffn
    total += images * image_tokens * tower.layers * (2 * vision + 4 * image_tokens * tower.width)
    total += images * tower.patches * 2 * 3 * tower.patch**2 * tower.width
    return total + images * tower.queries * 2 * tower.width * llm.width


def paper() -> settings.Settings:
    return settings.from_dict(cli._load(str(cli.config_folder() / "ddpo.py")).to_dict())


@pytest.mark.parametrize("build", [small, pytest.param(paper, marks=pytest.mark.slow)])
def test_flops_agree_with_an_analytic_count(build):
    """Without recomputation: forward once, backward twice. The paper's configuration is the 13B model."""
    s, length = settings.dataclasses.replace(build(), remat="none"), 256
    mesh = sharding.make_mesh(fsdp=8)
    step, state = estimate.train_step(s, mesh, 10)
    with jax.set_mesh(mesh):
        found = estimate.dot_flops(step.trace(state, estimate.batch_of(s, length)).jaxpr.jaxpr)
    vocabulary = state.params["llm"]["head"]["kernel"].shape[1]
    assert found == pytest.approx(3 * forward_flops(s, length, vocabulary), rel=0.05)


@pytest.mark.parametrize("topology", ["v9:2x2", "v5p", "v5p:2x", "a100_sxm_80:0", ""])
def test_an_unknown_topology_is_refused(topology):
    with pytest.raises(UserError, match="--topology"):
        targets.find(topology)


@pytest.mark.parametrize(("topology", "module"), [("v5p:2x2x2", "libtpu"), ("a100_sxm_80:8", "jax_cuda12_plugin")])
def test_a_small_step_compiles_for_hardware_that_is_not_here(topology, module):
    """In a process of its own, since the compilers' plugins cannot be unloaded."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    line = [sys.executable, "-m", "rlhfv_jax.plan", "--config=ddpo.py:mini", f"--topology={topology}", "--format=json"]
    flags = [f"--config.{name}={value}" for name, value in SIZES.items()]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    result = subprocess.run([*line, *flags], capture_output=True, text=True, timeout=280, env=environment)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["fits"] and np.isclose(found["alias_gib"], found["state_gib"], rtol=0.05)


@pytest.mark.long
def test_a_packed_batch_is_planned_with_less_work_than_rows():
    target = targets.Target("cpu:8", jax.devices(), 1.0, {})
    config = cli._load(f"{cli.config_folder() / 'ddpo.py'}:mini")
    config.update_from_flattened_dict(SIZES | {"data.layout": "packed"})
    packed = estimate.plan(settings.from_dict(config.to_dict()), target, row_length=64, pairs=80)
    rows = estimate.plan(small(), target, row_length=64, pairs=80)
    assert packed["alias_gib"] == pytest.approx(packed["state_gib"], rel=0.01)
    assert 0.3 < packed["flops_per_step"] / rows["flops_per_step"] < 0.95


# What a program sends, and whether it computes meanwhile.

PROGRAM = """
%body (p: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {
  %ag = (bf16[8,8]{1,0}, bf16[8,64]{1,0}) all-gather-start(%x), channel_id=1, replica_groups=[1,8]<=[8], dimensions={1}
  %product = f32[8,64]{1,0} custom-call(%a, %b), custom_call_target="__cublas$gemm"
  %sum = f32[8,64]{1,0} add(%product, %product)
  %ag.done = bf16[8,64]{1,0} all-gather-done(%ag)
  %rs = ((f32[8,64]{1,0}), f32[8,8]{1,0}) async-start(%sum), calls=%wrapped
  %rs.done = f32[8,8]{1,0} async-done(%rs), calls=%wrapped
  ROOT %out = (s32[], bf16[8,64]{1,0}) tuple(%i, %ag.done)
}

%wrapped (q: f32[8,64]) -> f32[8,8] {
  ROOT %inner = f32[8,8]{1,0} reduce-scatter(%q), channel_id=2, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}

%fused (r: f32[8,64]) -> f32[8,8] {
  ROOT %dot.1 = f32[8,8]{1,0} dot(%r, %r), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}

ENTRY %main (arg: f32[8,64]) -> f32[8,64] {
  %loop = (s32[], bf16[8,64]{1,0}) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"40"}}
  %ar = f32[8,64]{1,0:T(8,128)S(1)} all-reduce-start(%arg), replica_groups=mesh['a'=4,'b'=2] {'b'}, to_apply=%add
  %other = f32[8,8]{1,0} fusion(%arg), kind=kOutput, calls=%fused
  %ar.done = f32[8,64]{1,0} all-reduce-done(%ar)
  ROOT %whole = f32[8,64]{1,0} all-gather(%small), channel_id=7, replica_groups=[1,8]<=[8], dimensions={1}
}
"""


def test_a_loops_collectives_count_as_often_as_it_turns_and_products_under_them_are_found():
    found = {(one.kind, one.dtype): one for one in schedule.collectives(PROGRAM, 8)}
    whole = 8 * 64
    assert found["all-gather", "bf16"] == schedule.Collective("all-gather", "bf16", whole * 2 * 7 // 8, 40, 1)
    assert found["reduce-scatter", "f32"] == schedule.Collective("reduce-scatter", "f32", whole * 4 * 7 // 8, 40, 0)
    assert found["all-reduce", "f32"] == schedule.Collective("all-reduce", "f32", whole * 4, 1, 1)
    assert found["all-gather", "f32"] == schedule.Collective("all-gather", "f32", whole * 4 * 7 // 8, 1, 0)
    lines = schedule.summary(list(found.values()))
    assert lines["all-gather bf16"] == {"count": 40, "gib": 40 * whole * 2 * 7 // 8 / 2**30, "overlapped": 1.0}
    assert lines["reduce-scatter f32"]["overlapped"] == 0.0


LOOP_OF_TPUS = """
%turn (p: (bf16[8], u32[])) -> (bf16[8], u32[]) {
  %p = (bf16[8]{0}, u32[]{:T(128)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  %shard = bf16[8]{0} get-tuple-element(%p), index=0
  %two = u32[]{:T(128)} constant(2)
  %next = u32[]{:T(128)} add(%i, %two)
  %cp = (bf16[8]{0}, bf16[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%shard), channel_id=4
  %product = bf16[8,8]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
  %cp.done = bf16[8]{0} collective-permute-done(%cp)
  ROOT %out = (bf16[8]{0}, u32[]{:T(128)}) tuple(%cp.done, %next)
}

%check (p: (bf16[8], u32[])) -> pred[] {
  %limit = u32[]{:T(128)} constant(7), metadata={op_name="3"}
  %q = (bf16[8]{0}, u32[]{:T(128)}) parameter(0)
  %j = u32[]{:T(128)} get-tuple-element(%q), index=1, metadata={op_name="9"}
  ROOT %below = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

ENTRY %main (a: bf16[8]) -> bf16[8] {
  %loop = (bf16[8]{0}, u32[]{:T(128)}) while(%t), condition=%check, body=%turn
  ROOT %done = bf16[8]{0} get-tuple-element(%loop), index=0
}
"""


def test_a_loop_that_does_not_say_how_often_it_turns_is_counted_from_its_condition():
    """0, 2, 4, 6: a counter below 7 that grows by 2."""
    (found,) = schedule.collectives(LOOP_OF_TPUS, 8)
    assert found == schedule.Collective("collective-permute", "bf16", (2 * 16 + 8) // 2, 4, 1)


def test_a_real_programs_collectives_are_those_it_must_have():
    """A scan over sharded weights: five gathers of 64 x 64, float32."""
    mesh = sharding.make_mesh(fsdp=8)
    where = NamedSharding(mesh, P(None, "fsdp", None)), NamedSharding(mesh, P("fsdp", None))

    def function(weights, x):
        pin = lambda x: jax.lax.with_sharding_constraint(x, where[1])  # noqa: E731
        whole = lambda w: jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))  # noqa: E731
        return jax.lax.scan(lambda x, w: (pin(jnp.tanh(x @ whole(w))), None), x, weights)[0]

    shapes = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32), jax.ShapeDtypeStruct((8, 64), jnp.float32)
    text = jax.jit(function, in_shardings=where, out_shardings=where[1]).lower(*shapes).compile().as_text()
    gathers = [one for one in schedule.collectives(text, 8) if one.kind == "all-gather"]
    assert sum(one.turns for one in gathers) == 5
    assert {one.sent for one in gathers} == {64 * 64 * 4 * 7 // 8}


# How long a run may take.


def test_an_estimate_hides_what_lies_under_products_and_pays_for_the_rest():
    chip = targets.Chip(flops=100.0, memory=100.0, links=100.0)
    under, bare = (schedule.Collective("all-gather", "bf16", 75, 2, products) for products in (3, 0))
    found = roofline.estimate(8 * 50.0 * 4, 20, [under, bare], chip, devices=8, steps=3600)
    assert found["compute_seconds"] == pytest.approx(4)  # 50 x 4 on each, at half of 100
    assert found["update_seconds"] == pytest.approx(1)  # four times 20, at 80
    assert found["network_seconds"] == pytest.approx(4) and found["exposed_network_seconds"] == pytest.approx(2)
    assert found["step_seconds"] == found["run_hours"] == pytest.approx(4 + 2 + 1)
    assert found["mfu"] == pytest.approx(200 / 100 / 7)
    slow = roofline.estimate(8 * 50.0, 20, [under, bare], chip, devices=8, steps=1)
    assert slow["step_seconds"] == pytest.approx(2 + 2 + 1)  # the links take longer than the products
    blind = roofline.estimate(8 * 50.0 * 4, 20, None, chip, devices=8, steps=1)
    assert blind["network_seconds"] is None and "not counted" in blind["assumes"]


@pytest.mark.parametrize("name", targets.names())
def test_every_target_has_published_peaks(name):
    chip = targets.CHIPS[name]
    assert 1e14 < chip.flops < 1e15 and 8e11 < chip.memory < 5e12 and 1e11 <= chip.links < 5e11


# What to change where it does not fit.


def test_the_first_change_that_fits_is_named_and_what_is_too_large_is_not_compiled():
    s, compiled = settings.dataclasses.replace(small(), remat="named"), []

    def plan_of(s):
        compiled.append(s)
        return {"fits": s.lora.rank > 0 and s.remat == "full", "peak_gib": 7.5}

    tried = alternatives.search(s, 4, lambda s: 5.0 if s.lora.rank else 20.0, plan_of, 15.0)
    assert [one["fits"] for one in tried] == [False, False, False, False, False, True]
    assert [one["change"].count("split") for one in tried] == [0, 1, 1, 1, 0, 0]
    assert [(one.lora.rank, one.remat) for one in compiled] == [(64, "named"), (64, "full")]
    found = alternatives.verdict({"fits": False, "alternatives": tried})
    assert found == "does not fit: try --config.lora.rank=64 --config.remat=full, which needs 7.5 GiB"
    none = alternatives.search(s, 4, lambda s: 20.0, plan_of, 15.0)
    assert "more devices" in alternatives.verdict({"fits": False, "alternatives": none})
    assert alternatives.verdict({"fits": True}) == "fits"


def test_changes_that_change_nothing_are_not_tried():
    s = settings.dataclasses.replace(small(), remat="full")
    flags = [flags for flags, _ in alternatives.candidates(s, 8)]
    assert len(flags) == len(set(flags)) and all("batch_size" not in one for one in flags)  # one pair a device already


@pytest.mark.long
def test_a_plan_that_does_not_fit_searches_by_compiling():
    """On simulated devices too small for the whole state, the adapters' run fits."""
    s = settings.dataclasses.replace(small(), init_from="somewhere")
    mesh = sharding.make_mesh(fsdp=8)
    whole = estimate.state_bytes(estimate.train_step(s, mesh, 1)[1], mesh) / targets.GIB
    target = targets.Target("cpu:8", jax.devices(), whole * 0.9, {})
    tried = estimate.search(s, target, row_length=64, pairs=80)
    assert not tried[0]["fits"] and "peak_gib" not in tried[0]
    assert all(one["state_gib"] < whole for one in tried if "lora" in one["change"])
