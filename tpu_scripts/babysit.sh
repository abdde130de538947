#!/usr/bin/env bash
# Sees a run through to its end, over as many preemptions as it takes.

usage() {
  cat <<'HELP'
babysit.sh [--settings FILE] [--dry-run] [--teardown] run RECIPE.yaml... [OPTIONS]
babysit.sh [--settings FILE] [--dry-run] [--teardown] recover MODEL [OPTIONS]

Creates the TPU, sets it up, brings the code, launches, and waits. When the TPU was preempted, or the run ended with 75,
it does so again; the run goes on from its newest checkpoint in the bucket. Ends with 0 when the run is done, else with
the run's exit code and its last lines. Without capacity it goes on trying; after five starts in a row that did not last
ten minutes it gives up. A TPU whose workers cannot be reached from here for a quarter of an hour is replaced.
--teardown deletes the TPU at the end.

It may be killed at any moment: the run goes on, and the same command again takes over from there.
HELP
}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
POLL=30
# Polls, and seconds, without an answer of all workers after which a TPU that is called ready is given up; also those that
# a worker may run on after another one has ended.
PATIENCE=20
DEAF=900
# Starts in a row that may fail within SHORT seconds.
STARTS=5
SHORT=600

script() {
  local name=$1
  shift
  bash "$HERE/$name.sh" --settings "$SETTINGS" ${DRY_RUN:+--dry-run} "$@"
}

# look_at_run: sets RUNS to running, partly, ended, broken, idle, another or unreachable, and CODE to the exit code of
# a run that has ended.
look_at_run() {
  local said tag state code sum answers=0
  local -A count=([running]=0 [ended]=0 [broken]=0 [idle]=0)
  RUNS='' CODE=0
  if ! said=$(on_workers bash "$WORKER" status 2>/dev/null); then
    RUNS=unreachable
    return
  fi
  [[ -z $DRY_RUN ]] || said=$DRY_STATUS
  while read -r tag _ state code sum; do
    [[ $tag == jaxchop-status ]] || continue
    answers=$((answers + 1))
    if [[ $state != idle && $sum != "$SUM" ]]; then
      # What has ended is no hindrance; what runs is.
      [[ $state != running ]] || RUNS=another
      state=idle
    fi
    count[$state]=$((count[$state] + 1))
    # Of several codes the one that says most: a failure, then a preemption.
    if [[ $state == ended && $code != 0 ]] && ((CODE == 0 || CODE == LATER)); then CODE=$code; fi
  done <<<"$said"
  # As many as have answered before.
  if ((answers < ANSWERS)); then
    RUNS=unreachable
    return
  fi
  ANSWERS=$answers
  if [[ -n $RUNS ]]; then
    return
  elif ((count[running] > 0)); then
    if ((count[ended] + count[broken] + count[idle] > 0)); then RUNS=partly; else RUNS=running; fi
  elif ((count[broken] > 0)); then
    RUNS=broken
  elif ((count[ended] > 0 && count[idle] == 0)); then
    RUNS=ended
  else
    RUNS=idle
  fi
}

# wait_for_end: returns 0 when the run is done, 75 when it is to be started again; else ends with its code.
wait_for_end() {
  local silent=0 heard=$SECONDS
  while true; do
    pause "$POLL"
    look_at_tpu
    case $TPU in
      absent | lost)
        say "$WORDS; starting again"
        return "$LATER"
        ;;
      waiting | unseen)
        silent=0 heard=$SECONDS
        continue
        ;;
    esac
    look_at_run
    case $RUNS in
      running) silent=0 heard=$SECONDS ;;
      unreachable | partly)
        silent=$((silent + 1))
        ((silent >= PATIENCE || SECONDS - heard >= DEAF)) || continue
        if [[ $RUNS == partly ]]; then
          say "some workers have ended and others run on; stopping these"
          on_workers bash "$WORKER" stop || true
          silent=0 heard=$SECONDS
        else
          cat "$ERRORS" >&2
          say "$NAME is called ready and its workers do not answer; starting again on another one"
          script teardown
          return "$LATER"
        fi
        ;;
      ended)
        ((CODE != 0)) || return 0
        if ((CODE == LATER)); then
          say "the run was preempted after a save; starting again"
          return "$LATER"
        fi
        # A host that vanished makes the others fail a moment before the TPU is called preempted.
        pause "$POLL"
        look_at_tpu
        case $TPU in
          ready)
            script logs --all || true
            finish "$CODE" "the run ended with exit code $CODE; its last lines are above"
            ;;
          unseen) continue ;;
        esac
        say "$WORDS; starting again"
        return "$LATER"
        ;;
      another) leave_alone ;;
      *)
        say "the run was killed, or its machine has restarted; starting again"
        return "$LATER"
        ;;
    esac
  done
}

# leave_alone: ends without the teardown that was asked for: what runs there is not what this was called for.
leave_alone() { fail "another command runs on $NAME; wait for it, or stop it with teardown.sh"; }

# round: one start and what became of it; returns 0 or 75, or ends with an exit code. LACKING is set for want of a TPU.
round() {
  local step code
  LACKING='' LAUNCHED=''
  code=0
  script create || code=$?
  if ((code == LATER)); then
    LACKING=1
    return "$LATER"
  fi
  if ((code != 0)); then
    # Of a creation that failed something may be left.
    [[ -z $TEARDOWN ]] || script teardown || true
    exit "$code"
  fi
  ready_in_dry_run
  script setup || return "$LATER"
  DRY_STATUS="jaxchop-status worker idle - -"
  look_at_run
  case $RUNS in
    running | partly)
      LAUNCHED=$SECONDS
      say "$RUN runs already on $NAME; waiting for it"
      ;;
    another) leave_alone ;;
    *)
      if [[ $RUNS == ended && $CODE == 0 ]]; then return 0; fi
      for step in sync launch; do
        if [[ $step == launch ]]; then set -- "${ARGS[@]}"; else set --; fi
        script "$step" "$@" || return "$LATER"
      done
      LAUNCHED=$SECONDS
      ;;
  esac
  DRY_STATUS="jaxchop-status worker ended 0 $SUM"
  wait_for_end
}

# finish CODE WORDS: the end of the babysitting, and of the TPU where that was asked for.
finish() {
  say "babysit.sh: $2"
  if [[ -n $TEARDOWN ]]; then
    script teardown || say "$NAME is still there and paid for: call teardown.sh"
  else
    say "$NAME is still there and paid for; fetch.sh brings the results, teardown.sh deletes it"
  fi
  exit "$1"
}

TEARDOWN=''
begin "--teardown" "$@"
check_command
# As the workers reckon it; tells this command from another one.
SUM=$(printf '%s\0' "${COMMAND[@]}" | cksum)
SUM=${SUM%% *}
PATIENT=1
trap 'say "babysit.sh: ended; the run and the TPU go on, and the same command again takes over"; exit 130' INT
ANSWERS=1
short=0
rest=$POLL
while true; do
  code=0
  round || code=$?
  ((code != 0)) || finish 0 "$RUN is done: gs://$BUCKET/runs/$RUN"
  if [[ -z $LACKING ]]; then
    if [[ -n $LAUNCHED ]] && ((SECONDS - LAUNCHED >= SHORT)); then short=0 rest=$POLL; else short=$((short + 1)); fi
    if ((short >= STARTS)); then
      script logs --all || true
      finish 1 "$short starts in a row did not last $((SHORT / 60)) minutes; the reasons are above"
    fi
  fi
  say "trying again in $rest s"
  pause "$rest"
  rest=$((rest * 2 < 900 ? rest * 2 : 900))
done
