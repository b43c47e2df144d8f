#!/usr/bin/env bash
# One task a GPU or a node; main.py finds the others through SLURM's variables:
#   sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh \
#     --config=configs/vit_h14.py --workdir=/shared/runs/h14
#SBATCH --job-name=ijepa
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --time=72:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
# 120 s before the limit SLURM sends SIGTERM: the run saves, exits, and the same
# command goes on from there.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
exec srun --kill-on-bad-exit=1 launch/local.sh "$@"
