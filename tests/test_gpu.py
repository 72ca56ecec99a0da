"""The GPU settings: who wins, where they apply, and that this XLA knows every one of them."""

import os
import subprocess
import sys

from rlhfv_jax import gpu


def test_what_the_user_set_stays():
    environment = {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=false --xla_dump_to=there"}
    gpu.apply(environment)
    flags = environment["XLA_FLAGS"].split()
    assert flags[:2] == ["--xla_gpu_enable_latency_hiding_scheduler=false", "--xla_dump_to=there"]
    assert len(flags) == 2 + len(gpu.FLAGS) - 1 and environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.92"
    gpu.apply(environment)
    assert environment["XLA_FLAGS"].split() == flags


def test_they_are_for_machines_with_a_gpu_that_jax_may_use(tmp_path):
    assert not gpu.present({}, tmp_path)
    (tmp_path / "nvidia0").touch()
    assert gpu.present({}, tmp_path) and gpu.present({"JAX_PLATFORMS": "cuda,cpu"}, tmp_path)
    assert not gpu.present({"JAX_PLATFORMS": "cpu"}, tmp_path)


def test_this_xla_knows_every_flag():
    """XLA ends a process whose flags it does not know."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    gpu.apply(environment)
    program = [sys.executable, "-c", "import jax; jax.numpy.zeros(3).sum().block_until_ready()"]
    assert subprocess.run(program, env=environment, capture_output=True).returncode == 0
    environment["XLA_FLAGS"] += " --xla_gpu_no_such_flag=true"
    assert subprocess.run(program, env=environment, capture_output=True).returncode != 0
