# shellcheck shell=bash
# What the launch scripts share: messages, quoting, flags, dry runs and the table of accelerator types.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: bash 4.4 or newer is needed, this is $BASH_VERSION (macOS: brew install bash)" >&2
  exit 2
fi

dry_run=false

say() { printf '%s\n' "launch: $*" >&2; }

# The user's input is at fault.
die() {
  printf '%s\n' "error: $*" >&2
  exit 2
}

# Something else is.
fail() {
  printf '%s\n' "error: $*" >&2
  exit 1
}

need_tool() {
  $dry_run || command -v "$1" >/dev/null || die "$1 is not on the PATH: $2"
}

# The arguments as one line that a shell reads back as the same arguments.
quoted() {
  local argument line=""
  for argument in "$@"; do
    if [[ $argument =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      line+=" $argument"
    else
      line+=" ${argument@Q}"
    fi
  done
  printf '%s' "${line:1}"
}

# Runs a command; a dry run prints it instead.
run() {
  if $dry_run; then
    printf '%s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}

# need_value FLAG [VALUE]: ends the script unless a value follows the flag.
need_value() {
  if (($# < 2)) || [[ -z $2 || $2 == --* ]]; then
    die "$1 needs a value; see --help"
  fi
}

# set_flag FLAG VALUE: --service-account X sets service_account=X.
set_flag() {
  need_value "$@"
  local variable=${1#--}
  printf -v "${variable//-/_}" '%s' "$2"
}

require_flag() {
  local variable=${1#--}
  variable=${variable//-/_}
  [[ -n ${!variable} ]] || die "$1 is required; see --help"
}

check_name() {
  [[ $1 =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    die "--name $1: at most 40 lower-case letters, digits and hyphens, starting with a letter"
}

check_env() {
  [[ $1 =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || die "--env $1: expected KEY=VALUE"
}

check_count() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1 $2: expected a whole number from 1"
}

# `v5e-64` is what people say, `v5litepod-64` what Google Cloud says.
canonical_type() { printf '%s' "${1/#v5e-/v5litepod-}"; }

# read_accelerator TYPE: sets chips_per_host, hosts, topology and gke_accelerator from accelerators.tsv.
read_accelerator() {
  local table known="" name
  table=$(dirname "${BASH_SOURCE[0]}")/accelerators.tsv
  # shellcheck disable=SC2034  # for the scripts that source this
  while IFS=$'\t' read -r name _ hosts chips_per_host topology gke_accelerator _; do
    [[ $name != "$1" ]] || return 0
    [[ $name == type || ${name%-*} != "${1%-*}" ]] || known+=" $name"
  done <"$table"
  die "--type $1 is not in launch/accelerators.tsv${known:+, which has$known}"
}
