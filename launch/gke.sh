#!/usr/bin/env bash
# Runs a job on a TPU slice of a GKE cluster, as the JobSet of gke_jobset.yaml.
#
#   NAME=search IMAGE=REGISTRY/hwdarts_jax HOSTS=4 CHIPS_PER_HOST=4 \
#     ACCELERATOR=tpu-v6e-slice TOPOLOGY=4x4 WORKDIR=gs://bucket/search \
#     launch/gke.sh --config=configs/pixel4.py [...]
#
# All arguments are those of hwdarts_jax.main; --workdir and --multihost are
# added. The cluster must have the JobSet controller. If a host is taken away
# all are restarted and the run goes on from its last checkpoint.
#
# Variables:
#   NAME             of the JobSet
#   IMAGE            made from launch/Dockerfile
#   HOSTS            of the slice
#   CHIPS_PER_HOST   of the slice
#   ACCELERATOR      label of the nodes, such as tpu-v6e-slice
#   TOPOLOGY         such as 4x4
#   WORKDIR          gs://..., of the run
# Optional:
#   SERVICE_ACCOUNT  that may write to the bucket (default)
#   RESTARTS         after how many to give up (20)
#   DRY_RUN=1        print the JobSet, and do nothing
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/_common.sh
source "$here/_common.sh"
[[ ${1:-} != --help && ${1:-} != -h ]] || usage "$0"
need NAME IMAGE HOSTS CHIPS_PER_HOST ACCELERATOR TOPOLOGY WORKDIR
need_config "$@"
need_command kubectl
export SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default} RESTARTS=${RESTARTS:-20}
need_number HOSTS CHIPS_PER_HOST RESTARTS
[[ $WORKDIR == gs://* ]] ||
  fail "WORKDIR is '$WORKDIR'; it must be in a bucket, gs://..., as pods have no disk of their own."

# JSON is YAML, so values need no other quotes.
manifest=$(
  python3 - "$here/gke_jobset.yaml" "$@" --workdir="$WORKDIR" --multihost <<'EOF'
import json, os, string, sys

numbers = ('HOSTS', 'CHIPS_PER_HOST', 'RESTARTS')
values = {
  k: v if k in numbers else json.dumps(v) for k, v in os.environ.items()
}
template = string.Template(open(sys.argv[1]).read())
print(template.substitute(values | {'ARGS': json.dumps(sys.argv[2:])}))
EOF
)
if [[ -n ${DRY_RUN:-} ]]; then
  echo "$manifest"
else
  kubectl apply -f - <<<"$manifest"
fi
