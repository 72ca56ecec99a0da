"""Memory, work and fit of whole configurations on hardware that is not here, as `plan` finds them; one table.

    python benchmarks/aot.py --out=aot.json
    python benchmarks/aot.py --cases='ddpo.py@h200_sxm:1@data.layout=packed,remat=full'

Needs `pip install 'rlhfv_jax[tpu]'` for TPU slices and `'rlhfv_jax[cuda]'` for NVIDIA GPUs. A case is
config@topology@overrides; each compiles in a process of its own, so that one compiler does not disturb another.
"""

import json
import subprocess
import sys

import protocol
from absl import app, flags

CASES = (
    "ddpo.py@a100_sxm_80:8",
    "ddpo.py@v5p:2x2x2",
    "ddpo.py@v5e:2x4",
    "ddpo.py@v5p:2x2x2@data.layout=packed",
    "ddpo.py@v5p:2x2x2@optim.trainable=lm_only,data.image_features=cached",
)
_CASES = flags.DEFINE_multi_string("cases", list(CASES), "config@topology@overrides, as often as wanted.")
_OUT = flags.DEFINE_string("out", "", "A JSON file to write.")
COLUMNS = ("fits", "peak_gib", "capacity_gib", "argument_gib", "temp_gib", "state_gib", "compile_seconds")


def planned(case: str) -> dict:
    config, topology, overrides = [*case.split("@"), ""][:3]
    flags = [f"--config.{override}" for override in overrides.split(",") if override]
    line = [sys.executable, "-m", "rlhfv_jax.plan", f"--config={config}", f"--topology={topology}", *flags]
    done = subprocess.run([*line, "--format=json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{case}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def main(_: list[str]) -> None:
    rows = []
    for case in _CASES.value:
        figures = planned(case)
        row = {"case": case} | {name: figures.get(name, "") for name in COLUMNS}
        row["PF a step"] = figures["flops_per_step"] / 1e15 if "flops_per_step" in figures else ""
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    protocol.report("one step, per device", rows, _OUT.value)


if __name__ == "__main__":
    app.run(main)
