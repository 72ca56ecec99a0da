"""A checkpoint far larger than the memory it may take converts all the same, under a limit that the kernel enforces."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import shared

from rlhfv_jax.conversion import torch_files
from rlhfv_jax.conversion.table import LLAMA

# 1.1 billion parameters in the shape of a small LLaMA of 2023.
SIZES = {"vocab": 32_000, "width": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "head": 64, "ffn": 5632}
STACKED = SIZES["layers"] * SIZES["width"] * SIZES["ffn"] * 4  # bytes of the largest stacked parameter in float32
LIMIT = STACKED * 3 // 2
CGROUP = Path("/sys/fs/cgroup/memory")

pytestmark = pytest.mark.long


def write_llama(folder: Path, shards: int) -> int:
    """Random weights as an index and `shards` float32 safetensors files; the number of parameters."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    shapes = {name: entry.torch_shape(SIZES) for entry in LLAMA for name in entry.names(SIZES)}
    weight_map, names = {}, sorted(shapes)
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = names[number::shards]
        save_file(
            {name: rng.standard_normal(shapes[name], np.float32) * np.float32(0.02) for name in part}, folder / file
        )
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = {"num_attention_heads": SIZES["heads"], "num_key_value_heads": SIZES["kv_heads"], "rms_norm_eps": 1e-5}
    (folder / "config.json").write_text(json.dumps(config))
    return sum(int(np.prod(shape)) for shape in shapes.values())


def run_limited(arguments: list[str]) -> dict:
    """The program's report, with the largest resident memory that is no mapped file, in bytes, sampled as it ran."""
    group = CGROUP / f"rlhfv_{os.getpid()}"

    def enter() -> None:
        if os.access(CGROUP, os.W_OK) and (CGROUP / "memory.limit_in_bytes").exists():
            group.mkdir(exist_ok=True)
            (group / "memory.limit_in_bytes").write_text(str(LIMIT))  # anonymous memory and page cache together
            (group / "cgroup.procs").write_text(str(os.getpid()))

    command = [sys.executable, "-m", "rlhfv_jax.convert", "--format=json", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=enter)
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(
                peak, *(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))
            )
        except (OSError, TypeError):
            break
        time.sleep(0.02)
    out, err = process.communicate()
    limited = group.exists()
    if limited:
        group.rmdir()
    assert process.returncode == 0, err[-2000:]
    return json.loads(out) | {"peak_anonymous": peak, "limited": limited}


def test_a_billion_parameters_convert_both_ways_within_one_and_a_half_stacked_parameters(tmp_path):
    (tmp_path / "torch").mkdir()
    parameters = write_llama(tmp_path / "torch", shards=4)
    tokenizer = shared("fixtures/tiny-muffin/tokenizer.model")
    source, orbax, back = (str(tmp_path / name) for name in ("torch", "orbax", "back"))
    there = run_limited(["--direction=to_orbax", f"--src={source}", f"--dst={orbax}", f"--tokenizer={tokenizer}"])
    assert there["scalars"] == parameters > 1_000_000_000
    assert 0 < there["peak_anonymous"] <= LIMIT
    again = run_limited(["--direction=to_torch", f"--src={orbax}", f"--dst={back}", "--shard_gb=1.5"])
    assert 0 < again["peak_anonymous"] <= LIMIT
    for name, report in (("to_orbax", there), ("to_torch", again)):
        anonymous, share = report["peak_anonymous"] / 2**20, report["peak_anonymous"] / STACKED
        print(f"{name}: {report['seconds']} s, {anonymous:.0f} MiB, {share:.2f} stacked, limited {report['limited']}")
    name = "model.layers.21.mlp.down_proj.weight"
    first, last = (torch_files.open_tensors(Path(path)).read(name) for path in (source, back))
    np.testing.assert_array_equal(first, last)
