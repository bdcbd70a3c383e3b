#!/usr/bin/env bash
# Runs one command on every worker of a TPU slice until it is done. `tpu_vm.sh --help` says how.
set -euo pipefail

launch=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/lib.sh
source "$launch/lib.sh"
root=$(dirname "$launch")

usage() {
  cat <<'TEXT'
usage: launch/tpu_vm.sh --name NAME --zone ZONE --type TYPE [flags] -- COMMAND...

Creates or reuses a TPU VM, installs this package on all its workers, starts COMMAND on all of them and follows worker
0's log. A preempted slice is deleted and created again, and COMMAND started again, until it is done. The run survives
this script: the same command line finds it and follows on.

  --name NAME             of the TPU VM (and of the queued resource)
  --zone ZONE             for example us-west4-a
  --type TYPE             v5litepod-64 (or v5e-64), v5p-128, v6e-64, v4-128, ...; all: launch/README.md
  --project PROJECT       default: gcloud's own
  --version VERSION       runtime image; default: the one for JAX on TYPE

  --spot                  cheaper, can be preempted at any time
  --reserved              from a reservation of yours
  --queued                as a queued resource: waits for capacity, instead of asking again and again

  --network NAME          default: the network `default`
  --subnetwork NAME
  --internal-ips          workers without external addresses; run this from inside the network, which needs Cloud NAT
  --service-account MAIL  whom the workers act as; default: Compute Engine's default account

  --rev REVISION          of this checkout; default: HEAD. Uncommitted changes are left out
  --repo URL              the workers clone this instead (then --rev is required: a tag or a commit)
  --extras LIST           of the package; default: tpu
  --env KEY=VALUE         for COMMAND; may be repeated

  --delete                delete the slice when COMMAND is done or cannot go on
  --keep                  keep it, which costs money (default)
  --dry-run               print every command of an undisturbed run, run none
  --help

COMMAND's exit codes: 0 done, 75 saved (started again), 2 bad input (stops). Anything else is a fault: started again, and
given up after the third in a row. This script ends with 0 done, 2 bad input, 75 told to stop following, 1 otherwise.

  launch/tpu_vm.sh --name ftfv --zone us-west4-a --type v5e-64 --spot --queued --delete -- \
    python -m vlvm_jax.train --config=configs/ftfv.py:llava-1.5-7b,data=gs://my-bucket/data \
      --workdir=gs://my-bucket/runs/ftfv
TEXT
}

poll=${VLVM_LAUNCH_POLL:-60}    # seconds between two looks
grace=${VLVM_LAUNCH_GRACE:-300} # seconds a worker has to save once another one has ended
max_misses=20                   # looks in a row without an answer
max_faults=3                    # faults in a row

name="" zone="" type="" project="" version="" network="" subnetwork="" service_account="" rev="" repo=""
extras=tpu
spot=false reserved=false queued=false internal_ips=false delete="" command=() env=()

read_flags() {
  while (($#)); do
    case $1 in
      --) command=("${@:2}") && break ;;
      --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" && continue ;;
      --name | --zone | --type | --project | --version | --network | --subnetwork | --service-account | --rev | --repo | --extras)
        set_flag "$@" && shift
        ;;
      --env) need_value "$@" && check_env "$2" && env+=("$2") && shift ;;
      --spot) spot=true ;;
      --reserved) reserved=true ;;
      --queued) queued=true ;;
      --internal-ips) internal_ips=true ;;
      --keep | --delete)
        [[ -z $delete || $delete == "$1" ]] || die "--keep and --delete exclude each other"
        delete=$1
        ;;
      --dry-run) dry_run=true ;;
      --help | -h) usage && exit ;;
      -*) die "unknown flag $1; see --help" ;;
      *) die "unexpected argument $1; the command to run comes after --" ;;
    esac
    shift
  done
}

