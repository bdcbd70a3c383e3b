#!/usr/bin/env bash
# Submits one command to a GKE cluster as a JobSet. `submit.sh --help` says how.
set -euo pipefail

gke=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/gke/flags.sh
source "$gke/flags.sh"

usage() {
  cat <<'TEXT'
usage: launch/gke/submit.sh --name NAME --type TYPE --image IMAGE [flags] -- COMMAND...

Fills in launch/gke/jobset.yaml and creates it: one pod on each host of a TPU slice runs COMMAND. Exit code 2 (bad input)
fails the JobSet; every other failure, preemption and exit code 75 (saved) among them, restarts it.

TEXT
  shared_usage
  cat <<'TEXT'
  --context CONTEXT       of kubectl; default: the current one
  --namespace NAMESPACE   default: default
  --service-account NAME  Kubernetes service account with access to the bucket; default: default
  --dry-run               print the manifest, and the command that would create it as a comment
  --help
TEXT
}

context="" namespace=default service_account=default

read_own_flag() {
  case $1 in
    --context | --namespace | --service-account) set_flag "$@" ;;
    *) return 1 ;;
  esac
}

# The arguments as a JSON list, which is YAML too.
json_list() {
  local argument list=""
  for argument in "$@"; do list+=", $(json "$argument")"; done
  printf '[%s]' "${list:2}"
}

json() {
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\r'/\\r}
  text=${text//$'\t'/\\t}
  printf '"%s"' "$text"
}

env_list() {
  local entry list=""
  for entry in "${env[@]}"; do
    list+=", {\"name\": $(json "${entry%%=*}"), \"value\": $(json "$(literal "${entry#*=}")")}"
  done
  printf '[%s]' "${list:2}"
}

node_selector() {
  local selector
  selector="\"cloud.google.com/gke-tpu-accelerator\": \"$gke_accelerator\""
  selector+=", \"cloud.google.com/gke-tpu-topology\": \"$topology\""
  ! $spot || selector+=', "cloud.google.com/gke-spot": "true"'
  [[ -z $reservation ]] || selector+=", \"cloud.google.com/reservation-name\": $(json "$reservation")"
  printf '{%s}' "$selector"
}

annotations() {
  if ((hosts > 1)); then # a slice is a node pool, and a node pool runs one slice's pods
    printf '{"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}'
  else
    printf '{}'
  fi
}

manifest() {
  local line argument literal_command=()
  for argument in "${command[@]}"; do literal_command+=("$(literal "$argument")"); done
  local -A value=(
    [name]=$(json "$name") [namespace]=$(json "$namespace") [annotations]=$(annotations) [max_restarts]=$max_restarts
    [slices]=$slices [hosts]=$hosts [service_account]=$(json "$service_account") [node_selector]=$(node_selector)
    [image]=$(json "$image") [command]=$(json_list "${literal_command[@]}") [env]=$(env_list)
    [chips_per_host]=$chips_per_host
  )
  while IFS= read -r line; do
    if [[ $line =~ ^(.*)\{\{([a-z_]+)\}\}(.*)$ ]]; then
      line=${BASH_REMATCH[1]}${value[${BASH_REMATCH[2]}]}${BASH_REMATCH[3]}
    fi
    printf '%s\n' "$line"
  done <"$gke/jobset.yaml"
}

main() {
  local text kubectl
  read_flags "$@"
  check_shared_flags
  need_tool kubectl "gcloud components install kubectl"
  kubectl=(kubectl)
  [[ -z $context ]] || kubectl+=("--context=$context")
  text=$(manifest)
  if $dry_run; then
    printf '%s\n# %s\n' "$text" "$(quoted "${kubectl[@]}" create --filename=-)"
    return
  fi
  printf '%s\n' "$text" | "${kubectl[@]}" create --filename=-
  say "how it goes: $(quoted "${kubectl[@]}" get jobset "$name" "--namespace=$namespace")"
  say "worker 0's log: $(quoted "${kubectl[@]}" logs --follow "--namespace=$namespace" \
    "--selector=jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0")"
  say "to stop it: $(quoted "${kubectl[@]}" delete jobset "$name" "--namespace=$namespace")"
}

main "$@"
