#!/usr/bin/env bash
# Prepares every worker: the bucket as a folder, Python.

usage() {
  cat <<HELP
setup.sh [--settings FILE] [--dry-run]

Installs gcsfuse and Python on every worker and mounts the bucket at $MOUNT. Given again, it does what is missing.
HELP
}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
begin "" "$@"
((${#ARGS[@]} == 0)) || wrong "${ARGS[0]}: setup.sh takes no arguments"
need_ready
# A worker that has just come up takes a while until it hears ssh.
for attempt in 1 2 3 4 5; do
  to_workers "$HERE/worker.sh" "$WORKER" && break
  ((attempt < 5)) ||
    fail "not every worker of $NAME answers ssh; is the key in your agent (ssh-add ~/.ssh/google_compute_engine)? SSH_FLAGS may help" "$LATER"
  pause 20
done
on_workers bash "$WORKER" setup "$BUCKET" || fail "a worker could not be set up; it said why above" "$LATER"