check_flags() {
  local flag
  for flag in --name --zone --type; do require_flag "$flag"; done
  ((${#command[@]})) || die "no command: give it after --; see --help"
  check_name "$name"
  ! { $spot && $reserved; } || die "--spot and --reserved exclude each other"
  [[ -z $repo || -n $rev ]] || die "--repo needs --rev: a tag or a commit, the same on all workers and after a restart"
  type=$(canonical_type "$type")
  version=${version:-$(runtime_version "$type")}
  [[ -n $version ]] || die "--type $type: no runtime image is known for it; give --version"
  need_tool gcloud "install the Google Cloud CLI, https://cloud.google.com/sdk/docs/install"
}

# Google's table for JAX: https://cloud.google.com/tpu/docs/runtimes
runtime_version() {
  case $1 in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
  esac
}

# Everything that follows from the flags.
settle() {
  where=("--zone=$zone" --quiet)
  [[ -z $project ]] || where+=("--project=$project")
  ssh_flags=(--strict-host-key-checking=no)
  ! $internal_ips || ssh_flags+=(--internal-ip)
  start_arguments=("${env[@]}" -- "${command[@]}")
  run_id=$(printf '%s\0' "${start_arguments[@]}" | cksum | cut -d' ' -f1)
  if $queued; then # --force deletes the TPU VM as well
    removal=(gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force)
  else
    removal=(gcloud compute tpus tpu-vm delete "$name" "${where[@]}")
  fi
  cache=${XDG_CACHE_HOME:-$HOME/.cache}/vlvm_jax/launch/$name
  archive=$cache/vlvm_jax.tar.gz
  log=$cache/worker0.log
  messages=$cache/messages
  log_start=0 # the size of our copy when the slice was created
  fresh=false # created just now, nothing on it yet
  faults=0
  # What an undisturbed run is told, for dry runs.
  rehearsed=(NOT_FOUND "READY $type" "vlvm_jax: exit 0 $run_id")
  ! $queued || rehearsed=(NOT_FOUND ACTIVE "READY $type" "vlvm_jax: exit 0 $run_id")
  if ! $dry_run; then
    mkdir -p "$cache"
    : >"$log"
  fi
}

# Runs a command with its output in `answer` and its messages in a file.
ask() {
  if $dry_run; then
    run "$@"
    answer=${rehearsed[0]}
    rehearsed=("${rehearsed[@]:1}")
    [[ $answer != NOT_FOUND ]]
  else
    answer=$("$@" 2>"$messages")
  fi
}

not_found() {
  if $dry_run; then [[ $answer == NOT_FOUND ]]; else grep -q NOT_FOUND "$messages"; fi
}

pause() { $dry_run || sleep "$poll"; }

# Sets `phase`: absent, waiting, ready, gone (to be created again), failed, or unknown.
look() {
  local found_type
  if $queued; then
    describe queued-resources state.state || return 0
    state=$answer
  else
    state=ACTIVE
  fi
  if [[ $state == ACTIVE ]]; then
    if ! describe tpu-vm "state,acceleratorType"; then
      ! { $queued && [[ $phase == absent ]]; } || phase=gone
      return 0
    fi
    read -r state found_type <<<"$answer"
    [[ -z $found_type || ${found_type##*/} == "$type" ]] || die "$name is a ${found_type##*/}, not a $type: give another --name or delete it"
  fi
  case $state in
    READY) phase=ready ;;
    PREEMPTED | TERMINATED | SUSPENDED) phase=gone ;;
    FAILED) phase=failed ;;
    STOPPED) die "$name is stopped: start it or delete it" ;;
    *) phase=waiting ;;
  esac
}

# describe KIND FIELDS: in `answer`; false with phase absent or unknown.
describe() {
  phase=unknown state=missing
  ask gcloud compute tpus "$1" describe "$name" "${where[@]}" "--format=value($2)" && return
  ! not_found || phase=absent
  return 1
}

create() {
  local options=()
  ! $spot || options+=(--spot)
  ! $reserved || options+=(--reserved)
  [[ -z $network ]] || options+=("--network=$network")
  [[ -z $subnetwork ]] || options+=("--subnetwork=$subnetwork")
  ! $internal_ips || options+=(--internal-ips)
  [[ -z $service_account ]] || options+=("--service-account=$service_account")
  fresh=true
  $dry_run || log_start=$(wc -c <"$log")
  say "creating $name: $type in $zone"
  if $queued; then
    run gcloud compute tpus queued-resources create "$name" "${where[@]}" --node-id="$name" \
      --accelerator-type="$type" --runtime-version="$version" "${options[@]}" || fail "$name was not created"
  elif ! try_create "${options[@]}"; then
    grep -qi "no more capacity" "$messages" || fail "$name was not created: $(<"$messages")"
    say "no capacity in $zone; asking again in $poll s (--queued waits in a queue instead)"
    pause
  fi
}

try_create() {
  local create=(gcloud compute tpus tpu-vm create "$name" "${where[@]}" --accelerator-type="$type" --version="$version" "$@")
  if $dry_run; then run "${create[@]}"; else "${create[@]}" 2>"$messages"; fi
}

remove() {
  run "${removal[@]}" || fail "$name was not deleted; it may go on costing money"
}

# Creates the slice or waits for it, however often it takes, until it is ready.
acquire() {
  local misses=0 failures=0 answered=false shown=""
  while true; do
    look
    if [[ $phase == unknown ]]; then
      if ! $answered || ((++misses == max_misses)); then
        fail "gcloud does not say how $name is: $(<"$messages")"
      fi
      pause
      continue
    fi
    answered=true misses=0
    case $phase in
      ready) return ;;
      absent) create ;;
      gone)
        say "$name is $state: creating it again"
        remove
        ;;
      failed)
        gcloud compute tpus queued-resources describe "$name" "${where[@]}" "--format=value(state)" >&2 || true
        ((++failures < max_faults)) || fail "$name FAILED $failures times; it is kept, to be looked at"
        say "$name is FAILED: creating it again"
        remove
        ;;
      waiting)
        [[ $state == "$shown" ]] || say "$name is $state"
        shown=$state
        pause
        ;;
    esac
  done
}

