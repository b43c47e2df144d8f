#!/usr/bin/env bash
# The same line on every worker of Cloud TPUs; launch/README.md says more.
# On a TPU VM that is there:
#   TPU=my-v4-32 ZONE=us-central2-b launch/tpu_vm.sh \
#     --config=configs/vit_l16.py --workdir=gs://my-bucket/runs/l16
# On slices that are queued for, and again after a pre-emption, until the run is
# complete; then they are deleted:
#   TPU=my-run ZONE=us-east5-b TYPE=v6e-64 VERSION=v2-alpha-tpuv6e SLICES=2 \
#     SPOT=1 SETUP='...' launch/tpu_vm.sh --config=... --workdir=gs://...
# Ctrl-C or SIGTERM: all workers save, then this ends; what was queued stays.
set -euo pipefail
: "${TPU:?set it to the name of the TPU}" "${ZONE:?set it to the zone of $TPU}"
: "${TYPE:=}" "${SLICES:=1}" "${SPOT:=}" "${SETUP:=}" "${FLAGS:=}"
: "${TRIES:=10}" "${POLL:=60}" # seconds
queue=(gcloud compute tpus queued-resources)
ssh=(gcloud compute tpus tpu-vm ssh "$TPU" --worker=all)
if [ -n "$TYPE" ]; then
  : "${VERSION:?set it to the runtime version of the TPU VMs}"
  : "${SETUP:?set it to the commands that bring ~/ijepa_jax to a new worker}"
  ssh=("${queue[@]}" ssh "$TPU" --node=all --worker=all)
fi
# All at once, since all wait for one another.
ssh+=(--zone="$ZONE" --batch-size=all --quiet)

# Ends what an earlier line has become, if it is still that, and waits.
# shellcheck disable=SC2016 # for the workers
end='( p=$(cat ~/.ijepa_pid 2> /dev/null) && grep -qs main.py "/proc/$p/cmdline" &&
kill "$p" && for _ in $(seq 120); do kill -0 "$p" 2> /dev/null || exit 0; sleep 1;
done && kill -KILL "$p" )'
# Before the line too: where a connection breaks gcloud starts it once more, and
# what it has started before runs on.
line="cd ijepa_jax && echo \$\$ > ~/.ijepa_pid && \
exec launch/local.sh$([ $# -eq 0 ] || printf ' %q' "$@")"
if [ -n "$SETUP" ]; then
  line="{ [ -e ~/.ijepa_ready ] || { ( $SETUP ) && touch ~/.ijepa_ready; }; } \
&& $line"
fi
line="$end; $line"

state() {
  local answer
  if answer=$("${queue[@]}" describe "$TPU" --zone="$ZONE" \
    --format='value(state.state)' 2>&1); then
    echo "${answer##*$'\n'}" # after warnings
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo ABSENT
  else
    echo "$answer" >&2
    echo UNKNOWN
  fi
}

create() {
  local flags=(--zone="$ZONE" --accelerator-type="$TYPE")
  flags+=(--runtime-version="$VERSION" ${SPOT:+--spot})
  if [ "$SLICES" -gt 1 ]; then
    flags+=(--node-count="$SLICES" --node-prefix="$TPU")
  else
    flags+=(--node-id="$TPU")
  fi
  # shellcheck disable=SC2086 # several flags
  "${queue[@]}" create "$TPU" "${flags[@]}" --quiet $FLAGS
}

delete() {
  "${queue[@]}" delete "$TPU" --zone="$ZONE" --force --quiet
}

running='' stopped=0
stop() {
  stopped=$1
  [ -n "$running" ] || exit "$stopped"
  trap '' INT TERM
  echo 'All workers save and end.' >&2
  "${ssh[@]}" --command="$end" || true
}
trap 'stop 130' INT
trap 'stop 143' TERM

pause() { # a signal ends it
  sleep "$POLL" &
  wait $! || true
}

run() { # -> status: that of a worker that failed, 255 if a connection broke
  # In a process group of its own: Ctrl-C would only cut the connection.
  set -m
  "${ssh[@]}" --command="$line" < /dev/null &
  set +m
  running=$! status=0
  wait "$running" || status=$?
  if [ "$stopped" -ne 0 ]; then
    wait "$running" || true
    exit "$stopped"
  fi
  running=''
}

# What failed is tried again, TRIES times within short: a mistake ends.
tries=0
again() {
  tries=$((tries + 1))
  [ "$tries" -lt "$TRIES" ] || exit "$1"
}

if [ -z "$TYPE" ]; then
  run
  exit "$status"
fi
while true; do
  case "$(state)" in
    ABSENT) create ;;
    SUSPENDED) delete ;; # pre-empted: the same is queued for again
    FAILED)
      echo "Refused: ${queue[*]} describe $TPU --zone=$ZONE says why." >&2
      exit 1
      ;;
    UNKNOWN)
      again 1
      pause
      ;;
    ACTIVE)
      began=$SECONDS
      run
      [ $((SECONDS - began)) -lt 1800 ] || tries=0
      if [ "$status" -eq 0 ]; then
        delete
        exit 0
      fi
      pause
      # 143: all is saved, the same line goes on.
      if [ "$status" -ne 143 ] && [ "$(state)" = ACTIVE ]; then
        again "$status"
      fi
      ;;
    *) pause ;; # WAITING_FOR_RESOURCES, PROVISIONING, SUSPENDING, ...
  esac
done
