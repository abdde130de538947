#!/usr/bin/env bash
# What the other scripts do on each worker of a TPU; they copy it there and call it over ssh.
#
# The run folder is a folder of the bucket, mounted by gcsfuse, because it must outlive the machines and be one and the
# same for all of them. What jaxchop and Orbax ask of a file system holds there under these conditions:
# - renaming a folder at one stroke makes a checkpoint stand: only a bucket with a hierarchical namespace has that;
# - one worker must see what another has just written: nothing known of files is kept in a cache (both TTLs are 0);
# - what was flushed must be in the bucket: gcsfuse's streaming writes would keep it back until the file is closed.
# Locks hold within one machine only: two TPUs must not work on the same run folder. Should a write be lost all the
# same, the digests of a checkpoint tell, and the one before it is taken.

usage() {
  cat <<'HELP'
worker.sh setup BUCKET | install ARCHIVE | start COMMAND... | status | log | follow | stop

For the other scripts to call on a worker: mount the bucket and install Python, install the code, start jaxchop as a
service of its own, say how it stands, print or follow its log, end it after a save.
HELP
}

set -euo pipefail

MOUNT=/mnt/jaxchop
STATE=$HOME/.jaxchop
CODE=$HOME/jaxchop
VENV=$HOME/jaxchop-venv
BUCKET_UNIT=jaxchop-bucket
RUN_UNIT=jaxchop-run
SELF=$HOME/jaxchop-worker.sh
PATH=$HOME/.local/bin:$PATH

fail() {
  printf '%s: %s\n' "$(hostname)" "$1" >&2
  exit 1
}

state_of() { systemctl is-active "$1" 2>/dev/null || true; }

# A unit that is being stopped still writes its checkpoint.
runs() { [[ $(state_of "$RUN_UNIT") =~ ^(active|activating|deactivating|reloading)$ ]]; }

setup() {
  mkdir -p "$STATE"
  # An older one, which a machine may come with, does not know all flags.
  [[ $(gcsfuse --help 2>/dev/null) == *--enable-streaming-writes* ]] || install_gcsfuse
  mount_bucket "$1"
  install_python
}

install_gcsfuse() {
  local keys=/usr/share/keyrings/cloud.google.asc
  curl --fail --silent --show-error --location https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$keys" >/dev/null
  echo "deb [signed-by=$keys] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  # A machine that has just started updates itself, and holds the lock meanwhile.
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 install --yes gcsfuse >/dev/null
}

mount_bucket() {
  if [[ $(state_of "$BUCKET_UNIT") == active ]] && mountpoint -q "$MOUNT"; then
    [[ $(<"$STATE/bucket") == "$1" ]] || fail "gs://$(<"$STATE/bucket") is mounted, not gs://$1; tear the TPU down first"
    return
  fi
  # What a gcsfuse that has died leaves can be neither used nor mounted over.
  sudo umount --lazy "$MOUNT" 2>/dev/null || true
  sudo mkdir -p "$MOUNT"
  sudo chown "$(id -u):$(id -g)" "$MOUNT"
  printf '%s' "$1" >"$STATE/bucket"
  # A service, as the run is one: at a shutdown systemd ends the run first, and its last save still finds the bucket.
  sudo systemd-run --quiet --collect --unit="$BUCKET_UNIT" --uid="$(id -u)" --gid="$(id -g)" \
    --property=Wants=network-online.target --property=After=network-online.target \
    gcsfuse --foreground --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
    --enable-streaming-writes=false --temp-dir="$STATE" "$1" "$MOUNT"
  for _ in {1..30}; do
    ! mountpoint -q "$MOUNT" || return 0
    sleep 1
  done
  sudo journalctl --no-pager --lines=20 --unit="$BUCKET_UNIT" >&2 || true
  fail "gs://$1 was not mounted; may the TPU's service account write there (roles/storage.objectUser)?"
}

# The system's Python is older than jaxchop needs. pip, which uv leaves out, is what jaxchop fetches its built-in model by.
install_python() {
  [[ ! -x $VENV/bin/pip ]] || return 0
  command -v uv >/dev/null || python3 -m pip install --quiet --user uv
  rm -rf "$VENV"
  uv venv --quiet --seed --python 3.12 "$VENV"
}