# on_workers WORKER ACTION ARGUMENTS...: calls vlvm_worker.sh on one worker or on all.
on_workers() {
  remote_command "$@"
  run "${remote[@]}"
}

remote_command() {
  remote=(gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" "${ssh_flags[@]}"
    # Or a lost machine would keep the ssh waiting.
    --ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=4
    --command="bash vlvm_worker.sh $(quoted "${@:2}")")
}

ask_status() {
  remote_command all status
  ask "${remote[@]}" && [[ $answer == *"vlvm_jax: "* ]]
}

# Whether this very command runs already: started by this script in an earlier life.
attach() {
  local line others=0 ours=0
  ask_status || return 1
  while read -r line; do
    case $line in
      "vlvm_jax: running $run_id") ((++ours)) ;;
      "vlvm_jax: running "*) die "$name is running another command; $(how_to_stop)" ;;
      *) ((++others)) ;;
    esac
  done <<<"$answer"
  if ((ours && others)); then
    on_workers all stop "$grace"
  fi
  ((ours && !others))
}

how_to_stop() {
  remote_command all stop "$grace"
  printf 'to stop it: %s' "$(quoted "${remote[@]}")"
}

install() {
  local files=("$launch/vlvm_worker.sh") arguments=("$extras")
  if [[ -n $repo ]]; then
    arguments+=("$repo" "$rev")
  else
    pack
    files+=("$archive")
  fi
  say "installing on all workers"
  run gcloud compute tpus tpu-vm scp "${files[@]}" "$name:" "${where[@]}" --worker=all "${ssh_flags[@]}" &&
    on_workers all install "${arguments[@]}"
}

