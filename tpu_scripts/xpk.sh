#!/usr/bin/env bash
# Runs jaxchop on a GKE cluster, by xpk.

usage() {
  cat <<HELP
xpk.sh [--settings FILE] [--dry-run] run RECIPE.yaml... [OPTIONS]
xpk.sh [--settings FILE] [--dry-run] recover MODEL [OPTIONS]

Builds the container of this checkout and pushes it as IMAGE, attaches the bucket to CLUSTER where it is not attached
yet, and starts that jaxchop command there as the workload RUN, with $MOUNT/runs/RUN as its run folder. GKE starts it
again, up to 50 times, when it was preempted. Needs docker, and xpk 1.16 or newer; the cluster is made by
\`xpk cluster create\` with --enable-gcsfuse-csi-driver, the workload deleted by \`xpk workload delete\`.
HELP
}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
begin "" "$@"
check_command
must CLUSTER '[a-z][a-z0-9-]+' "the name of a GKE cluster"
must IMAGE '[a-z0-9][a-zA-Z0-9./_-]*(:[a-zA-Z0-9._-]+)?' "an image like us-docker.pkg.dev/my-project/my-repository/jaxchop"
must RUN '[a-z][a-z0-9-]{0,38}' "for a workload: small letters, digits and -, at most 39"

where=("--cluster=$CLUSTER" "--project=$PROJECT" "--zone=$ZONE")
storage=jaxchop-${BUCKET//[_.]/-}
run docker build --tag "$IMAGE" --file "$HERE/Dockerfile" "$ROOT" || fail "the container was not built"
run docker push "$IMAGE" || fail "$IMAGE was not pushed; does it exist, and may you write there?"
listed=''
if [[ -n $DRY_RUN ]]; then
  run xpk storage list "${where[@]}"
else
  listed=$(xpk storage list "${where[@]}") || fail "$CLUSTER cannot be asked; xpk said why above"
fi
# The same conditions as in worker.sh.
grep -qE "(^|[^[:alnum:]-])$storage([^[:alnum:]-]|\$)" <<<"$listed" ||
  run xpk storage attach "$storage" "${where[@]}" --type=gcsfuse "--bucket=$BUCKET" --size=1 "--mount-point=$MOUNT" \
    --readonly=false --auto-mount=false --no-prefetch-metadata \
    --mount-options=metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0,write:enable-streaming-writes:false ||
  fail "gs://$BUCKET was not attached"
run xpk workload create "${where[@]}" "--workload=$RUN" "--tpu-type=$TYPE" "--num-slices=$SLICES" \
  "--docker-image=$IMAGE" "--storage=$storage" --max-restarts=50 "--restart-on-exit-codes=$LATER" \
  --termination-grace-period-seconds=300 "--command=$(quoted jaxchop "${COMMAND[@]}")" ||
  fail "the workload $RUN was not created; where it stands already, \`xpk workload delete\` removes it"
