"""Evaluate a run's networks, on its test set or on others: `python -m noisybsd.evaluate run=DIR`."""

from __future__ import annotations

import logging
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
from noisybsd.data.cards import load_card
from noisybsd.data.corruptions import CORRUPTIONS, choose, corrupted_sets, possible
from noisybsd.data.dataset import Evaluation, load_evaluation
from noisybsd.data.loader import keep_resident
from noisybsd.data.splits import Missing, Split
from noisybsd.engine.metrics import prediction_metrics
from noisybsd.engine.saved import is_runs_data, load_run_config, load_trainer, run_argument
from noisybsd.engine.trainer import Trainer
from noisybsd.errors import UserError, command, shown
from noisybsd.files import write_json
from noisybsd.runs.environment import describe_environment
from noisybsd.settings import DataConfig

log = logging.getLogger("noisybsd")

CORRUPTION_NAMES = textwrap.indent(textwrap.fill(", ".join(CORRUPTIONS), width=98), "  ")

USAGE = f"""\
usage: python -m noisybsd.evaluate run=DIR [key=value …]

Measure the networks of a run, finished or not, on its test set: accuracy, calibration error (ECE), negative
log-likelihood, Brier score and k-NN accuracy, of the raw weights and of their moving average. Prints a
table and writes DIR/evaluation.json.

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
{CORRUPTION_NAMES}
The severities are not those of cifar10c: compare networks with each other, not with published numbers.

  python -m noisybsd.evaluate run=runs/own/… corruptions=all
  python -m noisybsd.evaluate run=runs/own/… data.root=new_photos
  python -m noisybsd.evaluate run=runs/cifar10n_worst/… data.name=cifar10c data.root=data
"""

PLACES = ("data.root", "data.manifest", "data.labels")  # keys that say which data
OF_OTHER_DATA = (
    *("data.name", "data.root", "data.download", "data.verify", "data.manifest"),
    *("data.on_error", "data.size", "data.workers"),
)


def evaluate_run(directory: Path, overrides: list[str]) -> dict[str, Any]:
    """Measure the networks in the latest checkpoint of the run in `directory`.

    Returns:
        What evaluation.json holds: epoch, images (how many are in the test set), test_accuracy, test_ece,
        test_nll, test_brier, each with `_ema` too, test_knn_accuracy, and machine and versions; of
        other images `other_data` too, and with corruptions=… `corruptions`, see `evaluate_on`.
    """
    corruptions = None
    if named := [o for o in overrides if o.startswith("corruptions=")]:
        corruptions = choose(named[-1].removeprefix("corruptions="))
        overrides = [o for o in overrides if o not in named]
    overrides, other = _whose_data(directory, overrides)
    try:
        trainer = load_trainer(directory, load_run_config(directory, overrides))
    except Missing as error:
        raise UserError(
            f"{error}\nthese are the run's own data; run.data.root=PATH says where they are now"
        ) from None
    if trainer is None:
        raise UserError(f"run={directory}: has no checkpoint yet")
    further: dict[str, tuple[Evaluation, DataConfig]] = {}
    if other is not None:
        further["other_data"] = load_evaluation(other, trainer.dataset.class_names), other
        _check_fits(further["other_data"][0], trainer)
    if corruptions is not None:
        further["corruptions"] = corrupted_test_set(trainer, corruptions), trainer.config.data
    return {
        "run": str(directory),
        "epoch": trainer.epoch,
        "precision": trainer.precision,
        "images": len(trainer.test),
        **trainer.evaluate(),
        **{key: evaluate_on(sets, trainer, data) for key, (sets, data) in further.items()},
        "data_sha256": trainer.dataset.sha256,
        **describe_environment(trainer.device),
    }


def _whose_data(directory: Path, overrides: list[str]) -> tuple[list[str], DataConfig | None]:
    """Tell the keys of the run's own data from those of other images to measure on.

    Returns:
        the overrides of the run's own settings; and the other images, if any are named.
    """
    of_data = [o for o in overrides if o.startswith("data.")]
    own = [o.removeprefix("run.") for o in overrides if o.startswith("run.data.")]
    rest = [o for o in overrides if o not in of_data and not o.startswith("run.data.")]
    if any(o.startswith("data.name=") for o in of_data):
        return [*rest, *own], _other_data(of_data)
    config = load_run_config(directory, [*rest, *own, *of_data])
    named = any(o.split("=", 1)[0] in PLACES for o in of_data)
    if not named or load_card(config.data.name).layout != "own":
        return [*rest, *own, *of_data], None
    if is_runs_data(directory, config):
        before = Path(load_run_config(directory, [*rest, *own]).data.root)
        if not before.exists() or before.samefile(config.data.root):
            return [*rest, *own, *of_data], None
        log.warning(
            "the images in data.root=%s are the run's own, most of which it was trained on",
            config.data.root,
        )
    given = {o.split("=", 1)[0] for o in of_data}
    if "data.labels" in given:
        raise UserError(
            "data.labels: gives labels to training images; list the images to measure on, with their labels, "
            "in data.manifest=FILE; where the run's own label file is now, run.data.labels=FILE says"
        )
    other = config.data.model_copy(
        update={
            "labels": "default",
            "manifest": config.data.manifest if "data.manifest" in given else None,
        }
    )
    kept = [o for o in of_data if o.split("=", 1)[0] not in PLACES]
    return [*rest, *own, *kept], other


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
        name; root; images: how many were measured, of all sets together; sets: by name accuracy, ece, nll
        and brier, each with `_ema` too; mean: the mean of each over the sets; skipped: unreadable images
        that were left out.

    Raises:
        UserError: images that are not there.
    """
    sets: dict[str, dict[str, float]] = {}
    skipped: list[str] = []
    images = 0
    for name, split in track(
        evaluation.sets,
        f"evaluating on {evaluation.name}",
        console=(console := Console(stderr=True)),
        disable=not console.is_terminal,
    ):
        sets[name], count = _measure(split, trainer, data)
        images += count
        skipped += [file for file in split.skipped if file not in skipped]
    mean = {
        metric: sum(found[metric] for found in sets.values()) / len(sets)
        for metric in next(iter(sets.values()))
    }
    return {
        "name": evaluation.name,
        "root": data.root,
        "images": images,
        "mean": mean,
        "sets": sets,
        "skipped": skipped,
    }


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


def _measure(split: Split, trainer: Trainer, data: DataConfig) -> tuple[dict[str, float], int]:
    """The metrics of a test set, and how many images it has that can be read."""
    metrics: dict[str, float] = {}
    count = 0
    for suffix, network in trainer.networks().items():
        logits, _, labels = trainer.predict(network, split, data)
        metrics |= {f"{k}{suffix}": v for k, v in prediction_metrics(logits, labels).items()}
        count = len(labels)
    return metrics, count


@command
def main(arguments: list[str]) -> int:
    if not arguments or {"-h", "--help", "help"} & set(arguments):
        print(USAGE, end="")
        return 0 if arguments else 2
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
