# shellcheck shell=bash
# Much of what is set here is used by the scripts alone.
# shellcheck disable=SC2034
#
# What the scripts here share: options, settings, printing instead of running, the state of a TPU, ssh to its workers.
#
# Exit codes: 0 done, 1 failed, 2 wrong usage, 75 not now (no capacity, no network): try again later.

set -euo pipefail

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "bash $BASH_VERSION is too old; install bash 4.4 or newer and call this with it" >&2
  exit 2
fi

LATER=75
# Where workers see the bucket.
MOUNT=/mnt/jaxchop
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
ROOT=${HERE%/*}
# Files that stand in the home folder of each worker.
WORKER=jaxchop-worker.sh
ARCHIVE=jaxchop-code.tar.gz

# For ssh: a worker that is gone is not waited for by the hour.
LIMITS=(-oConnectTimeout=30 -oServerAliveInterval=30 -oServerAliveCountMax=4)

SETTINGS=tpu.settings
DRY_RUN=
ARGS=()
NODES=()
# Standard output keeps what a dry run prints, also where a function's output is taken.
exec 3>&1
ERRORS=$(mktemp)
trap 'rm -f "$ERRORS"' EXIT

say() { printf '%s\n' "${DRY_RUN:+(dry run) }$*" >&2; }

fail() {
  say "$(basename "$0"): error: $1"
  exit "${2:-1}"
}

wrong() { fail "$1; --help says more" 2; }

# begin FLAGS ARGUMENTS...: takes --help, --settings, --dry-run and the script's own FLAGS (each sets a variable: --all
# sets ALL) from the front of the arguments, leaves the others in ARGS, and reads the settings.
begin() {
  local flags=" $1 " name
  shift
  while (($#)); do
    case $1 in
      --help | -h) usage && exit 0 ;;
      --dry-run) DRY_RUN=1 ;;
      --settings)
        (($# > 1)) || wrong "--settings: name a file"
        SETTINGS=$2
        shift
        ;;
      --settings=*) SETTINGS=${1#*=} ;;
      --)
        shift
        break
        ;;
      -*)
        [[ $flags == *" $1 "* ]] || wrong "$1: no such option"
        name=${1#--}
        printf -v "${name^^}" 1
        ;;
      *) break ;;
    esac
    shift
  done
  ARGS=("$@")
  read_settings
}

# Reads the settings as text: nothing in them is run.
read_settings() {
  local line setting number=0
  local names="PROJECT ZONE NAME OWNER TYPE VERSION KIND TIER SLICES BUCKET RUN CREATE_FLAGS SSH_FLAGS CLUSTER IMAGE"
  [[ -f $SETTINGS ]] || wrong "$SETTINGS: no such file; copy tpu_scripts/settings.example there and fill it in"
  for setting in $names; do
    printf -v "$setting" ''
  done
  KIND=queued TIER=spot SLICES=1
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    line=${line%$'\r'}
    [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
    setting=${line%%=*}
    [[ $line == *=* && " $names " == *" $setting "* ]] ||
      wrong "$SETTINGS, line $number: $setting is no setting; there are $names"
    printf -v "$setting" %s "${line#*=}"
  done <"$SETTINGS"
  must PROJECT '[a-z][a-z0-9.:-]+' "a project's id"
  must ZONE '[a-z]+-[a-z]+[0-9]+-[a-z]' "a zone like us-west4-a"
  must NAME '[a-z][a-z0-9-]{0,50}' "small letters, digits and -"
  must OWNER '[a-z0-9_-]{1,63}' "small letters, digits, _ and -"
  must TYPE 'v[0-9][a-z0-9]*-[0-9]+' "a type like v5litepod-16"
  must VERSION '[a-z0-9.-]+' "a software version like v2-alpha-tpuv6e"
  must KIND 'queued|vm' "queued or vm"
  must TIER 'spot|on-demand' "spot or on-demand"
  must SLICES '[1-9][0-9]*' "a number of slices"
  must BUCKET '[a-z0-9][a-z0-9._-]+' "a bucket's name, without gs://"
  must RUN '[A-Za-z0-9][A-Za-z0-9._-]*' "a name: letters, digits, . _ and -"
  if ((SLICES > 1)) && [[ $KIND == vm ]]; then
    wrong "$SETTINGS: SLICES is $SLICES; several slices need KIND=queued"
  fi
  # Without it, nothing would ever be found.
  [[ -n $DRY_RUN ]] || command -v gcloud >/dev/null || fail "gcloud is not on PATH; install the Google Cloud CLI"
  read -ra CREATE_WORDS <<<"$CREATE_FLAGS"
  read -ra SSH_WORDS <<<"$SSH_FLAGS"
  WHERE=("--project=$PROJECT" "--zone=$ZONE" --quiet)
  # A request reaches the workers of all its slices at once.
  GROUP=tpu-vm EVERYWHERE=(--worker=all) FIRST=(--worker=0)
  if [[ $KIND == queued ]]; then
    GROUP=queued-resources EVERYWHERE+=(--node=all) FIRST+=(--node=0)
  fi
  # shellcheck disable=SC2153
  NODES=("$NAME")
  if ((SLICES > 1)); then
    NODES=()
    for ((number = 0; number < SLICES; number++)); do
      NODES+=("$NAME-$number")
    done
  fi
}

# must SETTING PATTERN WORDS: refuses a setting that is not of this form.
must() {
  [[ ${!1} =~ ^($2)$ ]] || wrong "$SETTINGS: $1 is '${!1}'; it is $3, without quotes"
}

# quoted WORDS...: the words as a shell reads them back.
quoted() {
  local words
  printf -v words '%q ' "$@"
  printf '%s' "${words% }"
}

# run COMMAND...: runs it, or prints it in a dry run. What it complains of is shown and kept in ERRORS. It hears nothing:
# an ssh that listens would stop a script that was sent to the background.
run() {
  if [[ -n $DRY_RUN ]]; then
    quoted "$@" >&3
    echo >&3
  else
    { "$@" </dev/null 2>&1 >&4 4>&- | tee "$ERRORS" >&2; } 4>&1
  fi
}

# pause SECONDS: lets time pass, but not in a dry run.
pause() { [[ -n $DRY_RUN ]] || sleep "$1"; }

# not_now: whether what stands in ERRORS will pass by itself. A lack of quota has the same code as a lack of capacity
# and does not.
not_now() {
  local capacity='no more capacity|insufficient (reserved )?capacity|stockout|resource_?(pool_)?exhausted|enough resources'
  local network='\bunavailable\b|deadline.?exceeded|timed? ?out|connection|internal error|per minute|http 50[0-9]'
  ! lacks_quota && grep -qiE "$capacity|$network" "$ERRORS"
}

# A quota of calls per minute is full again in a minute.
lacks_quota() {
  grep -qiE 'quota.*(exceed|exhaust|limit)|(exceed|insufficient|exhaust).*quota' "$ERRORS" &&
    ! grep -qi 'per minute' "$ERRORS"
}

# end_with_gcloud WHAT: ends the script after a failed command, with 75 where trying again helps.
end_with_gcloud() {
  if lacks_quota; then
    fail "$1: the quota of $PROJECT in $ZONE does not allow $SLICES × $TYPE ($TIER); ask for more, or change TYPE, ZONE or TIER"
  elif not_now; then
    fail "$1: not now, as said above; babysit.sh goes on trying, another ZONE may have capacity" "$LATER"
  fi
  fail "$1: gcloud said why above"
}

# Set where a look that fails for the moment is no reason to end.
PATIENT=''
# not_found NAME: whether ERRORS say that this resource does not exist; that a project or zone does not is another matter.
not_found() {
  grep -iE 'not.?found' "$ERRORS" | grep -qE "(^|[^[:alnum:]-])$1([^[:alnum:]-]|\$)"
}

# look_at GROUP NAME FORMAT: reads STATE, LABEL and WHY of a resource; STATE is empty where there is none.
look_at() {
  local said=''
  local command=(gcloud compute tpus "$1" describe "$2" "${WHERE[@]}" "--format=$3")
  STATE='' LABEL='' WHY=''
  if [[ -n $DRY_RUN ]]; then
    run "${command[@]}"
    said=$ASSUMED
  elif ! said=$("${command[@]}" 2>"$ERRORS"); then
    not_found "$2" && return
    cat "$ERRORS" >&2
    if [[ -n $PATIENT ]] && not_now; then
      STATE=UNSEEN LABEL=$OWNER
      return
    fi
    end_with_gcloud "$2 cannot be looked at"
  fi
  # A tab is white space to read, which would skip an empty label.
  IFS=$'\x1f' read -r STATE LABEL WHY <<<"${said//$'\t'/$'\x1f'}"
}

look_at_node() { look_at tpu-vm "$1" 'value(state,labels.jaxchop_owner,healthDescription)'; }

look_at_request() {
  look_at queued-resources "$NAME" \
    'value(state.state,tpu.nodeSpec[0].node.labels.jaxchop_owner,state.failedData.error.message)'
}

# In a dry run, what look_at finds.
ASSUMED=''
ready_in_dry_run() {
  if [[ $KIND == vm ]]; then ASSUMED=READY; else ASSUMED=ACTIVE; fi
  ASSUMED+=$'\t'$OWNER
}

# look_at_tpu: sets TPU to absent, waiting, ready, lost or, for the patient, unseen, and WORDS to what was seen. Refuses
# what others created. The states are those of the API's version 2.
look_at_tpu() {
  if [[ $KIND == vm ]]; then look_at_node "$NAME"; else look_at_request; fi
  WORDS="$NAME in $ZONE is ${STATE:-absent}${WHY:+ ($WHY)}"
  if [[ -z $STATE ]]; then
    TPU=absent
    return
  fi
  refuse_strangers "$NAME"
  case $STATE in
    READY) TPU=ready ;;
    ACTIVE) look_at_nodes ;;
    CREATING | STARTING | RESTARTING | REPAIRING | REIMAGING | STOPPING | HIDING | UNHIDING | DELETING | SUSPENDING | \
      ACCEPTED | PROVISIONING | WAITING_FOR_RESOURCES) TPU=waiting ;;
    # UNKNOWN is what a repair that failed leaves.
    PREEMPTED | TERMINATED | STOPPED | HIDDEN | FAILED | SUSPENDED | UNKNOWN) TPU=lost ;;
    UNSEEN) TPU=unseen ;;
    *) fail "$WORDS, a state that these scripts do not know; look at it in the console" ;;
  esac
}

# A request that is ACTIVE says nothing of nodes that were preempted or deleted since.
look_at_nodes() {
  local node assumed=$ASSUMED
  TPU=ready
  for node in "${NODES[@]}"; do
    [[ -z $DRY_RUN ]] || ASSUMED=READY$'\t'$OWNER
    look_at_node "$node"
    ASSUMED=$assumed
    case $STATE in
      READY) continue ;;
      CREATING | STARTING | RESTARTING | REPAIRING | REIMAGING) [[ $TPU == lost ]] || TPU=waiting ;;
      UNSEEN) [[ $TPU == lost ]] || TPU=unseen ;;
      *) TPU=lost ;;
    esac
    WORDS="$node of $NAME in $ZONE is ${STATE:-absent}${WHY:+ ($WHY)}"
  done
}

refuse_strangers() {
  [[ $LABEL == "$OWNER" ]] ||
    fail "$1 in $ZONE exists and is not ours: its label jaxchop_owner is '$LABEL', not '$OWNER'; nothing was changed, choose another NAME"
}

# delete_tpu: deletes what these scripts created.
delete_tpu() {
  local force=()
  [[ $KIND == vm ]] || force=(--force)
  run gcloud compute tpus "$GROUP" delete "$NAME" "${WHERE[@]}" "${force[@]}" || not_found "$NAME" ||
    end_with_gcloud "$NAME could not be deleted"
  ASSUMED=''
  [[ $KIND == vm ]] || delete_left_nodes
}

# --force deletes the nodes of a request too; one that stays behind all the same would be paid for.
delete_left_nodes() {
  local node
  for node in "${NODES[@]}"; do
    look_at_node "$node"
    if [[ -n $STATE ]]; then
      refuse_strangers "$node"
      run gcloud compute tpus tpu-vm delete "$node" "${WHERE[@]}" || not_found "$node" ||
        end_with_gcloud "$node could not be deleted"
    fi
  done
}

# on_workers COMMAND...: runs it on every worker of every slice; fails where one of them cannot be reached or fails.
on_workers() { on_some "${EVERYWHERE[*]}" "$@" && all_reached; }

# on_some FLAGS COMMAND...: runs it on the workers that these flags choose.
on_some() {
  local chosen
  read -ra chosen <<<"$1"
  run gcloud compute tpus "$GROUP" ssh "$NAME" "${WHERE[@]}" "${chosen[@]}" "${LIMITS[@]/#/--ssh-flag=}" \
    "${SSH_WORDS[@]}" "--command=$(quoted "${@:2}")"
}

# gcloud leaves out a slice that it cannot prepare for ssh, and calls that a success.
all_reached() { ! grep -q 'Could not prepare' "$ERRORS"; }

# to_workers FILE NAME: copies a file into the home folder of every worker.
to_workers() {
  run gcloud compute tpus "$GROUP" scp "$1" "$NAME:$2" "${WHERE[@]}" "${EVERYWHERE[@]}" \
    "${LIMITS[@]/#/--scp-flag=}" "${SSH_WORDS[@]}" && all_reached
}

# need_ready: refuses to go on without a TPU that runs.
need_ready() {
  ready_in_dry_run
  look_at_tpu
  [[ $TPU == ready ]] || fail "$WORDS; create.sh makes it ready"
}

# check_command: makes COMMAND, what jaxchop is to run, of ARGS.
check_command() {
  local word
  case ${ARGS[0]-} in
    run | recover) ;;
    '') wrong "say what to do: run RECIPE.yaml, or recover MODEL" ;;
    *) wrong "${ARGS[0]}: run and recover are what works on every worker at once" ;;
  esac
  for word in "${ARGS[@]:1}"; do
    case $word in
      --out | --out=* | -o*) wrong "$word: the run folder is $MOUNT/runs/$RUN; change RUN in $SETTINGS" ;;
      -* | "$MOUNT"/*) ;;
      *.yaml | *.yml)
        # Better said here than by a TPU that is paid for.
        [[ $word != /* && -f $ROOT/$word ]] || wrong "$word: no such file in $ROOT, which is what workers get"
        ;;
    esac
  done
  COMMAND=("${ARGS[@]}" --out "$MOUNT/runs/$RUN")
}
