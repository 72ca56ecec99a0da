"""Trains a multimodal LLM with Dense DPO (or supervised fine-tuning) on preference pairs.

    python -m rlhfv_jax.train --config=ddpo.py --workdir=runs/rlhfv \\
        --config.init_from=CHECKPOINT --config.data.path=RLHF-V-Dataset.parquet

    python -m rlhfv_jax.train --config=ddpo.py:mini --workdir=runs/mini \\
        --config.data.path=pairs.parquet --config.tokenizer=tokenizer.model

    python -m rlhfv_jax.train --config=demo.py --workdir=runs/demo      (the paper in miniature, needs no data)

The working directory gets config.json, manifest.json, metrics.jsonl, TensorBoard events and checkpoints. Started again
with the same command, a stopped run continues from its last checkpoint.
"""

import re
from pathlib import Path

from absl import flags

from rlhfv_jax import cli, compilation, experiment, gpu
from rlhfv_jax.errors import UserError
from rlhfv_jax.miniature import seeds

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", "runs/latest", "Directory of the run; made if it does not exist.")
_RESUME = flags.DEFINE_string(
    "resume",
    "auto",
    "auto: continue the run in --workdir where it has a checkpoint; never: start only in an unused --workdir; "
    "PATH: start from the whole state of that checkpoint.",
)
_PROFILE = flags.DEFINE_string(
    "profile_steps", "", "5:8 writes a profiler trace of steps 5, 6 and 7 to profile/ in --workdir."
)


def main() -> None:
    cli.run(_main, __doc__ or "", (_CONFIG, _WORKDIR, _RESUME, _PROFILE))


def _main() -> None:
    if gpu.present():
        gpu.apply()
    config, workdir = cli.get_config(_CONFIG), Path(_WORKDIR.value)
    compilation.keep_programs(config.get("compilation_cache", ""), workdir)
    if config.get("task") == "miniature":
        seeds.run(config, workdir)
    else:
        experiment.train(config, workdir, _RESUME.value, _steps(_PROFILE.value))


def _steps(text: str) -> range:
    found = re.fullmatch(r"(\d+):(\d+)", text or "0:0")
    steps = range(int(found[1]), int(found[2])) if found else range(0)
    if text and not steps:
        raise UserError(f"--profile_steps={text} names no steps; write 5:8 for steps 5, 6 and 7.")
    return steps


if __name__ == "__main__":
    main()
