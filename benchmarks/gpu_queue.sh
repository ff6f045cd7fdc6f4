#!/usr/bin/env bash
# The accuracy runs that one GPU should do first, in order of value; start it again to go on.
#
#   benchmarks/gpu_queue.sh data [key=value ...]
#
# The first argument is the folder with the datasets, further ones go to every run (data.verify=false
# for other pixels than the official ones). Each run has its own limit in minutes; what is cut off, by the
# limit, Ctrl-C or a crash, goes on from its checkpoint the next time, and what is finished is skipped.
# First comes the speed of a training step, results/step_cuda.csv. After each run, results/accuracy.csv and
# .md compare all that are finished, and the headers of the recipes say what was measured. RUNS, OUT, RECIPES
# and QUEUE (a file of lines like those below, without the speed) move things.
set -uo pipefail
cd "$(dirname "$0")/.."
[[ $# -ge 1 ]] || { sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2; }
data=$1; shift
python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python)}
runs=${RUNS:-runs/gpu_queue} out=${OUT:-results/accuracy} recipes=${RECIPES:-recipes}

queue() {
  if [[ -n ${QUEUE:-} ]]; then cat "$QUEUE"; return; fi
  cat <<'LINES'
# minutes recipe method seed [key=value ...]
25 cifar10n_worst bsd_plus 0
15 cifar10n_worst ce 0
15 cifar10_preact_resnet18 ce 0
25 cifar10_preact_resnet18 bsd_plus 0
25 cifar10n_worst bsd_plus 1
25 cifar10n_worst bsd_plus 2
15 cifar10n_worst ce 1
15 cifar10n_worst ce 2
25 cifar10_sym80 bsd_plus 0
25 cifar10_sym90 bsd_plus 0
25 cifar10_sym50 bsd_plus 0
25 cifar10_asym40 bsd_plus 0
25 cifar100n bsd_plus 0
25 cifar10n_aggre bsd_plus 0
25 cifar10n_random1 bsd_plus 0
25 cifar10n_worst bsd_plus 0 options.align=false
25 cifar10n_worst bsd_plus 0 options.label_evidence=false
25 cifar10n_worst bsd_plus 0 options.sharpen=false
25 cifar10n_worst bsd_plus 0 options.weigh_visits=false
25 cifar10n_worst bsd_plus 0 options.prior_strength=25
25 cifar10n_worst bsd_plus 0 contrastive.name=simclr
25 cifar10n_worst bsd_plus_one_view 0
25 cifar10n_worst bsd 0
25 cifar10n_worst bsd_simclr 0
25 cifar10n_worst bsd_supcon 0
15 cifar10n_worst selc 0
15 cifar10n_worst elr 0
25 cifar10n_worst sop_plus 0
LINES
  # the same again for the intervals, and what the others do
  for seed in 1 2; do
    for recipe in cifar10_sym80 cifar10_sym90 cifar10_sym50 cifar10_asym40 cifar100n cifar10n_aggre \
      cifar10n_random1; do
      echo "25 $recipe bsd_plus $seed"
    done
  done
  for seed in 1 2; do echo "15 cifar10_preact_resnet18 ce $seed"; done
  for seed in 0 1 2; do
    for recipe in cifar10_sym80 cifar10_sym90 cifar10_sym50 cifar10_asym40 cifar100n cifar10n_aggre \
      cifar10n_random1; do
      echo "15 $recipe ce $seed"
      echo "15 $recipe selc $seed"
    done
  done
  for method in label_smoothing ps_kd bsd bsd_plus_one_view; do echo "25 cifar10_preact_resnet18 $method 0"; done
  for method in ce label_smoothing ps_kd bsd bsd_plus_one_view; do echo "120 cifar100_resnet50 $method 0"; done
}

failed=0
speed=$(dirname "$out")/step_cuda.csv
if [[ -z ${QUEUE:-} && ! -e $speed ]]; then
  "$python" benchmarks/step.py --device cuda --methods ce,bsd,bsd_plus --out "$speed" \
    --profile "${speed%.csv}.txt" || failed=1
fi
while read -r minutes recipe method seed settings <&3; do
  [[ -z $minutes || $minutes == \#* ]] && continue
  name=$(tr -cs 'A-Za-z0-9_=.\n' - <<<"$recipe-$method-s$seed${settings:+-$settings}")
  dir=$runs/$name
  if [[ -e $dir/results.json ]]; then continue; fi
  echo "== $name, at most $minutes minutes"
  # INT saves and ends the run; KILL is for one that does not listen
  # shellcheck disable=SC2086
  timeout --foreground --signal=INT --kill-after=120 "${minutes}m" "$python" -m noisybsd.train \
    recipe="$recipe" method="$method" seed="$seed" data.root="$data" run.dir="$dir" $settings "$@"
  code=$?
  if [[ ! -e $dir/results.json ]]; then
    if [[ $code -eq 130 ]]; then echo "== interrupted; start this again to go on"; exit 130; fi
    echo "== $name is not finished (exit $code; 124: its limit); the next start goes on with it"
    failed=1
    continue
  fi
  "$python" -m noisybsd.compare "$runs" published=true out="$out.csv,$out.md" >/dev/null &&
    "$python" benchmarks/headers.py "$runs" "$out.csv" "$recipes"
done 3< <(queue)
exit $failed
