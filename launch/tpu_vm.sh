#!/usr/bin/env bash
# The same line on every worker of a Cloud TPU pod slice:
#   TPU=my-v4-32 ZONE=us-central2-b launch/tpu_vm.sh \
#     --config=configs/vit_l16.py --workdir=gs://my-bucket/runs/l16
# The repository is expected at ~/ijepa_jax on each worker, installed with
#   pip install -e '.[tpu,gcs]'
set -euo pipefail
: "${TPU:?the name of the TPU VM}" "${ZONE:?its zone}"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="cd ijepa_jax && launch/local.sh $(printf '%q ' "$@")"
