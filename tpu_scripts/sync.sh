#!/usr/bin/env bash
# Brings this checkout to every worker and installs it there.

usage() {
  cat <<'HELP'
sync.sh [--settings FILE] [--dry-run]
sync.sh --pack FILE

Copies this checkout, as git sees it (tracked and untracked files, not ignored ones), to every worker and installs it.
Code is not replaced under a run. --pack only writes the archive that would be sent.
HELP
}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

pack() {
  local path
  mkdir -p "$(dirname "$1")"
  cd "$ROOT"
  # git also lists files that were deleted and not yet committed as such.
  git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' path; do
      [[ ! -e $path && ! -L $path ]] || printf '%s\0' "./$path"
    done | tar --create --gzip --null --files-from=- --file="$1.part"
  mv "$1.part" "$1"
}

if [[ ${1-} == --pack && $# == 2 ]]; then
  [[ $2 == /* ]] || set -- "$1" "$PWD/$2"
  pack "$2"
  exit
fi
begin "" "$@"
((${#ARGS[@]} == 0)) || wrong "${ARGS[0]}: sync.sh takes no arguments"
need_ready
packed=$ROOT/runs/$ARCHIVE
run bash "$HERE/sync.sh" --pack "$packed" || fail "$ROOT cannot be packed; is it a git checkout?"
to_workers "$packed" "$ARCHIVE" || fail "the code did not reach every worker; call sync.sh again" "$LATER"
on_workers bash "$WORKER" install "$ARCHIVE" || fail "the code was not installed on every worker; it said why above"
