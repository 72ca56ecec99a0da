#!/usr/bin/env bash
# Several SLURM nodes, one process a node with all its GPUs; srun's variables tell each process its place.
#     bash launch/slurm-nodes.sh [--dry-run] [more flags of train]
# Submits itself and runs inside the job. Ends as a whole when a process is lost; a job that SLURM ends early saves
# (exit status 75) and queues again. The run's directory has to be on a file system that all nodes share.
set -euo pipefail

PARTITION=gpu                             # EDIT: sinfo lists them
NODES=2                                   # EDIT
PYTHON=$HOME/rlhfv_jax/.venv/bin/python   # EDIT: where the package is installed, on every node
RUN=$HOME/runs/ddpo                       # EDIT: the run's directory, shared
TRAIN=(--config=ddpo.py --config.init_from="$HOME/checkpoints/muffin-13b" --config.data.path="$HOME/RLHF-V.parquet") # EDIT
GPUS=8
TIME=04:00:00

dry=
if [[ "${1:-}" == --dry-run ]]; then dry=1 && shift; fi
say_or_do() {
  if [[ -n "$dry" ]]; then printf '%q ' "$@" && echo; else "$@"; fi
}

if [[ -z "${SLURM_JOB_ID:-}" ]]; then
  say_or_do sbatch --job-name=rlhfv --partition="$PARTITION" --time="$TIME" --nodes="$NODES" --ntasks-per-node=1 \
    --gpus-per-node="$GPUS" --exclusive --requeue --open-mode=append --signal=TERM@300 "$0" "$@"
  if [[ -z "$dry" ]]; then exit; fi
fi

# Parameters are cut over the GPUs of a node and copied between nodes, so that gathers stay on NVLink.
mesh=(--config.mesh.data="$NODES" --config.mesh.fsdp="$GPUS")
status=0
say_or_do srun --nodes="$NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 \
  "$PYTHON" -m rlhfv_jax.train --workdir="$RUN" "${mesh[@]}" "${TRAIN[@]}" "$@" || status=$?
if [[ "$status" == 75 ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
