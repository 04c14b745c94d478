#!/usr/bin/env bash
# Runs a job on this machine: makes the environment, runs, goes on after a kill.
#
#   launch/run.sh --config=configs/pixel4.py [--workdir=W] [...]
#
# All arguments are those of hwdarts_jax.main. A process that is killed (out of
# memory, a driver that fails) is started again and resumes from its last
# checkpoint; an error that you must mend (exit code 2) ends at once.
#
# Variables, all optional:
#   VENV        the environment, made where it is missing (.venv)
#   PYTHON      what makes it, 3.11 or newer (python3)
#   EXTRA       of the package: cuda, tpu, gcs, tflite, or several joined by
#               commas; by default cuda or tpu where the machine has one
#   RESTARTS    after how many kills to give up (3)
#   DRY_RUN=1   print what would be done, and do nothing
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/_common.sh
source "$here/_common.sh"
[[ ${1:-} != --help && ${1:-} != -h ]] || usage "$0"
need_config "$@"
cd "$here/.."

venv=${VENV:-.venv}
RESTARTS=${RESTARTS:-3}
need_number RESTARTS
need_command "${PYTHON:-python3}"

extra() {
  if [[ -n ${EXTRA+x} ]]; then
    echo "$EXTRA"
  elif command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
    echo cuda
  elif compgen -G '/dev/accel*' >/dev/null || compgen -G '/dev/vfio/[0-9]*' >/dev/null; then
    echo tpu
  fi
}

if [[ ! -x $venv/bin/python ]]; then
  extra=$(extra)
  act "${PYTHON:-python3}" -m venv "$venv"
  act "$venv/bin/pip" install -q -e ".${extra:+[$extra]}"
fi

for ((kills = 0; ; kills++)); do
  code=0
  act "$venv/bin/python" -m hwdarts_jax.main "$@" || code=$?
  # 130 is Control-C: the user wants it to end. Kills are 128 + the signal.
  if ((code <= 128 || code == 130 || kills >= RESTARTS)); then
    exit "$code"
  fi
  echo "Killed (exit code $code); going on from the last checkpoint." >&2
done
