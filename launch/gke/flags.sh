# shellcheck shell=bash
# The flags that submit.sh and xpk.sh share. The script that sources this defines `usage` and `read_own_flag`.

# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

# shellcheck disable=SC2034  # for the scripts that source this
name="" type="" image="" slices=1 max_restarts=100 spot=false reservation="" env=() command=()

shared_usage() {
  cat <<'TEXT'
  --name NAME             of the JobSet
  --type TYPE             v5litepod-64 (or v5e-64), v5p-128, v6e-64, v4-128, ...; all: launch/README.md
  --image IMAGE           built from launch/gke/Dockerfile
  --slices N              of TYPE; default: 1
  --spot                  on Spot VMs
  --reservation NAME      on a reservation of yours
  --max-restarts N        default: 100
  --env KEY=VALUE         for COMMAND; may be repeated
TEXT
}

read_flags() {
  while (($#)); do
    case $1 in
      --) command=("${@:2}") && break ;;
      --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" && continue ;;
      --name | --type | --image | --slices | --reservation | --max-restarts) set_flag "$@" && shift ;;
      --env) need_value "$@" && check_env "$2" && env+=("$2") && shift ;;
      --spot) spot=true ;;
      --dry-run) dry_run=true ;;
      --help | -h) usage && exit ;;
      -*)
        read_own_flag "$@" || die "unknown flag $1; see --help"
        shift
        ;;
      *) die "unexpected argument $1; the command to run comes after --" ;;
    esac
    shift
  done
}

check_shared_flags() {
  local flag
  for flag in --name --type --image; do require_flag "$flag"; done
  ((${#command[@]})) || die "no command: give it after --; see --help"
  check_name "$name"
  check_count --slices "$slices"
  check_count --max-restarts "$max_restarts"
  ! { $spot && [[ -n $reservation ]]; } || die "--spot and --reservation exclude each other"
  type=$(canonical_type "$type")
  read_accelerator "$type"
  ((slices == 1 || hosts > 1)) || die "--slices $slices: a slice of several must have several hosts, $type has one"
}

# Kubernetes replaces $(NAME) and $$ in commands and environments.
literal() { printf '%s' "${1//\$/\$\$}"; }
