#!/usr/bin/env bash
# A SLURM of two nodes on this machine, and launch/slurm.sh on it: a run that is
# signalled before its time limit, loses a process and each of its nodes once, and
# is in the end what it is without all that. On Debian as root, by hand; 25 minutes on two
# busy cores:
#   apt-get install slurm-wlm munge && launch/test_slurm.sh
# It uses no service of theirs. What it starts ends with it; its folder stays
# where it fails.
set -euo pipefail
cd "$(dirname "$0")/.."
# /etc/hosts is another one for this script and its children alone.
[ -n "${IN_NAMESPACE:-}" ] ||
  IN_NAMESPACE=1 exec unshare --mount launch/test_slurm.sh "$@"
folder=$(mktemp -d)
chmod 711 "$folder" # munge's socket is for all
declare -A pids
job=
every=10 # steps between two checkpoints

finish() {
  status=$?
  trap - EXIT
  kill -KILL "${pids[@]}" 2> /dev/null || true
  wait "${pids[@]}" 2> /dev/null || true
  if [ "$status" -eq 0 ]; then
    rm -r "$folder"
  else
    echo "Failed ($status); all logs are in $folder."
  fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

start() { # name, command
  "${@:2}" >> "$folder/$1.log" 2>&1 &
  pids[$1]=$!
}

start_node() { # a PID namespace, so that kill_node leaves nothing of it
  start "$1" unshare --kill-child --pid --mount-proc slurmd -D -N "$1"
}

kill_node() {
  kill -KILL "${pids[$1]}"
  wait "${pids[$1]}" 2> /dev/null || true
  say "$1 is dead"
}

kill_task() { # node, run
  local pid
  for pid in $(pgrep -f "main.py .*--workdir=$folder/$2 "); do
    if grep -qz "^SLURMD_NODENAME=$1$" "/proc/$pid/environ"; then
      kill -KILL "$pid"
      say "a process on $1 is dead"
    fi
  done
}

say() {
  printf '%4d s: %s\n' "$SECONDS" "$*"
}

until_true() { # command
  local deadline=$((SECONDS + 1200))
  until "$@"; do
    [ "$SECONDS" -lt "$deadline" ] || { say "in vain: $*"; return 1; }
    sleep 1
  done
}

field() { # of the job, as scontrol tells
  scontrol show job --oneliner "$job" | grep -oP "(?<=\b$1=)\S+"
}

field_matches() {
  [[ $(field "$1") =~ ^($2)$ ]]
}

await() { # field, pattern
  until_true field_matches "$@"
  say "job $job: $1=$(field "$1")"
}

ended() { # state, exit code, restarts
  await JobState 'COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL'
  [ "$(field JobState) $(field ExitCode) $(field Restarts)" = "$*" ]
}

submit() { # name of the run, its steps, flags of sbatch
  job=$(sbatch --parsable --nodes=2 --cpus-per-task=1 --time=60 \
    --output="$folder/$1.out" "${@:3}" launch/slurm.sh \
    --config=configs/tiny.py --workdir="$folder/$1" \
    --config.total_steps="$2" --config.checkpoint.every_steps="$every" \
    --config.batch_size=8 --config.optim.warmup_steps=10 \
    --config.probe.every_steps=0 --config.health.every_steps=0 \
    --config.log.tensorboard=False)
  say "job $job: $1, $2 steps"
}

minutes() { # that the job has run
  field RunTime | awk -F: '{ print 60 * $1 + $2 }'
}

rows() { # of a run
  local file="$folder/$1/metrics.jsonl"
  if [ -e "$file" ]; then wc -l < "$file"; else echo 0; fi
}

has_rows() {
  [ "$(rows "$1")" -ge "$2" ]
}

await_rows() {
  until_true has_rows "$@"
  say "$1: $(rows "$1") steps"
}

losses() {
  grep -oP '"step": \d+, "loss": [^,]+' "$folder/$1/metrics.jsonl"
}

checksums() { # of the last state
  grep -oP '"checksums": \{[^}]+' \
    "$folder/$1/checkpoints/$steps/_CHECKPOINT_METADATA"
}

{
  cat /etc/hosts
  echo '127.0.0.1 n1 n2'
} > "$folder/hosts"
mount --bind "$folder/hosts" /etc/hosts
export SLURM_CONF="$folder/slurm.conf" JAX_PLATFORMS=cpu
# Without LLVM's passes, and for all runs together: to compile sooner.
export XLA_FLAGS="${XLA_FLAGS:---xla_backend_optimization_level=0}"
export JAX_COMPILATION_CACHE_DIR="$folder/compilation_cache"
host=$(hostname -s)
# cred_expire is also what a job waits that is queued again.
cat > "$SLURM_CONF" << END
ClusterName=ijepa
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=30
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldPort=16817
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
SlurmdTimeout=${SLURMD_TIMEOUT:-30}
KillWait=60
MinJobAge=7200
ReturnToService=2
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[16901-16902] CPUs=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
mkdir "$folder/state" "$folder/n1" "$folder/n2"
head -c 1024 /dev/urandom > "$folder/munge.key"
chmod 400 "$folder/munge.key"
start munge munged --foreground --key-file="$folder/munge.key" \
  --socket="$folder/munge.socket" --pid-file="$folder/munge.pid" \
  --log-file="$folder/munge.log" --seed-file="$folder/munge.seed"
until_true [ -S "$folder/munge.socket" ]
start slurmctld slurmctld -D
start_node n1
start_node n2
slurmctld -V

# Two processes a node, stopped by hand: they save, and nothing is queued. It
# also tells how many steps are enough for the rest, on this machine.
submit stopped 1000000 --ntasks-per-node=2
await_rows stopped 20
before=$(rows stopped) began=$SECONDS
sleep 20
await_rows stopped $((before + 20))
more=$(($(rows stopped) - before))
steps=${STEPS:-$((50 + 300 * more / (SECONDS - began)))}
scancel "$job"
ended CANCELLED 0:15 0
grep -q 'Process 3 of 4' "$folder/stopped.out"
[ -d "$folder/stopped/checkpoints/$(rows stopped)" ]

submit undisturbed "$steps"
ended COMPLETED 0:0 0

submit disturbed "$steps"
await_rows disturbed 1
scontrol update JobId="$job" TimeLimit=$(($(minutes) + 3))
say "job $job: it has 3 minutes more"
await Restarts 1
grep -q SIGTERM "$folder/disturbed.out"
saved=$(rows disturbed)
[ -d "$folder/disturbed/checkpoints/$saved" ]
say "$saved steps are saved"
scontrol update JobId="$job" TimeLimit=60
await_rows disturbed $((saved + every + 5))
kill_task n2 disturbed
await Restarts 2
grep -q 'it was killed, or its machine went down' "$folder/disturbed.out"
await_rows disturbed $((saved + 2 * every + 10))
kill_node n2
await Restarts 3
start_node n2
await JobState RUNNING
await_rows disturbed $((saved + 3 * every + 15))
kill_node n1 # with the script and process 0
await Restarts 4
start_node n1
ended COMPLETED 0:0 4
grep -E 'SIGTERM|Stopped at|Going on|srun: error|JOB .* ON|Step 1 of' \
  "$folder/disturbed.out" | cut -c1-120
# One run: each step once, with the same numbers.
losses disturbed | grep -oP 'step": \K\d+' | diff - <(seq "$steps")
diff <(losses undisturbed) <(losses disturbed)
diff <(checksums undisturbed) <(checksums disturbed)
echo "$steps steps with the same losses, and the same state."