pack() {
  local changes
  if ! $dry_run; then
    changes=$(git -C "$root" status --porcelain --untracked-files=no) ||
      die "this is no git checkout: give --repo and --rev"
    [[ -z $changes ]] || say "uncommitted changes are left out"
  fi
  run git -C "$root" archive --format=tar.gz "--output=$archive" "${rev:-HEAD}" || die "--rev $rev: not in this checkout"
}

# Has the command running on all workers; false if that failed.
start() {
  if $fresh; then
    fresh=false
  elif attach; then
    say "$name is running this command already"
    return
  fi
  install || return
  say "starting on all workers"
  on_workers all start "${start_arguments[@]}"
}

# Prints what came to worker 0's log since the last time, and on for some seconds.
follow() {
  local offset=0
  $dry_run || offset=$(($(wc -c <"$log") - log_start))
  remote_command 0 follow "$offset" "$1"
  if $dry_run; then
    run "${remote[@]}"
  else
    "${remote[@]}" 2>"$messages" | tee -a "$log"
  fi
}

# Follows the run to its end. Sets `outcome`: finished, bad_input, interrupted, fault or gone.
watch() {
  local misses=0 reason
  while true; do
    follow "$poll" || true
    if ask_status; then
      misses=0
      judge
      [[ $outcome == running ]] || break
    else
      reason=$(tail -n 1 "$messages")
      look
      case $phase in
        ready | unknown) ((++misses < max_misses)) || fail "the workers of $name do not answer: $reason" ;;
        waiting) say "$name is $state" ;;
        *) outcome=gone && return ;;
      esac
      pause
    fi
  done
  follow 0 || true
  wind_up
}

# One worker's exit code decides for all: the others wait for it in a collective operation.
judge() {
  local word code running=0 faulty=0 lost=0
  outcome=""
  while read -r _ word code _; do
    case $word:$code in
      running:*) running=1 ;;
      exit:0) ;;
      exit:2) outcome=bad_input ;;
      exit:75 | lost:* | absent:*) lost=1 ;;
      *) faulty=1 ;;
    esac
  done < <(grep "^vlvm_jax: " <<<"$answer")
  [[ -z $outcome ]] || return 0
  if ((lost)); then
    outcome=interrupted
  elif ((faulty)); then
    outcome=fault
  elif ((running)); then
    outcome=running
  else
    outcome=finished
  fi
}

# Ends what still runs, and shows why, where there is something to explain.
wind_up() {
  if [[ $answer == *"vlvm_jax: running"* ]]; then
    on_workers all stop "$grace" || true
  fi
  case $outcome in
    bad_input | fault) on_workers all why || true ;;
  esac
}

finish() {
  if [[ $delete == --delete ]]; then
    say "deleting $name"
    remove
  else
    say "$name is kept and goes on costing money; to delete it: $(quoted "${removal[@]}")"
  fi
  exit "$1"
}

on_signal() {
  say "no longer following. The run goes on and costs money; the same command line follows it again"
  say "$(how_to_stop)"
  say "to delete it: $(quoted "${removal[@]}")"
  exit 75
}

main() {
  read_flags "$@"
  check_flags
  settle
  $dry_run || trap on_signal INT TERM
  while true; do
    acquire
    outcome=fault
    if start; then watch; fi
    # A preempted machine first shows as a fault of the command.
    if [[ $outcome == fault ]] && pause && look && [[ $phase != ready ]]; then outcome=gone; fi
    case $outcome in
      finished) say "done" && finish 0 ;;
      bad_input) say "the command refused its input (exit code 2)" && finish 2 ;;
      interrupted) say "interrupted and saved; starting again" && faults=0 ;;
      gone) say "lost $name" && faults=0 ;;
      fault)
        ((++faults < max_faults)) || {
          say "$faults faults in a row: giving up"
          finish 1
        }
        say "fault $faults of $max_faults; starting again"
        ;;
    esac
  done
}

main "$@"
