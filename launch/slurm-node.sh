#!/usr/bin/env bash
# One SLURM node, all its GPUs in one process; JAX needs no coordinator there.
#     bash launch/slurm-node.sh [--dry-run] [more flags of train]
# Submits itself and runs inside the job. A job that SLURM ends early saves (exit status 75) and queues again.
set -euo pipefail

PARTITION=gpu                             # EDIT: sinfo lists them
TIME=04:00:00                             # EDIT: at most
PYTHON=$HOME/rlhfv_jax/.venv/bin/python   # EDIT: where the package is installed
RUN=$HOME/runs/ddpo                       # EDIT: the run's directory
TRAIN=(--config=ddpo.py --config.init_from="$HOME/checkpoints/muffin-13b" --config.data.path="$HOME/RLHF-V.parquet") # EDIT
GPUS=8

dry=
if [[ "${1:-}" == --dry-run ]]; then dry=1 && shift; fi
say_or_do() {
  if [[ -n "$dry" ]]; then printf '%q ' "$@" && echo; else "$@"; fi
}

if [[ -z "${SLURM_JOB_ID:-}" ]]; then
  say_or_do sbatch --job-name=rlhfv --partition="$PARTITION" --time="$TIME" --nodes=1 --ntasks-per-node=1 \
    --gpus-per-node="$GPUS" --exclusive --requeue --open-mode=append --signal=TERM@300 "$0" "$@"
  if [[ -z "$dry" ]]; then exit; fi
fi

status=0
say_or_do srun "$PYTHON" -m rlhfv_jax.train --workdir="$RUN" "${TRAIN[@]}" "$@" || status=$?
if [[ "$status" == 75 ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
