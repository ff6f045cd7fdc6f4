#!/usr/bin/env bash
# The pages of results/ on digits: methods at 40 % symmetric noise, noise rates, and clean labels; seeds 5-7.
#
#   bash benchmarks/digits.sh RUNS [key=value ...]
#
# RUNS is a folder for 108 runs of 10 to 60 s on one CPU core. Runs that are finished are not repeated: the
# same command continues. key=value is a setting of the sweeps, as jobs=2.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=$1
shift
python=${PYTHON:-.venv/bin/python}
fixed=(recipe=digits_sym40 seed=5,6,7 tracking.wandb=disabled)
methods=ce,elr,sop,sop_plus,selc,tcl,ssr,bsd,bsd_simclr,bsd_supcon,bsd_plus,bsd_plus_one_view

sweep() { "$python" -m noisybsd.sweep "${fixed[@]}" "$@"; }
sweep method=$methods out="$runs/sym40" "$@"
sweep targets=labels out="$runs/sym40_given" "$@"
sweep method=ce,elr,sop_plus,selc,bsd_supcon,bsd_plus noise.rate=0.2,0.5,0.8 out="$runs/rates" "$@"
sweep method=ce,label_smoothing,ps_kd,bsd,bsd_plus noise.name=none noise.rate=0 out="$runs/clean" "$@"

table() { # NAME, then folders and settings
    "$python" -m noisybsd.compare "${@:2}" baseline=ce published=false out="results/$1.csv,results/$1.md"
}
table digits_sym40 "$runs/sym40" "$runs/sym40_given"
table digits_rates "$runs/rates" plots="$runs/plots"
table digits_clean "$runs/clean"
cp "$runs/plots/digits_sym40-noise_rate.svg" results/digits_rates.svg
