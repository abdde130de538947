#!/usr/bin/env bash
# Starts jaxchop on every worker; it goes on when this ends.

usage() {
  cat <<HELP
launch.sh [--settings FILE] [--dry-run] run RECIPE.yaml... [OPTIONS]
launch.sh [--settings FILE] [--dry-run] recover MODEL [OPTIONS]

Starts that jaxchop command on every worker of every slice, detached, with $MOUNT/runs/RUN as its run folder: a
folder of the bucket. Paths are those of this checkout, from its root, or under $MOUNT. Where the same command runs already,
nothing happens; another one is refused.
HELP
}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
begin "" "$@"
check_command
need_ready
on_workers bash "$WORKER" start "${COMMAND[@]}" || fail "jaxchop was not started on every worker; it said why above" "$LATER"
say "$RUN runs on ${NODES[*]}; logs.sh follows it"
