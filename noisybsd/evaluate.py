"""Evaluate a run's networks, on its test set or on others: `python -m noisybsd.evaluate run=DIR`."""

from __future__ import annotations

import sys
import textwrap
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from noisybsd.errors import asks_for_help, command, shown
from noisybsd.files import write_json
from noisybsd.settings import Registry

USAGE = """\
usage: python -m noisybsd.evaluate run=DIR [key=value …]

Measure the networks of a run, finished or not, on its test set: accuracy, calibration error (ECE), negative
log-likelihood, Brier score and k-NN accuracy, of the raw weights and of their moving average. Prints a
table and writes DIR/evaluation.json. Probabilities are calibrated where the run was (data.calibration).

keys that may differ from the run's own:
  data.download=true|false, data.workers=N, data.on_error=stop|skip,
  device=auto|cpu|cuda, precision=auto|fp32|bf16, neighbours.k=N

data.root=FOLDER, data.manifest=FILE name other images than those the run was trained on, of the same
classes and labelled as own images are (docs/data.md): the networks are measured on all of them, or, where
there is a split to test on, on that. Where the run's own data are no longer where they were, and these are
they, its own test set is meant.

data.name=NAME measures the networks on test images of another dataset with the same classes too: corrupted
ones (cifar10c, cifar100c), ImageNet's of mini-WebVision's classes (webvision_imagenet), own images, or the
test split of any dataset. All keys of data then belong to these images:
  data.root=PATH, data.download, data.verify, data.manifest, data.on_error, data.size, data.workers

run.data.root=PATH, run.data.manifest=FILE, run.data.labels=FILE say where the run's own data are now, if
they are not where they were in training, seen from here.

corruptions=all measures them on the run's own test set corrupted here with Kornia: noise, blurs, fog,
contrast and others at five severities. Or some of them:
  corruptions=NAME,NAME,…
{corruptions}
The severities are not those of cifar10c: compare networks with each other, not with published numbers.

  python -m noisybsd.evaluate run=runs/own/… corruptions=all
  python -m noisybsd.evaluate run=runs/own/… data.root=new_photos
  python -m noisybsd.evaluate run=runs/cifar10n_worst/… data.name=cifar10c data.root=data
"""


def usage() -> str:
    names = ", ".join(Registry("noisybsd.data.corruptions:CORRUPTIONS").keys())
    return USAGE.format(corruptions=textwrap.indent(textwrap.fill(names, width=98), "  "))


@command
def main(arguments: list[str]) -> int:
    if asks_for_help(arguments):
        print(usage(), end="")
        return 0 if arguments else 2
    from noisybsd.engine.evaluation import evaluate_run  # here, since torch takes seconds to import
    from noisybsd.engine.saved import run_argument

    directory, others = run_argument(arguments)
    found = evaluate_run(directory, others)
    write_json(directory / "evaluation.json", found)

    console = Console()
    title = f"{directory}, after epoch {found['epoch']}: {found['images']:,} test images"
    console.print(_table(title, found, "test_"))
    for other in (found[key] for key in ("other_data", "corruptions") if key in found):
        several = len(other["sets"]) > 1
        title = f"{other['name']}, {other['root']}: {other['images']:,} images"
        title += f", mean of {len(other['sets'])} sets" if several else ""
        console.print(_table(title, other["mean"]))
        if several:
            for title, suffix in NETWORKS.items():
                if f"accuracy{suffix}" in other["mean"]:
                    console.print(_grid(f"accuracy of the {title}", other["sets"], suffix))
    print(f"written to {shown(directory / 'evaluation.json')}")
    return 0


NETWORKS = {"weights": "", "weight average": "_ema"}  # and what their metrics end in


def _table(title: str, metrics: dict[str, Any], prefix: str = "") -> Table:
    """A row for each network, a column for each metric."""
    columns = {"accuracy": "accuracy", "ece": "ECE", "nll": "NLL", "brier": "Brier"}
    if f"{prefix}knn_accuracy" in metrics:
        columns["knn_accuracy"] = "k-NN accuracy"
    table = Table("network", title=Text(shown(title)))
    for column in columns.values():
        table.add_column(column, justify="right")
    for name, suffix in NETWORKS.items():
        values = [metrics.get(f"{prefix}{metric}{suffix}") for metric in columns]
        if values[0] is not None:
            table.add_row(name, *("" if v is None else f"{v:.4f}" for v in values))
    return table


def _grid(title: str, sets: dict[str, dict[str, float]], suffix: str) -> Table:
    """Accuracies on `corruption/severity`: a row for each corruption, a column for each severity."""
    rows: dict[str, list[float]] = {}
    for name, metrics in sets.items():
        rows.setdefault(name.split("/")[0], []).append(metrics[f"accuracy{suffix}"])
    table = Table(title=title)
    table.add_column("corruption")
    for severity in (*range(1, 1 + max(map(len, rows.values()))), "mean"):
        table.add_column(str(severity), justify="right")
    means = [sum(column) / len(column) for column in zip(*rows.values(), strict=True)]
    for name, row in {**rows, "mean": means}.items():
        table.add_row(Text(shown(name)), *(f"{value:.4f}" for value in [*row, sum(row) / len(row)]))
    return table


if __name__ == "__main__":
    sys.exit(main())
