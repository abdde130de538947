#!/usr/bin/env bash
# Shows what a run says.

usage() {
  cat <<'HELP'
logs.sh [--settings FILE] [--dry-run] [--all]

Follows the log of process 0, which speaks for the run; Ctrl-C ends the following, not the run. --all prints the state
and the last lines of every worker instead.
HELP
}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
ALL=''
begin "--all" "$@"
((${#ARGS[@]} == 0)) || wrong "${ARGS[0]}: logs.sh takes no arguments"
need_ready
if [[ -n $ALL ]]; then
  on_workers bash "$WORKER" log || fail "not every worker answered"
else
  on_some "${FIRST[*]}" bash "$WORKER" follow || fail "the log cannot be followed; is $NAME set up and launched?"
fi
