"""Accuracy of finished runs on their own test images, corrupted by Kornia in all ways that the images allow.

    python benchmarks/corruptions.py runs/sweep/*-ce-* runs/sweep/*-bsd_plus-* --out results/corruptions.csv

What `python -m noisybsd.evaluate run=… corruptions=all` measures, as one table.

Columns:
    recipe, method, seed        which run
    noise_rate                  share of its training labels that are wrong
    corruption                  which kind; `all`: the mean over all kinds and severities
    accuracy, ece               of the last epoch's weights, mean over the five severities
    clean_accuracy              on the images as they are
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean

from common import Row, rounded, write_csv

from noisybsd.engine.evaluation import evaluate_run


def rows_of(run: Path) -> list[Row]:
    about = json.loads((run / "results.json").read_text())
    found = evaluate_run(run, ["corruptions=all"])
    sets = found["corruptions"]["sets"]  # by kind/severity
    kinds: dict[str, list[dict[str, float]]] = {"all": list(sets.values())}
    for name, metrics in sets.items():
        kinds.setdefault(name.split("/")[0], []).append(metrics)
    return [
        {key: about[key] for key in ("recipe", "method", "seed", "noise_rate")}
        | {"corruption": kind}
        | {key: rounded(fmean(each[key] for each in of_kind)) for key in ("accuracy", "ece")}
        | {"clean_accuracy": rounded(found["test_accuracy"]), "run_commit": about["git_commit"]}
        for kind, of_kind in kinds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="CSV to write; default: only print")
    known = parser.parse_args()
    write_csv(known.out, [row for run in known.runs for row in rows_of(run)])


if __name__ == "__main__":
    main()
