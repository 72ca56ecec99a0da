#!/usr/bin/env bash
# A Kubernetes JobSet (jobset.x-k8s.io/v1alpha2) of GPU nodes, one pod a node.
#     bash launch/jobset-gpu.sh [--dry-run] [more flags of train]
# The JobSet controller has to be installed in the cluster. CLAIM is a volume that many nodes can write (ReadWriteMany);
# it is mounted at /data and has to hold the checkpoint and the pairs.
set -euo pipefail

NAME=rlhfv                                # EDIT: of the JobSet
NODES=2                                   # EDIT
IMAGE=registry.example/rlhfv_jax:latest   # EDIT: an image with rlhfv_jax[cuda]
CLAIM=shared-data                         # EDIT: the volume claim
TRAIN=(--config=ddpo.py --config.init_from=/data/muffin-13b --config.data.path=/data/RLHF-V.parquet) # EDIT
GPUS=8

dry=
if [[ "${1:-}" == --dry-run ]]; then dry=1 && shift; fi

arguments=
for argument in --workdir="/data/runs/$NAME" --config.mesh.data="$NODES" --config.mesh.fsdp="$GPUS" "${TRAIN[@]}" "$@"; do
  arguments+="                    - '${argument//\'/\'\'}'"$'\n'
done

manifest=$(cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
spec:
  failurePolicy:
    maxRestarts: 10
  replicatedJobs:
    - name: workers
      replicas: 1
      template:
        spec:
          parallelism: $NODES
          completions: $NODES
          completionMode: Indexed
          backoffLimit: 0
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 300
              containers:
                - name: train
                  image: $IMAGE
                  command: [python, -m, rlhfv_jax.train]
                  args:
${arguments%$'\n'}
                  env:
                    - name: JAX_COORDINATOR_ADDRESS
                      value: $NAME-workers-0-0.$NAME:8476
                    - name: JAX_NUM_PROCESSES
                      value: "$NODES"
                    - name: JAX_PROCESS_ID
                      valueFrom:
                        fieldRef:
                          fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']
                  resources:
                    limits:
                      nvidia.com/gpu: $GPUS
                  volumeMounts:
                    - {name: data, mountPath: /data}
                    - {name: shm, mountPath: /dev/shm}
              volumes:
                - name: data
                  persistentVolumeClaim: {claimName: $CLAIM}
                - name: shm
                  emptyDir: {medium: Memory}
YAML
)

if [[ -n "$dry" ]]; then
  printf "kubectl apply -f - <<'YAML'\n%s\nYAML\n" "$manifest"
else
  kubectl apply -f - <<<"$manifest"
fi
