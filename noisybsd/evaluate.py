"""Evaluate a run's networks, on its test set or on others: `python -m noisybsd.evaluate run=DIR`."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from noisybsd.config import build_config, parse_overrides
from noisybsd.data.corruptions import CORRUPTIONS, choose, corrupted_sets, possible
from noisybsd.data.dataset import Evaluation, load_evaluation
from noisybsd.data.loader import keep_resident
from noisybsd.data.splits import Split
from noisybsd.engine.metrics import prediction_metrics
from noisybsd.engine.saved import load_run_config, load_trainer, run_argument
from noisybsd.engine.trainer import Trainer
from noisybsd.errors import UserError, command, shown
from noisybsd.files import write_json
from noisybsd.runs.environment import describe_environment
from noisybsd.settings import DataConfig

CORRUPTION_NAMES = textwrap.indent(textwrap.fill(", ".join(CORRUPTIONS), width=98), "  ")

USAGE = f"""\
usage: python -m noisybsd.evaluate run=DIR [key=value …]

Measure the networks of a run, finished or not, on its test set: accuracy, calibration error (ECE), negative
log-likelihood, Brier score and k-NN accuracy, of the raw weights and of their moving average. Prints a
table and writes DIR/evaluation.json.

keys that may differ from the run's own:
  data.root=PATH, data.download=true|false, data.workers=N, data.on_error=stop|skip,
  device=auto|cpu|cuda, precision=auto|fp32|bf16, neighbours.k=N

data.name=NAME measures them on other test images of the same classes too: corrupted ones (cifar10c,
cifar100c), ImageNet's of mini-WebVision's classes (webvision_imagenet), or the test split of any dataset.
All keys of data then belong to these images, and the run's own are read from where they were in training:
  data.root=PATH, data.download, data.verify, data.manifest, data.on_error, data.size, data.workers

corruptions=all measures them on the run's own test set corrupted here with Kornia: noise, blurs, fog,
contrast and others at five severities. Or some of them:
  corruptions=NAME,NAME,…
{CORRUPTION_NAMES}
The severities are not those of cifar10c: compare networks with each other, not with published numbers.

  python -m noisybsd.evaluate run=runs/own/… corruptions=all
  python -m noisybsd.evaluate run=runs/cifar10n_worst/… data.name=cifar10c data.root=data
