"""Say which labels are wrong, in a table and on a page: `python -m noisybsd.report run=DIR`.

Or without a run, of any model's probabilities: `labels=FILE probs=FILE`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from noisybsd.errors import UserError, asks_for_help, command, shown
from noisybsd.runs.directory import FOLDS, MAY_DIFFER

USAGE = f"""\
usage: python -m noisybsd.report run=DIR [top=2000] [key=value …]
       python -m noisybsd.report labels=FILE probs=FILE [images=DIR] [embeddings=FILE] [classes=A,B,…]
                                 [out=label_report] [top=2000]

Say which training labels are wrong, from a run, finished or not. Writes into DIR:
  report.html          summary, plots, and the `top` most suspicious samples to go through; works offline
  labels.parquet       every sample, in the dataset's order; labels.csv: the same, most suspicious first
  pred_probs.npz       probabilities (N,K), as cleanlab takes them: belief, network, neighbours
  labels_metrics.json  the estimates and, with clean labels, how well each ranking finds wrong labels

keys that may differ from the run's own: {", ".join(MAY_DIFFER)}.
Except data.*, they matter only if training left no labels.parquet of the run's last epoch.

Without a run, of the probabilities of any model, which should not have learned from these labels:
  labels      .npy, .csv, .parquet, …: numbers or names of classes, and perhaps a column of paths
  probs       .npy, .npz: (N,K), as cleanlab takes them; or .csv, .parquet with a column for each class
  images      the folder of the images; embeddings: .npy (N,D), for neighbours
  classes     what the columns of probs are called, if neither probs nor numbers in labels say so
writes report.html, labels.parquet, labels.csv and labels_metrics.json into the folder `out`.
"""


def _print(directory: Path, metrics: dict[str, Any]) -> None:
    from noisybsd.report.duplicates import told

    said, detection, console = metrics["estimates"], metrics["detection"], Console()
    for notice in metrics["notices"]:
        print(notice)
    seen = f"{said['samples_seen']:,} labels"
    if said["samples_seen"] < said["samples"]:
        seen += f" that training saw ({said['samples']:,} there are)"
    print(f"{said['disputed']:,} of {seen} are disputed by the run's belief")
    if said["held_out"]:
        disputed = f"{said['held_out_disputed']:,} of {said['held_out_seen']:,}"
        print(f"{disputed} held-out ones are disputed by the network, which never saw them")
    truth = said.get("noise_rate_true")
    known = "" if truth is None else f"; in truth {truth:.2%}"
    if truth is not None and said["verified"] < said["samples"]:
        known += f" among the {said['verified']:,} of them whose right label is known"
    _print_rate(said, known)
    if doubled := told(metrics["duplicates"]):
        print(doubled)
    if detection:
        table = Table(title="finding wrong labels: which ranking to trust")
        for column in ("ranking", "AUROC", "average precision", "precision"):
            table.add_column(column, justify="left" if column == "ranking" else "right")
        for name, row in detection.items():
            values = [row.get(key) for key in ("auroc", "average_precision", "precision")]
            cells = (
                [row["unavailable"], "", ""]
                if "unavailable" in row
                else [f"{v:.4f}" for v in values]
            )
            table.add_row(name, *cells)
        console.print(table)
    if metrics["out_of_fold"]:
        print(f"{metrics['out_of_fold']} Their table is in {shown(directory / FOLDS)}.")
    print(
        f"written to {shown(directory)}: report.html, labels.csv, labels.parquet, pred_probs.npz,"
    )
    print("  labels_metrics.json")


def _print_rate(said: dict[str, Any], known: str) -> None:
    from noisybsd.report.estimates import caution, origin

    rate = said["noise_rate"]
    if rate["estimate"] is None:
        return
    estimate, source = f"{rate['estimate']:.2%}", origin(rate)
    if doubt := caution(said):
        print(f"estimated wrong: unknown ({estimate} by the {source}){known}\n{doubt}")
    elif "low" in rate:
        interval = f"95 % interval {rate['low']:.2%} to {rate['high']:.2%}"
        print(f"estimated wrong: {estimate}{known}")
        print(f"  {interval},\n  if the belief errs at most twice as often as it expects")
    else:
        print(f"estimated wrong: {estimate} (by the confident joint of the {source}){known}")


@command
def main(arguments: list[str]) -> int:
    if asks_for_help(arguments):
        print(USAGE, end="")
        return 0 if arguments else 2
    # here, since torch takes seconds to import
    from noisybsd.engine.saved import run_argument
    from noisybsd.report.write import report

    tops = [a.removeprefix("top=") for a in arguments if a.startswith("top=")]
    top, others = (
        _count(tops[-1]) if tops else 2000,
        [a for a in arguments if not a.startswith("top=")],
    )
    if any(argument.startswith(("labels=", "probs=")) for argument in others):
        _of_files(others, top)
        return 0
    directory, overrides = run_argument(others)
    _print(directory, report(directory, overrides, top))
    return 0


def _of_files(arguments: list[str], top: int) -> None:
    from noisybsd.report.from_files import report_of_files

    if wrong := [argument for argument in arguments if "=" not in argument]:
        raise UserError(f"argument {wrong[0]!r}: arguments are written key=value")
    directory, said, notices = report_of_files(
        dict(argument.split("=", 1) for argument in arguments), top
    )
    print(f"{said['disputed']:,} of {said['samples']:,} labels are not the most probable class")
    _print_rate(said, "")
    for notice in notices:
        print(notice)
    print(f"written to {shown(directory)}: report.html, labels.csv, labels.parquet,")
    print("  labels_metrics.json")


def _count(text: str) -> int:
    if not re.fullmatch("0*[1-9][0-9]{0,8}", text):
        raise UserError(f"top={text}: expected how many samples to show, an integer from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
