#!/usr/bin/env bash
# A Kubernetes JobSet on a GKE TPU slice, one pod a host; GKE's variables tell each pod its place.
#     bash launch/jobset-tpu.sh [--dry-run] [more flags of train]
# CLAIM is a volume that many nodes can write (Filestore, or a bucket through its CSI driver), mounted at /data.
set -euo pipefail

NAME=rlhfv                                # EDIT: of the JobSet
SLICE=tpu-v5p-slice:2x2x2                 # EDIT: gke-tpu-accelerator:gke-tpu-topology of the node pool
IMAGE=registry.example/rlhfv_jax:latest   # EDIT: an image with rlhfv_jax[tpu]
CLAIM=shared-data                         # EDIT: the volume claim
TRAIN=(--config=ddpo.py --config.init_from=/data/muffin-13b --config.data.path=/data/RLHF-V.parquet) # EDIT
CHIPS_PER_HOST=4

dry=
if [[ "${1:-}" == --dry-run ]]; then dry=1 && shift; fi

topology=${SLICE#*:}
hosts=$((${topology//x/*} / CHIPS_PER_HOST))
arguments=
for argument in --workdir="/data/runs/$NAME" "${TRAIN[@]}" "$@"; do
  arguments+="                    - '${argument//\'/\'\'}'"$'\n'
done

manifest=$(cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: 10
  replicatedJobs:
    - name: slice
      replicas: 1
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 300
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: ${SLICE%%:*}
                cloud.google.com/gke-tpu-topology: $topology
              containers:
                - name: train
                  image: $IMAGE
                  command: [python, -m, rlhfv_jax.train]
                  args:
${arguments%$'\n'}
                  ports:
                    - containerPort: 8476
                    - containerPort: 8477
                  resources:
                    limits:
                      google.com/tpu: $CHIPS_PER_HOST
                  volumeMounts:
                    - {name: data, mountPath: /data}
              volumes:
                - name: data
                  persistentVolumeClaim: {claimName: $CLAIM}
YAML
)

if [[ -n "$dry" ]]; then
  printf "kubectl apply -f - <<'YAML'\n%s\nYAML\n" "$manifest"
else
  kubectl apply -f - <<<"$manifest"
fi