"""

OF_OTHER_DATA = (
    *("data.name", "data.root", "data.download", "data.verify", "data.manifest"),
    *("data.on_error", "data.size", "data.workers"),
)


def evaluate_run(directory: Path, overrides: list[str]) -> dict[str, Any]:
    """Measure the networks in the latest checkpoint of the run in `directory`.

    Returns:
        What evaluation.json holds: epoch, test_accuracy, test_ece, test_nll, test_brier, each with
        `_ema` too, test_knn_accuracy, and machine and versions; with data.name among the overrides
        `other_data` too, and with corruptions=… `corruptions`, see `evaluate_on`.
    """
    other = corruptions = None
    if named := [o for o in overrides if o.startswith("corruptions=")]:
        corruptions = choose(named[-1].removeprefix("corruptions="))
        overrides = [o for o in overrides if o not in named]
    if any(override.startswith("data.name=") for override in overrides):
        other = _other_data([o for o in overrides if o.startswith("data.")])
        overrides = [o for o in overrides if not o.startswith("data.")]
    trainer = load_trainer(directory, load_run_config(directory, overrides))
    if trainer is None:
        raise UserError(f"run={directory}: has no checkpoint yet")
    further: dict[str, tuple[Evaluation, DataConfig]] = {}
    if other is not None:
        further["other_data"] = load_evaluation(other), other
        _check_fits(further["other_data"][0], trainer)
    if corruptions is not None:
        further["corruptions"] = corrupted_test_set(trainer, corruptions), trainer.config.data
    return {
        "run": str(directory),
        "epoch": trainer.epoch,
        "precision": trainer.precision,
        **trainer.evaluate(),
        **{key: evaluate_on(sets, trainer, data) for key, (sets, data) in further.items()},
        "data_sha256": trainer.dataset.sha256,
        **describe_environment(trainer.device),
    }


def _other_data(overrides: list[str]) -> DataConfig:
    for override in overrides:
        key = override.split("=", 1)[0]
        if key not in OF_OTHER_DATA:
            raise UserError(f"{key}: has no effect here; valid: {', '.join(OF_OTHER_DATA)}")
    return build_config({"recipe": "evaluation"}, parse_overrides(overrides)).data


def corrupted_test_set(trainer: Trainer, names: Sequence[str]) -> Evaluation:
    """The run's own test images as its network sees them, corrupted.

    Args:
        names: keys of `noisybsd.data.corruptions.CORRUPTIONS`; those that need colour are left out where
            there is none.
    """
    run, split = trainer.dataset, trainer.test
    names = possible(names, run.channels)
    if not isinstance(split.images, torch.Tensor):
        host = torch.device("cpu")
        split = keep_resident(split, host, "resident", trainer.config.data.on_error)
    # what lies outside of the view is never seen, and a length is one of the network's input
    split = replace(split, images=trainer.views.plain_view(split.images))
    sets = corrupted_sets(split, names, trainer.device)
    return Evaluation(f"{run.name}, corrupted", run.class_names, run.size, run.channels, sets)


def evaluate_on(evaluation: Evaluation, trainer: Trainer, data: DataConfig) -> dict[str, Any]:
    """Measure the run's networks on test sets other than its own.

    Args:
        data: says how image files are read, by workers and on_error.

    Returns:
        name; sets: by name accuracy, ece, nll and brier, each with `_ema` too; mean: the mean of each
        over the sets; skipped: unreadable images that were left out.

    Raises:
        UserError: images that are not there.
    """
    sets: dict[str, dict[str, float]] = {}
    skipped: list[str] = []
    for name, split in track(
        evaluation.sets,
        f"evaluating on {evaluation.name}",
        console=(console := Console(stderr=True)),
        disable=not console.is_terminal,
    ):
        sets[name] = _measure(split, trainer, data)
        skipped += [file for file in split.skipped if file not in skipped]
    mean = {
        metric: sum(found[metric] for found in sets.values()) / len(sets)
        for metric in next(iter(sets.values()))
    }
    return {"name": evaluation.name, "mean": mean, "sets": sets, "skipped": skipped}


def _check_fits(evaluation: Evaluation, trainer: Trainer) -> None:
    """Refuse images that the run's network was not made for."""
    run, name = trainer.dataset, f"data.name={evaluation.name}"
    theirs, ours = evaluation.class_names, run.class_names
    if len(theirs) != len(ours):
        raise UserError(f"{name}: has {len(theirs)} classes, the run was trained on {len(ours)}")
    for label, (one, other) in enumerate(zip(theirs, ours, strict=True)):
        if one != other:
            raise UserError(f"{name}: class {label} is {one}, in the run's data it is {other}")
    if evaluation.channels != run.channels:
        raise UserError(
            f"{name}: images of {evaluation.channels} channels, the run's have {run.channels}"
        )
    if evaluation.size != run.size:
        raise UserError(
            f"{name}: images of {evaluation.size} pixels, the run was trained on {run.size}; image "
            f"files can be read as such, data.size={run.size}"
        )


def _measure(split: Split, trainer: Trainer, data: DataConfig) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for suffix, network in trainer.networks().items():
        logits, _, labels = trainer.predict(network, split, data)
        metrics |= {f"{k}{suffix}": v for k, v in prediction_metrics(logits, labels).items()}
    return metrics


@command
def main(arguments: list[str]) -> int:
    if not arguments or {"-h", "--help", "help"} & set(arguments):
        print(USAGE, end="")
        return 0 if arguments else 2
    directory, others = run_argument(arguments)
    found = evaluate_run(directory, others)
    write_json(directory / "evaluation.json", found)

    console = Console()
    console.print(_table(f"{directory}, after epoch {found['epoch']}", found, "test_"))
    for other in (found[key] for key in ("other_data", "corruptions") if key in found):
        several = len(other["sets"]) > 1
        title = other["name"] + (f", mean of {len(other['sets'])} sets" if several else "")
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
