#!/usr/bin/env bash
# Submits one command to a cluster that xpk made. `xpk.sh --help` says how.
set -euo pipefail

# shellcheck source=launch/gke/flags.sh
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

usage() {
  cat <<'TEXT'
usage: launch/gke/xpk.sh --name NAME --type TYPE --image IMAGE --cluster CLUSTER --zone ZONE [flags] -- COMMAND...

Runs `xpk workload create`: COMMAND on each host of a TPU slice, restarted after every failure but exit code 2.

TEXT
  shared_usage
  cat <<'TEXT'
  --cluster CLUSTER       made by `xpk cluster create`
  --zone ZONE             of the cluster
  --project PROJECT       default: gcloud's own
  --dry-run               print the command
  --help
TEXT
}

cluster="" zone="" project=""

read_own_flag() {
  case $1 in
    --cluster | --zone | --project) set_flag "$@" ;;
    *) return 1 ;;
  esac
}

main() {
  local flag entry line create
  read_flags "$@"
  check_shared_flags
  for flag in --cluster --zone; do require_flag "$flag"; done
  need_tool xpk "pip install xpk"
  line=$(literal "$(quoted "${command[@]}")") # one line even of arguments with newlines: xpk puts it into a YAML block
  create=(xpk workload create "--cluster=$cluster" "--zone=$zone")
  [[ -z $project ]] || create+=("--project=$project")
  create+=("--workload=$name" "--tpu-type=$type" "--num-slices=$slices" "--docker-image=$image"
    "--max-restarts=$max_restarts"
    # Beside those above 126 and 42, after which xpk restarts by itself.
    "--restart-on-exit-codes=1,75"
    --termination-grace-period-seconds=300)
  ! $spot || create+=(--spot)
  [[ -z $reservation ]] || create+=("--reservation=$reservation")
  for entry in "${env[@]}"; do create+=("--env=$(literal "$entry")"); done
  run "${create[@]}" "--command=$line"
}

main "$@"
