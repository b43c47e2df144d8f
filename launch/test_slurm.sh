#!/usr/bin/env bash
# A SLURM of two nodes on this machine, and launch/slurm.sh on it: a run that is
# queued again before its time limit, loses a node, and is complete in the end.
# On Debian as root, by hand; 15 minutes:
#   apt-get install slurm-wlm munge && launch/test_slurm.sh
set -euo pipefail
cd "$(dirname "$0")/.."
# /etc/hosts is another one for this script and its children alone.
[ -n "${IN_NAMESPACE:-}" ] || IN_NAMESPACE=1 exec unshare --mount "$0" "$@"
folder=$(mktemp -d)
chmod 711 "$folder" # munge's socket is for all
echo "All logs are in $folder."
{
  cat /etc/hosts
  echo '127.0.0.1 n1 n2'
} > "$folder/hosts"
mount --bind "$folder/hosts" /etc/hosts

export SLURM_CONF="$folder/slurm.conf" JAX_PLATFORMS=cpu
host=$(hostname -s)
echo 'CgroupPlugin=disabled' > "$folder/cgroup.conf"
cat > "$SLURM_CONF" << END
ClusterName=ijepa
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n.log
SlurmctldPort=16817
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
SlurmdTimeout=20
KillWait=30
ReturnToService=2
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[16901-16902] CPUs=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END

pids_of_node() { # its slurmd, and all that a task of it has started
  cat "$folder/$1.pid"
  grep -lz "^SLURMD_NODENAME=$1$" /proc/[0-9]*/environ 2> /dev/null |
    cut -d/ -f3
}

finish() {
  scancel "${job:-0}" 2> /dev/null || true
  for file in n1 n2 slurmctld munge; do
    [ ! -e "$folder/$file.pid" ] || kill "$(cat "$folder/$file.pid")" || true
  done
}
trap finish EXIT

head -c 1024 /dev/urandom > "$folder/munge.key"
chmod 400 "$folder/munge.key"
munged --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
  --pid-file="$folder/munge.pid" --log-file="$folder/munge.log" \
  --seed-file="$folder/munge.seed"
mkdir "$folder/state" "$folder/n1" "$folder/n2"
slurmctld
slurmd -N n1
slurmd -N n2

steps=${STEPS:-3000}
job=$(sbatch --parsable --nodes=2 --cpus-per-task=1 --time=2 \
  --signal=TERM@60 --output="$folder/out" launch/slurm.sh \
  --config=configs/tiny.py --workdir="$folder/run" \
  --config.total_steps="$steps" --config.checkpoint.every_steps=50)

field() { # of the job, as scontrol tells
  scontrol show job --oneliner "$job" | grep -oP "(?<=\b$1=)\S+"
}

await() { # field, pattern
  until [[ $(field "$1") =~ $2 ]]; do
    [ "$SECONDS" -lt 3600 ] || exit 1
    sleep 1
  done
  echo "$SECONDS s: $1=$(field "$1")"
}

await JobState RUNNING
await Restarts '^[1-9]' # by itself, before its limit
grep -q 'SIGTERM' "$folder/out"
await JobState RUNNING
lines=$(wc -l < "$folder/run/metrics.jsonl")
until [ "$(wc -l < "$folder/run/metrics.jsonl")" -gt $((lines + 60)) ]; do
  sleep 1
done
restarts=$(field Restarts)
# shellcheck disable=SC2046 # several
kill -KILL $(pids_of_node n2)
rm "$folder/n2.pid"
await Restarts "^([$((restarts + 1))-9]|[0-9]{2})"
slurmd -N n2
await JobState 'COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL'
[ "$(field JobState)" = COMPLETED ]
# One run: each step once, in order.
grep -oP '"step": \K\d+' "$folder/run/metrics.jsonl" |
  diff - <(seq "$steps") && echo "Complete after $(field Restarts) restarts."
