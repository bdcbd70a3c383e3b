#!/usr/bin/env bash
# One worker's side of tpu_vm.sh, which copies this file to every worker and calls it over ssh. All it keeps is in
# ~/vlvm_jax: src/ and venv/, and of the run: log, exit_code, id (of the command), pid, group and lock.
#
#   install EXTRAS [URL REVISION]         from ~/vlvm_jax.tar.gz, or from a git repository
#   start [KEY=VALUE ...] -- COMMAND...   in the background, in a session that outlives the ssh
#   status                                one line: `vlvm_jax: absent|running ID|lost ID|exit CODE ID`
#   follow OFFSET SECONDS                 the log from a byte on, until the run ends or the seconds are over
#   stop SECONDS                          SIGTERM, and SIGKILL after the seconds
#   why                                   the log's last lines, where the command failed
set -euo pipefail

script=$(realpath "${BASH_SOURCE[0]}")
base=$HOME/vlvm_jax

fail() {
  printf '%s\n' "error: $(hostname): $*" >&2
  exit 1
}

# put FILE TEXT, whole or not at all.
put() {
  printf '%s' "$2" >"$base/$1.new"
  mv "$base/$1.new" "$base/$1"
}

# The supervisor and all its children hold the lock: it tells a live run from a rebooted machine, as a pid would not.
locked() { ! flock --shared --nonblock "$base/lock" true; }

kill_group() {
  kill -KILL -- "-$(<"$base/group")" 2>/dev/null || true
  flock --wait 30 "$base/lock" true || fail "an earlier run does not die"
}

install() {
  local extras=$1 stamp
  mkdir -p "$base"
  if (($# > 1)); then
    get_revision "$2" "$3"
    stamp="$(git -C "$base/src" rev-parse HEAD) $extras"
  else
    stamp="$(sha256sum <"$HOME/vlvm_jax.tar.gz") $extras"
  fi
  if [[ -e $base/installed && $(<"$base/installed") == "$stamp" ]]; then
    return
  fi
  rm -f "$base/installed"
  (($# > 1)) || unpack
  make_venv
  (cd "$base/src" && "$base/venv/bin/python" -m pip install --quiet ".[$extras]")
  put installed "$stamp"
}

unpack() {
  rm -rf "$base/src"
  mkdir "$base/src"
  tar --extract --gzip --file="$HOME/vlvm_jax.tar.gz" --directory="$base/src"
}

get_revision() {
  rm -rf "$base/src"
  GIT_TERMINAL_PROMPT=0 git clone --quiet --no-checkout "$1" "$base/src"
  git -C "$base/src" checkout --quiet --detach "$2"
}

# The images of TPU VMs bring Python 3.10 or lack ensurepip: then uv brings a Python.
make_venv() {
  local python
  for python in python3.12 python3.13 python3.11 python3; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null &&
      "$python" -m venv --clear "$base/venv" >/dev/null 2>&1; then
      return
    fi
  done
  rm -rf "$base/venv"
  curl --fail --silent --show-error --location https://astral.sh/uv/install.sh | sh -s -- --quiet
  "$HOME/.local/bin/uv" venv --quiet --seed --python 3.12 "$base/venv"
}

start() {
  local id
  exec 9>"$base/lock"
  if ! flock --nonblock 9; then
    [[ -e $base/exit_code ]] || fail "already running a command"
    kill_group # children of a finished run, which would keep the TPU
    flock --nonblock 9
  fi
  rm -f "$base/exit_code" "$base/pid" "$base/group"
  id=$(printf '%s\0' "$@" | cksum | cut -d' ' -f1)
  # The same command again goes on in the same log, as readers have an offset in it.
  [[ -e $base/id && $(<"$base/id") == "$id" ]] || : >"$base/log"
  put id "$id"
  setsid nohup bash "$script" supervise "$@" >>"$base/log" 2>&1 </dev/null &
  exec 9>&-
  until [[ -e $base/pid ]]; do
    locked || [[ -e $base/pid ]] || fail "the command did not start: $(tail --lines=1 "$base/log")"
    sleep 0.05
  done
}

supervise() {
  local code=0
  put group "$BASHPID"
  while [[ $1 != -- ]]; do
    export "${1?}"
    shift
  done
  shift
  export PATH="$base/venv/bin:$PATH"
  cd "$base/src"
  printf '%s\n' "launch: $(date --utc +%FT%TZ) $*"
  "$@" &
  put pid $!
  wait $! || code=$?
  put exit_code "$code"
}

status() {
  local state=lost id=""
  if [[ ! -e $base/id ]]; then
    state=absent
  else
    id=" $(<"$base/id")"
    # The lock before the exit code: a run that ends in between is not taken for a lost one.
    if locked; then state=running; fi
    if [[ -e $base/exit_code ]]; then state="exit $(<"$base/exit_code")"; fi
  fi
  printf '%s\n' "vlvm_jax: $state$id"
}

follow() {
  local offset=$1 seconds=$2
  [[ -e $base/log ]] || return 0
  if ((seconds > 0)) && [[ -e $base/pid && ! -e $base/exit_code ]] && locked; then
    timeout "$seconds" tail --bytes="+$((offset + 1))" --follow --pid="$(<"$base/pid")" "$base/log" || (($? == 124))
  else
    tail --bytes="+$((offset + 1))" "$base/log"
  fi
}

stop() {
  locked || return 0
  [[ -e $base/exit_code ]] || kill -TERM "$(<"$base/pid")" 2>/dev/null || true
  flock --wait "$1" "$base/lock" true || kill_group
}

why() {
  case $(cat "$base/exit_code" 2>/dev/null) in
    "" | 0 | 75) ;;
    *) tail --lines=5 "$base/log" | sed "s/^/$(hostname): /" ;;
  esac
}

case ${1-} in
  install | start | supervise | status | follow | stop | why) "$@" ;;
  *) fail "unknown: ${1-}" ;;
esac
