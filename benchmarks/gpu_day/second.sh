#!/usr/bin/env bash
# The second call of a GPU day: wait for the queue, and bring back all records, those of the first call too.
#
#   bash benchmarks/gpu_day/second.sh [SECONDS]      at most so many, 540 by default
#
# OUT and STATE as for first.sh.
set -u
: "${OUT:?name an empty folder whose files come back}"
OUT=$(realpath "$OUT") state=$(realpath -m "${STATE:-/tmp/gpu_day}") end=$((SECONDS + ${1:-540}))
[[ -e $state/out/queue.log ]] || { echo "$state: no queue was started there; first.sh comes first"; exit 1; }
. "$(dirname "$0")/bring_back.sh"
works() { # whoever works holds a lock
  for lock in lock screen.lock tests.lock; do flock -n "$state/$lock" true || return 0; done
  return 1
}
# the queue holds the lock as long as it works; what was copied comes back even if this call is cut off
while ((SECONDS < end)) && works; do bring_back; sleep 5; done
bring_back
cat "$state/out/queue.log" "$state/out/status.csv"
[[ ! -e $state/out/screen.log ]] || tail -n 60 "$state/out/screen.log"
tail -n 1 "$state/out/gpu_tests.txt"
