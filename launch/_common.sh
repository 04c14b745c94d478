# Sourced by the scripts beside it; not run by itself.
# shellcheck shell=bash

# Prints the comment at the top of the script and ends: `usage "$0"`.
usage() {
  sed -n '2,/^[^#]/{/^#/!d; s/^# \{0,1\}//; p}' "$1"
  exit "${2:-0}"
}

fail() {
  echo "Error: $*" >&2
  exit 2
}

# Ends with a message unless all of the named variables have a value.
need() {
  local variable missing=()
  for variable in "$@"; do
    [[ -n ${!variable:-} ]] || missing+=("$variable")
  done
  ((${#missing[@]} == 0)) ||
    fail "set ${missing[*]} in the environment; --help says what they are."
}

# Ends with a message unless all of the named variables are whole numbers.
need_number() {
  local variable
  for variable in "$@"; do
    [[ ${!variable} =~ ^[0-9]+$ ]] ||
      fail "$variable is '${!variable}'; it must be a whole number."
  done
}

# Ends with a message unless a command is installed, or none is to be run.
need_command() {
  [[ -n ${DRY_RUN:-} ]] || command -v "$1" >/dev/null ||
    fail "the command $1 is not installed."
}

# Ends with a message unless the arguments of hwdarts_jax.main name a config.
need_config() {
  local arg
  for arg in "$@"; do
    [[ $arg == --config=* || $arg == --config ]] && return
  done
  fail 'give the arguments of hwdarts_jax.main, --config=... among them.'
}

# The words of a command, so that a shell reads them as they are.
quoted() {
  local word line=''
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      line+=" $word"
    else
      line+=" '${word//\'/\'\\\'\'}'"
    fi
  done
  echo "${line# }"
}

# Runs a command, or prints it where DRY_RUN is set.
act() {
  if [[ -n ${DRY_RUN:-} ]]; then
    echo "+ $(quoted "$@")"
  else
    "$@"
  fi
}
