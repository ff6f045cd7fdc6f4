#!/usr/bin/env bash
# The first call of a GPU day: install, smoke, step profile; start the queue and the GPU tests.
# README.md says how to use it. Variables, with their defaults:
#   OUT             an empty folder whose files come back (needed)
#   STATE           /tmp/gpu_day: all that is made; the same folder in the second call
#   QUEUE_SECONDS   560: when the queue stops, counted from its start
#   LIST            list.txt beside this file; epochs=fit in it becomes what there is time for
#   WORKERS         1: runs of the list side by side
#   JOBS            0: runs of the screen side by side, beside them
#   STEP_SECONDS    80: what a measurement of the step may take; there are two
#   SMOKE_SECONDS   120: what the smoke may take
#   TEST_SECONDS    180: what the GPU tests may take; the second call waits for them
#   CALL_SECONDS    190: when this call ends at the latest, for the limit is 210
#   DEVICE          cuda; cpu is for a rehearsal
#   SETTINGS        none: further settings of all runs, e.g. for a rehearsal
#   STEP            --batch 512 --steps 30: further arguments of benchmarks/step.py
#   PYTHON          python3
set -u
: "${OUT:?name an empty folder whose files come back}"
here=$(cd "$(dirname "$0")" && pwd)
OUT=$(realpath "$OUT") state=$(realpath -m "${STATE:-/tmp/gpu_day}")
cd "$here/../.." || exit 1
python=${PYTHON:-python3} device=${DEVICE:-cuda}
began=$SECONDS
say() { echo "[$((SECONDS - began)) s] $*"; }
. "$here/bring_back.sh"
mkdir -p "$state/out"
if ! flock -n "$state/lock" true; then echo "the queue of an earlier call still works; second.sh waits for it"; exit 1; fi

unset PYTHONDONTWRITEBYTECODE # each run imports the same modules
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-4} TORCHINDUCTOR_CACHE_DIR=$state/inductor
export NOISYBSD_COMMIT=${NOISYBSD_COMMIT:-$(cat .data/commit)} # a .git there may be of another commit

"$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$state/site" .whl/*.whl &
install=$!
"$python" .data/make_cifar10.py "$state/data" &
data=$!
[[ $device != cuda ]] || nvidia-smi --query-gpu=name,memory.total,memory.used,driver_version --format=csv,noheader
wait $install || { say "the wheels of .whl cannot be installed"; exit 1; }
wait $data || { say ".data/make_cifar10.py failed"; exit 1; }
export PYTHONPATH=$state/site:$PWD
say "installed"

settings=(data.root="$state/data" data.verify=false device="$device" tracking.wandb=disabled)
read -ra more <<<"${SETTINGS:-}"
settings+=("${more[@]}")
if ! "$python" "$here/runs.py" "$here/smoke.txt" "$state/smoke" "${SMOKE_SECONDS:-120}" --strict \
  "${settings[@]}"; then
  say "the smoke failed, so nothing else is tried; its records are in smoke.tar.gz"
  cp "$state/smoke/out/records.tar.gz" "$OUT/smoke.tar.gz"
  exit 1
fi
say "smoke passed"; cat "$state/smoke/out/status.csv"

read -ra step <<<"${STEP:---batch 512 --steps 30}"
measure() { # a table's name, settings
  timeout "${STEP_SECONDS:-80}" "$python" benchmarks/step.py --device "$device" --methods ce,bsd_plus --rounds 3 "${step[@]}" \
    --out "$state/out/$1.csv" --profile "$state/out/$1.txt" "${@:2}" >"$state/$1.log" 2>&1 ||
    { say "step.py failed"; tail -n 8 "$state/$1.log"; }
  say "$1: $(grep -oE '^method=[a-z_]*  ms_median=[0-9.]*' "$state/$1.log" | tr '\n' ' ')"
}
measure step
measure step_compiled compile=true
[[ -e $state/list.txt ]] || "$python" "$here/fit.py" "${LIST:-$here/list.txt}" "${QUEUE_SECONDS:-560}" \
  "$state/out/step.csv" "$state/out/step_compiled.csv" >"$state/list.txt"

# in a session of its own, or it would end with this call
setsid nohup "$python" "$here/runs.py" "$state/list.txt" "$state" "${QUEUE_SECONDS:-560}" \
  --workers "${WORKERS:-1}" "${settings[@]}" >"$state/out/queue.log" 2>&1 </dev/null &
if ((${JOBS:-0} > 0)); then
  name="all of CIFAR-10N worst, 16 epochs, width 64" variants=$(paste -sd ';' "$here/screen.txt")
  setsid nohup flock "$state/screen.lock" timeout -s INT -k 25 "${QUEUE_SECONDS:-560}" \
    "$python" benchmarks/screen.py --runs "$state/screen" --jobs "$JOBS" --seeds 1,2 --data "$name" \
    --variants "$variants" --out "$state/out/screen" "${settings[@]}" >"$state/out/screen.log" 2>&1 </dev/null &
fi
mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests) # the others take long to import
setsid nohup flock "$state/tests.lock" timeout -s INT -k 10 "${TEST_SECONDS:-180}" \
  "$python" -m pytest -q -m gpu -n 4 -p no:cacheprovider "${files[@]}" >"$state/out/gpu_tests.txt" 2>&1 </dev/null &
say "queue and GPU tests started"
sleep 1
while ((SECONDS - began < ${CALL_SECONDS:-190})) && ! flock -n "$state/tests.lock" true; do sleep 1; done
say "GPU tests: $(tail -n 1 "$state/out/gpu_tests.txt")"
cat "$state/out/queue.log"; [[ ! -e $state/out/screen.log ]] || cat "$state/out/screen.log"
bring_back
