#!/usr/bin/env bash
# One task a node takes all its GPUs, several share them; main.py finds the
# others through SLURM's variables. From the root of the repository:
#   sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh \
#     --config=configs/vit_h14.py --workdir=/shared/runs/h14
#SBATCH --job-name=ijepa
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --time=72:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
if [ ! -x launch/local.sh ]; then
  echo "$PWD is not the root of the repository: run sbatch there." >&2
  exit 1
fi
# 120 s before the limit SLURM sends SIGTERM to the tasks, not to this script:
# they save and end with 143, and the job takes its place in the queue again.
# SLURM's own --requeue is for preemption and lost nodes, not for the limit. Nor
# for a node that is back before SLURM has missed it (SlurmdTimeout), unless it
# is this script's: srun waits for its tasks until --wait is over.
# scancel ends this script too, and nothing is queued.
#
# srun does not take over --cpus-per-task, and would bind a task to one core.
# Nor does it kill the tasks left when one ends: another may still be writing
# the checkpoint; and of one that failed the others would end with 143, and a
# mistake be queued again. They end by themselves; --wait is for hangs.
#
# A process that was killed (128 and its signal) and those that lost it (75) made
# no mistake: they are queued again, but what fails ten times, the last within
# half an hour, stays ended, such as for too little memory.
began=$(date +%FT%T)
rebooted() { # has a node of the job, since it began?
  SLURM_TIME_FORMAT=standard scontrol show nodes "$SLURM_JOB_NODELIST" |
    grep -o 'BootTime=[0-9][^ ]*' | sort | tail -n 1 |
    { read -r last && [[ $last > BootTime=$began ]]; }
}
interrupted() { # is that status the end of a killed process, or of its peers?
  { [ "$1" -eq 75 ] || { [ "$1" -gt 128 ] && [ "$1" -ne 130 ]; }; } &&
    { [ "${SLURM_RESTART_COUNT:-0}" -lt 10 ] || [ "$SECONDS" -gt 1800 ]; }
}
status=0
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 \
  --wait=600 launch/local.sh "$@" || status=$?
if [ "$status" -eq 143 ] || interrupted "$status" ||
  { [ "$status" -ne 0 ] && rebooted; }; then
  scontrol requeue "$SLURM_JOB_ID" || true
fi
exit "$status"
