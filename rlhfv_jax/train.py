"""Trains a multimodal LLM with Dense DPO (or supervised fine-tuning) on preference pairs.

    python -m rlhfv_jax.train --config=ddpo.py --workdir=runs/rlhfv \\
        --config.init_from=CHECKPOINT --config.data.path=RLHF-V-Dataset.parquet

    python -m rlhfv_jax.train --config=ddpo.py:mini --workdir=runs/mini \\
        --config.data.path=pairs.parquet --config.tokenizer=tokenizer.model

    python -m rlhfv_jax.train --config=demo.py --workdir=runs/demo      (the paper in miniature, needs no data)

The working directory gets config.json, manifest.json, metrics.jsonl, TensorBoard events and checkpoints. Started again
with the same command, a stopped run continues from its last checkpoint.
"""

import os
from pathlib import Path

from absl import flags

from rlhfv_jax import cli, cluster, compilation, experiment, gpu, processes, profiling
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
_COORDINATOR = flags.DEFINE_string("coordinator", "", "Of several processes: HOST:PORT of the first (docs/scale.md).")
_PROCESSES = flags.DEFINE_integer("processes", 0, "How many processes the run has.", lower_bound=0)
_PROCESS = flags.DEFINE_integer("process", -1, "Which of them this one is, from 0.", lower_bound=-1)
_LOST_AFTER = flags.DEFINE_float(
    "lost_after", processes.LOST_AFTER, "Seconds after which a silent process counts as lost.", lower_bound=1
)
_START_WITHIN = flags.DEFINE_float(
    "start_within", processes.START_WITHIN, "Seconds for all processes to appear.", lower_bound=1
)


def main() -> None:
    """Runs the program on `sys.argv` and exits."""
    several = (_COORDINATOR, _PROCESSES, _PROCESS, _LOST_AFTER, _START_WITHIN)
    cli.run(
        _main,
        __doc__ or "",
        (_CONFIG, _WORKDIR, _RESUME, _PROFILE, *several),
        interrupted="The same command with the same --workdir continues from the last checkpoint.",
    )


def _main() -> None:
    if gpu.present():
        gpu.apply()
    config, workdir = cli.get_config(_CONFIG), Path(_WORKDIR.value)
    compilation.keep_programs(config.get("compilation_cache", ""), workdir)
    place, profiled = cluster.detect(_environment()), profiling.read_steps(_PROFILE.value)
    if config.get("task") == "miniature":
        if place is not None:
            raise UserError("The paper in miniature runs in one process.")
        seeds.run(config, workdir)
        return
    with processes.joined(place, _LOST_AFTER.value, _START_WITHIN.value):
        experiment.train(config, workdir, _RESUME.value, profiled)


def _environment() -> dict[str, str]:
    """The environment with what the flags say of several processes."""
    given = {cluster.COORDINATOR: _COORDINATOR.value}
    if _PROCESSES.value:
        given[cluster.COUNT] = str(_PROCESSES.value)
    if _PROCESS.value >= 0:
        given[cluster.INDEX] = str(_PROCESS.value)
    return dict(os.environ) | {name: value for name, value in given.items() if value}


if __name__ == "__main__":
    main()
