#!/usr/bin/env bash
# Runs a job on a TPU slice: creates it, copies this repository there, runs on
# all its hosts, collects the results and deletes it.
#
#   NAME=search ZONE=us-east5-b ACCELERATOR_TYPE=v6e-16 \
#     RUNTIME_VERSION=v2-alpha-tpuv6e WORKDIR=gs://bucket/search SPOT=1 \
#     launch/tpu_pod.sh --config=configs/pixel4.py [...]
#
# All arguments are those of hwdarts_jax.main; --workdir and --multihost are
# added. A slice that is preempted is deleted and requested again, and the run
# goes on from its last checkpoint, which is why WORKDIR must be in a bucket.
#
# Variables:
#   NAME              of the queued resource and of its node
#   ZONE              of the slice
#   ACCELERATOR_TYPE  such as v6e-16
#   RUNTIME_VERSION   such as v2-alpha-tpuv6e
#   WORKDIR           gs://..., of the run
# Optional:
#   PROJECT           by default that of gcloud
#   SPOT=1            cheaper, and can be preempted
#   COLLECT           folder to which the results are copied (runs)
#   RESTARTS          after how many preemptions to give up (20)
#   POLL_SECONDS      between two looks at a request that waits (30)
#   KEEP=1            do not delete the slice at the end
#   DRY_RUN=1         print what would be done, and do nothing
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/_common.sh
source "$here/_common.sh"
[[ ${1:-} != --help && ${1:-} != -h ]] || usage "$0"
need NAME ZONE ACCELERATOR_TYPE RUNTIME_VERSION WORKDIR
need_config "$@"
need_command gcloud
[[ $WORKDIR == gs://* ]] ||
  fail "WORKDIR is '$WORKDIR'; it must be in a bucket, gs://..., as the disks" \
    'of a preempted slice are lost.'
RESTARTS=${RESTARTS:-20}
POLL_SECONDS=${POLL_SECONDS:-30}
need_number RESTARTS POLL_SECONDS
cd "$here/.."

place=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"} --quiet)
archive=$(mktemp -u "${TMPDIR:-/tmp}/hwdarts_jax-XXXXXX.tar.gz")
[[ -z ${DRY_RUN:-} ]] || archive=hwdarts_jax.tar.gz

create() {
  act gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" \
    --accelerator-type="$ACCELERATOR_TYPE" \
    --runtime-version="$RUNTIME_VERSION" ${SPOT:+--spot} "${place[@]}"
}

delete() {
  act gcloud compute tpus queued-resources delete "$NAME" --force "${place[@]}"
}

# ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ... of the request; empty: none.
state() {
  if [[ -n ${DRY_RUN:-} ]]; then
    echo ACTIVE
    return
  fi
  gcloud compute tpus queued-resources describe "$NAME" \
    --format='value(state.state)' "${place[@]}" 2>/dev/null || true
}

# READY, PREEMPTED, TERMINATED, ... of the node.
health() {
  gcloud compute tpus tpu-vm describe "$NAME" --format='value(state)' \
    "${place[@]}" 2>/dev/null || true
}

# Requests the slice, unless one of before is there (KEEP=1) or in the queue.
request() {
  local now=''
  [[ -n ${DRY_RUN:-} ]] || now=$(state)
  case $now in
    ACTIVE | CREATING | ACCEPTED | PROVISIONING | WAITING_FOR_RESOURCES) ;;
    '') create || fail "$NAME cannot be requested; gcloud says why above." ;;
    *)
      delete
      create || fail "$NAME was $now and cannot be requested anew."
      ;;
  esac
}

# Waits until the slice is there; 1 if the request came to nothing.
await_active() {
  local now
  while true; do
    now=$(state)
    case $now in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING | '') return 1 ;;
    esac
    echo "$NAME: $now" >&2
    sleep "$POLL_SECONDS"
  done
}

on_all() {
  act gcloud compute tpus tpu-vm ssh "$NAME" --worker=all --command="$1" \
    "${place[@]}"
}

# The repository as it was committed, and an environment, on every host.
install() {
  # The Python of a slice may be older than 3.11: uv brings one.
  local steps=(
    'mkdir -p hwdarts_jax'
    'tar -xzf hwdarts_jax.tar.gz -C hwdarts_jax'
    'cd hwdarts_jax'
    'python3 -m pip install -q --user uv'
    'python3 -m uv venv -q --allow-existing --python 3.12 .venv'
    'python3 -m uv pip install -q -e ".[tpu,gcs]"'
  )
  local all
  all=$(printf '%s && ' "${steps[@]}")
  act git archive --format=tar.gz --output="$archive" HEAD &&
    act gcloud compute tpus tpu-vm scp "$archive" "$NAME:hwdarts_jax.tar.gz" \
      --worker=all "${place[@]}" &&
    on_all "${all% && }"
}

# Whether what failed, failed because the slice was taken away.
was_taken() {
  [[ $(state) != ACTIVE || $(health) != READY ]]
}

clean() {
  rm -f "$archive"
  [[ -n ${KEEP:-} || -z $(state) ]] || delete ||
    echo "Delete $NAME yourself: it costs." >&2
}

# Returns the exit code of what failed.
attempt() {
  request && await_active && install &&
    on_all "cd hwdarts_jax && .venv/bin/python -m hwdarts_jax.main $job"
}

job=$(quoted "$@" --workdir="$WORKDIR" --multihost)
trap clean EXIT
for ((taken = 0; ; taken++)); do
  code=0
  attempt || code=$?
  ((code)) || break
  was_taken || fail 'the run failed on a slice that is well; its messages are' \
    "above, and $WORKDIR keeps what was done."
  ((taken < RESTARTS)) ||
    fail "$NAME was taken away $((taken + 1)) times; RESTARTS is $RESTARTS."
  echo "$NAME was taken away; requesting it again." >&2
  sleep "$POLL_SECONDS"
  # The request may still be called active while its node is gone.
  [[ -z $(state) ]] || delete
done
act mkdir -p "${COLLECT:-runs}"
act gcloud storage cp "$WORKDIR" "${COLLECT:-runs}/" --recursive
