"""Hardware to compile for without having it: TPU slices through libtpu, NVIDIA GPUs through their descriptions."""

import atexit
import importlib.util
import math
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.experimental import topologies

from rlhfv_jax import gpu
from rlhfv_jax.errors import UserError

GPU_FOLDER = Path(__file__).parent / "gpu"
GIB = 2**30
TPU_MEMORY_GIB = {"v5e": 15.75, "v5p": 95.0, "v6e": 31.25}  # of a chip's HBM, what a program can have
# What training sets on GPUs, as the compiler takes it; and XLA's Triton matrix products refuse 785 image tokens where
# there is no GPU to tune them on.
GPU_OPTIONS: dict[str, Any] = {name: True if value == "true" else int(value) for name, value in gpu.FLAGS.items()}
GPU_OPTIONS |= {"xla_gpu_enable_triton_gemm": False}


@dataclass(frozen=True)
class Chip:
    """Published peaks of one device: bfloat16 matrix products, memory, and its links in one direction, each a second.

    Links are half of what is published for both directions of all of them; a slice without wraparound has fewer.
    """

    flops: float
    memory: float
    links: float


CHIPS = {
    "v5e": Chip(197e12, 819e9, 100e9),
    "v5p": Chip(459e12, 2765e9, 300e9),
    "v6e": Chip(918e12, 1640e9, 224e9),
    "a100_sxm_40": Chip(312e12, 1555e9, 300e9),
    "a100_sxm_80": Chip(312e12, 2039e9, 300e9),
    "h100_sxm": Chip(989e12, 3352e9, 450e9),
    "h200": Chip(989e12, 4800e9, 450e9),
}


@dataclass(frozen=True)
class Target:
    """Devices to compile for, the memory of each, the options that its compiler needs, and what they can do."""

    name: str
    devices: Any
    capacity_gib: float
    options: dict[str, Any]
    chip: Chip | None = None
    dump: Path | None = None  # where the compiler writes its programs, if it cannot print all of them


def names() -> list[str]:
    """What a topology may start with."""
    return [*TPU_MEMORY_GIB, *sorted(path.stem for path in GPU_FOLDER.glob("*.txtpb"))]


def find(topology: str) -> Target:
    """The target `v5p:2x2x2` (a TPU slice) or `a100_sxm_80:8` (GPUs of one host).

    Raises UserError on an unknown name or shape, and where the compiler for it is not installed.
    """
    name, _, shape = topology.partition(":")
    if name not in names():
        raise UserError(f"--topology={topology} is not known; give one of {', '.join(names())}, as v5p:2x2x2.")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise UserError(f"--topology={topology} needs sizes behind the colon, as v5p:2x2x2 or a100_sxm_80:8.")
    return _tpu(name, shape) if name in TPU_MEMORY_GIB else _gpu(name, shape)


def _tpu(name: str, shape: str) -> Target:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("Planning for TPUs needs their compiler: pip install 'rlhfv_jax[tpu]'.")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # else two plans at once abort on a lock file
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # JAX cannot print some TPU programs (asynchronous updates with several operands); the compiler itself can.
    folder = Path(tempfile.mkdtemp(prefix="rlhfv_plan_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    dump = f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_update"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {dump}"
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=f"{name}:{shape}")
    except Exception as error:  # the compiler's own words for a shape that the chip does not come in
        raise UserError(f"There is no TPU slice {name}:{shape} ({str(error).splitlines()[0][:200]}).") from error
    return Target(f"{name}:{shape}", found.devices, TPU_MEMORY_GIB[name], {}, CHIPS[name], folder)


def _gpu(name: str, shape: str) -> Target:
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise UserError("Planning for NVIDIA GPUs needs their compiler: pip install 'rlhfv_jax[cuda]'.")
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # else the plugin looks for a driver
    count = math.prod(int(size) for size in shape.split("x"))
    text = (GPU_FOLDER / f"{name}.txtpb").read_text()
    memory = re.search(r"device_memory_size: (\d+)", text)
    assert memory is not None, f"{name}.txtpb has no device_memory_size"
    layout = f"1x1x{count}"  # slices x hosts x GPUs of a host
    found = topologies.get_topology_desc(platform="cuda", topology_name=layout, topology=layout, target_config=text)
    return Target(f"{name}:{shape}", found.devices, int(memory[1]) / GIB, GPU_OPTIONS, CHIPS[name])
