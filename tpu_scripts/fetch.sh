#!/usr/bin/env bash
# Brings the results of a run here.

usage() {
  cat <<'HELP'
fetch.sh [--settings FILE] [--dry-run] [--everything] [FOLDER]

Copies the run folder from the bucket to FOLDER (unset, runs/RUN): export, report, metrics, plan. What is here already
is not copied again. --everything brings checkpoints and packed data too. It needs no TPU.
HELP
}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
EVERYTHING=''
begin "--everything" "$@"
((${#ARGS[@]} < 2)) || wrong "${ARGS[1]}: fetch.sh takes one folder"
folder=${ARGS[0]-runs/$RUN}
leave=()
[[ -n $EVERYTHING ]] || leave=("--exclude=^(checkpoints|data)/")
run mkdir -p -- "$folder"
run gcloud storage rsync "gs://$BUCKET/runs/$RUN" "$folder" "--project=$PROJECT" --recursive "${leave[@]}" ||
  end_with_gcloud "gs://$BUCKET/runs/$RUN was not copied"
