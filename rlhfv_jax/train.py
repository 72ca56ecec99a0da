"""Trains a multimodal LLM with Dense DPO (or supervised fine-tuning) on preference pairs.

    python -m rlhfv_jax.train --config=ddpo.py --workdir=runs/rlhfv \\
        --config.init_from=CHECKPOINT --config.data.path=RLHF-V-Dataset.parquet

    python -m rlhfv_jax.train --config=ddpo.py:mini --workdir=runs/mini \\
        --config.data.path=pairs.parquet --config.tokenizer=tokenizer.model

    python -m rlhfv_jax.train --config=demo.py --workdir=runs/demo      (the paper in miniature, needs no data)

The working directory gets config.json, manifest.json, metrics.jsonl, TensorBoard events and checkpoints. Started again
with the same command, a stopped run continues from its last checkpoint.
"""

from pathlib import Path

from absl import flags

from rlhfv_jax import cli, experiment, gpu
from rlhfv_jax.miniature import seeds

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", "runs/latest", "Directory of the run; made if it does not exist.")
_RESUME = flags.DEFINE_string(
    "resume",
    "auto",
    "auto: continue the run in --workdir where it has a checkpoint; never: start only in an unused --workdir; "
    "PATH: start from the whole state of that checkpoint.",
)


def main() -> None:
    cli.run(_main, __doc__ or "", (_CONFIG, _WORKDIR, _RESUME))


def _main() -> None:
    if gpu.present():
        gpu.apply()
    config, workdir = cli.get_config(_CONFIG), Path(_WORKDIR.value)
    if config.get("task") == "miniature":
        seeds.run(config, workdir)
    else:
        experiment.train(config, workdir, _RESUME.value)


if __name__ == "__main__":
    main()
