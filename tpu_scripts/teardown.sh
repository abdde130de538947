#!/usr/bin/env bash
# Deletes the TPU; the bucket stays.

usage() {
  cat <<'HELP'
teardown.sh [--settings FILE] [--dry-run]

Deletes the TPU that create.sh created, after a running job had the chance to save. What is labelled with another owner
is refused. Where there is nothing, it says so. The bucket and the run folder in it stay.
HELP
}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
begin "" "$@"
((${#ARGS[@]} == 0)) || wrong "${ARGS[0]}: teardown.sh takes no arguments"
ready_in_dry_run
look_at_tpu
if [[ $TPU == absent ]]; then
  [[ $KIND == vm ]] || delete_left_nodes
  say "$WORDS: nothing is left to delete"
  exit
fi
if [[ $TPU == ready ]]; then
  on_workers bash "$WORKER" stop || say "not every worker could be told to save; what it did since its last checkpoint is lost"
fi
delete_tpu
say "$NAME in $ZONE is deleted; gs://$BUCKET/runs/$RUN stays"
