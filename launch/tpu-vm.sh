#!/usr/bin/env bash
# A TPU VM slice of one or many hosts, the same command on each; the metadata server tells each host its place.
#     bash launch/tpu-vm.sh [--dry-run] [more flags of train]
# RUN has to be on a file system that all hosts mount (Filestore, or a bucket through gcsfuse).
set -euo pipefail

TPU=my-tpu                                # EDIT: the slice, as `gcloud compute tpus tpu-vm list` says
ZONE=us-east5-a                           # EDIT
PYTHON=/mnt/data/.venv/bin/python         # EDIT: where rlhfv_jax[tpu] is installed
RUN=/mnt/data/runs/ddpo                   # EDIT: the run's directory, shared
TRAIN=(--config=ddpo.py --config.init_from=/mnt/data/muffin-13b --config.data.path=/mnt/data/RLHF-V.parquet) # EDIT

dry=
if [[ "${1:-}" == --dry-run ]]; then dry=1 && shift; fi

# Worker endpoints read name:number:address or address, with commas between.
# shellcheck disable=SC2016  # the hosts expand it
place='
fetch() { curl -sfH "Metadata-Flavor: Google" "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"; }
endpoints=$(fetch worker-network-endpoints)
first=${endpoints%%,*}
commas=${endpoints//[!,]/}
export JAX_COORDINATOR_ADDRESS=${first##*:}:8476 JAX_NUM_PROCESSES=$((${#commas} + 1))
JAX_PROCESS_ID=$(fetch agent-worker-number)
export JAX_PROCESS_ID
'
train=$(printf '%q ' "$PYTHON" -m rlhfv_jax.train --workdir="$RUN" "${TRAIN[@]}" "$@")
command=(gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="bash -c $(printf '%q' "$place exec $train")")

if [[ -n "$dry" ]]; then
  printf '%q ' "${command[@]}"
  printf '\n\n# on every host:\n%s\nexec %s\n' "$place" "$train"
else
  "${command[@]}"
fi
