#!/usr/bin/env bash
# Creates the TPU of the settings, or waits for the one that was asked for before.

usage() {
  cat <<'HELP'
create.sh [--settings FILE] [--dry-run]

Creates the TPU that the settings name and returns when every node is ready. Given again, it goes on waiting for the
same request; what was preempted, suspended or has failed is deleted and created anew. A TPU of that name that is
labelled with another owner is left alone.

Exit codes: 0 ready, 1 failed (also for want of quota), 2 wrong usage, 75 no capacity now.
HELP
}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# A run folder needs folders that are renamed at one stroke: a flat bucket has none.
need_folders() {
  local command=(gcloud storage buckets describe "gs://$BUCKET" "--project=$PROJECT" --raw
    "--format=value(hierarchicalNamespace.enabled)")
  local said=True
  if [[ -n $DRY_RUN ]]; then
    run "${command[@]}"
  elif ! said=$("${command[@]}" 2>"$ERRORS"); then
    cat "$ERRORS" >&2
    not_now && end_with_gcloud "gs://$BUCKET cannot be looked at"
    fail "gs://$BUCKET cannot be used; create it: $(bucket_command)"
  fi
  [[ ${said,,} == true ]] ||
    fail "gs://$BUCKET has no hierarchical namespace, and gets none later; create another: $(bucket_command)"
}

bucket_command() {
  quoted gcloud storage buckets create "gs://$BUCKET" "--project=$PROJECT" "--location=${ZONE%-*}" \
    --uniform-bucket-level-access --enable-hierarchical-namespace
}

create() {
  local flags=(--accelerator-type="$TYPE" --labels="jaxchop_owner=$OWNER"
    --scopes=https://www.googleapis.com/auth/cloud-platform)
  if [[ $KIND == vm ]]; then
    flags+=("--version=$VERSION")
  elif ((SLICES > 1)); then
    flags+=("--runtime-version=$VERSION" "--node-count=$SLICES" "--node-prefix=$NAME")
  else
    flags+=("--runtime-version=$VERSION" "--node-id=$NAME")
  fi
  [[ $TIER != spot ]] || flags+=(--spot)
  say "creating $NAME in $ZONE: $SLICES × $TYPE, $TIER"
  # Of a flag given twice the last counts, and without our label nobody would delete it.
  if ! run gcloud compute tpus "$GROUP" create "$NAME" "${WHERE[@]}" "${CREATE_WORDS[@]}" "${flags[@]}"; then
    local complaint
    complaint=$(<"$ERRORS")
    look_at_tpu
    [[ $TPU == absent ]] || say "$WORDS: left of this attempt; create.sh again goes on from there, teardown.sh deletes it"
    printf '%s' "$complaint" >"$ERRORS"
    end_with_gcloud "$NAME was not created"
  fi
  ready_in_dry_run
}

begin "" "$@"
((${#ARGS[@]} == 0)) || wrong "${ARGS[0]}: create.sh takes no arguments"
need_folders
seen=''
created=''
trap 'say "create.sh: ended while waiting; what was asked for stays: create.sh again goes on waiting, teardown.sh deletes it"; exit 130' INT
while true; do
  look_at_tpu
  case $TPU in
    ready) break ;;
    waiting)
      # Every state once: a request may wait for hours.
      [[ $WORDS == "$seen" ]] || say "$WORDS; waiting"
      seen=$WORDS
      pause 30
      ;;
    lost)
      if [[ -n $created ]]; then
        say "$WORDS: it stays so until create.sh is called again, which deletes it first, or teardown.sh"
        printf '%s' "$WHY" >"$ERRORS"
        end_with_gcloud "$NAME did not become ready"
      fi
      say "$WORDS; deleting it to create it anew"
      delete_tpu
      ;;
    absent)
      [[ -z $created ]] || fail "$NAME has vanished while it was awaited; create.sh again creates it anew" "$LATER"
      create
      created=1
      ;;
  esac
done
say "$NAME in $ZONE is ready: ${NODES[*]}"