install() {
  local sum
  sum=$(cksum <"$1")
  [[ ! -f $STATE/code || $(<"$STATE/code") != "$sum" ]] || return 0
  ! runs || fail "jaxchop is running; its code is not replaced under it"
  rm -rf "$CODE.new" "$CODE.old" "$STATE/code"
  mkdir "$CODE.new"
  tar --extract --gzip --file="$1" --directory="$CODE.new"
  [[ ! -e $CODE ]] || mv "$CODE" "$CODE.old"
  mv "$CODE.new" "$CODE"
  uv pip install --quiet --python "$VENV/bin/python" --editable "${CODE}[tpu,gcs]"
  printf '%s' "$sum" >"$STATE/code"
  rm -rf "$CODE.old"
}

start() {
  mountpoint -q "$MOUNT" || fail "the bucket is not mounted at $MOUNT; call setup.sh"
  [[ -x $VENV/bin/jaxchop ]] || fail "jaxchop is not installed; call sync.sh"
  if runs; then
    [[ $(cksum <"$STATE/command") == "$(printf '%s\0' "$@" | cksum)" ]] || fail "another command runs here; teardown.sh ends it"
    return 0
  fi
  rm -f "$STATE/exit"
  printf '%s\0' "$@" >"$STATE/command"
  # The command travels in that file: systemd would take the dollar and percent signs in it for its own. SIGTERM goes to
  # the first process alone, which hands it to jaxchop, not to the processes that read its data. A TPU's driver locks
  # memory, of which a service has little by default.
  sudo systemd-run --quiet --collect --unit="$RUN_UNIT" --uid="$(id -u)" --gid="$(id -g)" --working-directory="$CODE" \
    --property=After="$BUCKET_UNIT.service" --property=KillMode=mixed --property=TimeoutStopSec=300 \
    --property=LimitMEMLOCK=infinity --property=LimitNOFILE=1048576 \
    bash "$SELF" service
}

# The service itself: runs the command, and leaves its exit code.
service() {
  local command child code=0
  mapfile -d '' -t command <"$STATE/command"
  {
    printf '%s ' "$(date --iso-8601=seconds)"
    printf '%q ' jaxchop "${command[@]}"
    echo
  } >>"$STATE/log"
  "$VENV/bin/jaxchop" "${command[@]}" >>"$STATE/log" 2>&1 &
  child=$!
  trap 'kill -TERM "$child"' TERM
  # A signal ends the waiting, not the child.
  while true; do
    code=0
    wait "$child" || code=$?
    kill -0 "$child" 2>/dev/null || break
  done
  echo "$code" >"$STATE/exit.part"
  mv "$STATE/exit.part" "$STATE/exit"
  # For whoever looks when the machine is gone; the last --out is the run folder.
  mkdir -p "${command[-1]}/logs" && cp "$STATE/log" "${command[-1]}/logs/$(hostname).log" || true
}

status() {
  local state=idle code=- sum=-
  if [[ -f $STATE/command ]]; then
    sum=$(cksum <"$STATE/command")
    sum=${sum%% *}
    if runs; then
      state=running
    elif [[ -f $STATE/exit ]]; then
      state=ended code=$(<"$STATE/exit")
    else
      state=broken
    fi
  fi
  printf 'jaxchop-status %s %s %s %s\n' "$(hostname)" "$state" "$code" "$sum"
}

log() {
  status
  [[ ! -f $STATE/log ]] || tail --lines=20 "$STATE/log"
}

follow() { exec tail --lines=100 --follow=name --retry "$STATE/log"; }

stop() {
  # systemctl returns when the run has ended: it has saved by then.
  ! runs || sudo systemctl stop "$RUN_UNIT"
}

main() {
  local arguments=$#
  need() { ((arguments == $1)) || { usage >&2 && exit 2; }; }
  case ${1-} in
    setup) need 2 && setup "$2" ;;
    install) need 2 && install "$2" ;;
    start) shift && start "$@" ;;
    service) service ;;
    status) status ;;
    log) log ;;
    follow) follow ;;
    stop) stop ;;
    --help | -h) usage ;;
    *) usage >&2 && exit 2 ;;
  esac
}

# On one line, read before it runs: setup.sh may replace this file meanwhile.
main "$@"; exit
