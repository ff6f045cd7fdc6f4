"""`find_label_issues` and `label_table` beside cleanlab: what they cost, and whether they find the same.

    python benchmarks/labels.py cost --out results/cost/labels.csv
    python benchmarks/labels.py parity --out results/labels_cleanlab.csv

`cost` runs each in a process of its own, which makes N x K random probabilities and calls it once.

Columns of `cost`:
    samples, classes, what      find_label_issues, label_table, or cleanlab's find_label_issues on one process
    seconds, cpu_seconds        of the call
    peak_gb                     the most memory of the process, the probabilities (float64) among it
    ratio                       CPU seconds of cleanlab's over these

`parity` asks both for the issues among the same probabilities: of scikit-learn's digits with synthetic noise,
by a logistic regression in five-fold cross-validation; rows are mean values over seeds.

Columns of `parity`:
    noise, rate, seeds          of the labels
    wrong                       the share of wrong labels
    ours, cleanlab              the share of labels that each flags
    overlap                     flagged by both, of those flagged by either
    precision_…, recall_…       of the flags, by the true labels
    auroc_ours                  of label_table's rank
    auroc_cleanlab              of cleanlab's label quality score, by self-confidence
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from statistics import fmean

import numpy as np
from common import Row, rounded, write_csv

SIZES = ((50_000, 10), (1_000_000, 10), (50_000, 1000))
WHAT = ("find_label_issues", "label_table", "cleanlab")


def call(samples: int, classes: int, what: str) -> Row:
    """Cost of one call, in this process."""
    random = np.random.default_rng(0)
    probs = random.random((samples, classes))
    probs **= 8
    clean = random.integers(0, classes, samples)
    probs[np.arange(samples), clean] += probs.sum(1)
    probs /= probs.sum(1, keepdims=True)
    wrong = random.random(samples) < 0.2
    labels = np.where(wrong, random.integers(0, classes, samples), clean)
    if what == "cleanlab":
        from cleanlab.filter import find_label_issues

        def run() -> object:
            return find_label_issues(labels, probs, n_jobs=1)
    else:
        import noisybsd

        function = getattr(noisybsd, what)

        def run() -> object:
            return function(labels, probs)

    begin, cpu = time.perf_counter(), time.process_time()
    run()
    return {
        "samples": samples,
        "classes": classes,
        "what": what,
        "seconds": rounded(time.perf_counter() - begin, 3),
        "cpu_seconds": rounded(time.process_time() - cpu, 3),
        "peak_gb": rounded(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
    }


def cost(sizes: list[tuple[int, int]]) -> list[Row]:
    rows = []
    for samples, classes in sizes:
        found = []
        for what in WHAT:
            arguments = ["call", f"{samples}", f"{classes}", what]
            done = subprocess.run(
                [sys.executable, __file__, *arguments], capture_output=True, text=True, check=True
            )
            found.append(json.loads(done.stdout.splitlines()[-1]))
        theirs = found[-1]["cpu_seconds"]
        rows += [{**row, "ratio": rounded(theirs / row["cpu_seconds"], 3)} for row in found]
    return rows


def parity(noise: str, rate: float, seed: int) -> Row:
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import cross_val_predict

    import noisybsd

    pixels, clean = load_digits(return_X_y=True)
    given = noisybsd.inject_noise(clean, noise, rate, seed=seed, num_classes=10)
    network = LogisticRegression(max_iter=300, C=0.1)
    probs = cross_val_predict(network, pixels / 16, given, cv=5, method="predict_proba")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = find_label_issues(given, probs, n_jobs=1)
    ours = noisybsd.find_label_issues(given, probs)
    wrong = given != clean
    rank = noisybsd.label_table(given, probs)["rank"].to_numpy()
    quality = get_label_quality_scores(given, probs)
    flags = {"ours": ours, "cleanlab": theirs}
    return {
        "wrong": wrong.mean(),
        **{name: flagged.mean() for name, flagged in flags.items()},
        "overlap": (ours & theirs).sum() / (ours | theirs).sum(),
        **{f"precision_{name}": wrong[flagged].mean() for name, flagged in flags.items()},
        **{f"recall_{name}": flagged[wrong].mean() for name, flagged in flags.items()},
        "auroc_ours": roc_auc_score(wrong, -rank),
        "auroc_cleanlab": roc_auc_score(wrong, -quality),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("cost", "parity"):
        commands.add_parser(name).add_argument("--out", type=Path)
    commands.choices["cost"].add_argument("--small", action="store_true", help="1,000 samples")
    commands.choices["parity"].add_argument("--seeds", type=int, default=5)
    one = commands.add_parser("call")
    one.add_argument("samples", type=int)
    one.add_argument("classes", type=int)
    one.add_argument("what", choices=WHAT)
    options = parser.parse_args()
    if options.command == "call":
        print(json.dumps(call(options.samples, options.classes, options.what)))
    elif options.command == "cost":
        write_csv(options.out, cost([(1000, 10)] if options.small else [*SIZES]))
    else:
        rows = []
        for noise, rate in (
            ("symmetric", 0.2),
            ("symmetric", 0.4),
            ("pairflip", 0.2),
            ("pairflip", 0.4),
        ):
            found = [parity(noise, rate, seed) for seed in range(options.seeds)]
            means = {key: rounded(fmean(row[key] for row in found), 4) for key in found[0]}
            rows.append({"noise": noise, "rate": rate, "seeds": len(found), **means})
        write_csv(options.out, rows)


if __name__ == "__main__":
    main()
