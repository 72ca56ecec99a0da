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

from rlhfv_jax import cli, settings, sharding
from rlhfv_jax.errors import UserError
from rlhfv_jax.planning import estimate, targets

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


def test_flops_agree_with_an_analytic_count():
    """Without recomputation: forward once, backward twice, 2 a parameter and token, attention's two products apart."""
    s, length = small(), 64
    s = settings.dataclasses.replace(s, remat="none")
    tower, llm = s.model.tower, s.model.llm
    rows, images, image_tokens = 2 * s.optim.batch_size, s.optim.batch_size, tower.patches + 1 + tower.queries
    mesh = sharding.make_mesh(fsdp=8)
    step, state = estimate.train_step(s, mesh, 10)
    with jax.set_mesh(mesh):
        found = estimate.dot_flops(step.trace(state, estimate.batch_of(s, length)).jaxpr.jaxpr)
    block = 4 * llm.width**2 + 3 * llm.width * llm.ffn
    forward = rows * length * llm.layers * (2 * block + 4 * length * llm.width)
    vocabulary = state.params["llm"]["head"]["kernel"].shape[1]
    forward += rows * (length - 1) * 2 * llm.width * vocabulary
    vision = 4 * tower.width**2 + 2 * tower.width * tower.ffn
    forward += images * image_tokens * tower.layers * (2 * vision + 4 * image_tokens * tower.width)
    forward += images * tower.patches * 2 * 3 * tower.patch**2 * tower.width
    forward += images * tower.queries * 2 * tower.width * llm.width
    assert found == pytest.approx(3 * forward, rel=0.05)


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


def test_a_packed_batch_is_planned_with_less_work_than_rows():
    target = targets.Target("cpu:8", jax.devices(), 1.0, {})
    config = cli._load(f"{cli.config_folder() / 'ddpo.py'}:mini")
    config.update_from_flattened_dict(SIZES | {"data.layout": "packed"})
    packed = estimate.plan(settings.from_dict(config.to_dict()), target, row_length=64, pairs=80)
    rows = estimate.plan(small(), target, row_length=64, pairs=80)
    assert packed["alias_gib"] == pytest.approx(packed["state_gib"], rel=0.01)
    assert 0.3 < packed["flops_per_step"] / rows["flops_per_step"] < 0.95
