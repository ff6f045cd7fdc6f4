"""Measures a run's networks, on its test set or on others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from noisybsd.config import build_config, parse_overrides
from noisybsd.data.cards import load_card
from noisybsd.data.corruptions import choose, corrupted_sets, possible
from noisybsd.data.dataset import Evaluation, load_evaluation
from noisybsd.data.progress import with_bar
from noisybsd.data.residence import keep_resident
from noisybsd.data.splits import Missing, Split
from noisybsd.engine.metrics import prediction_metrics
from noisybsd.engine.saved import is_runs_data, load_run_config, load_trainer
from noisybsd.engine.trainer import Trainer
from noisybsd.errors import UserError
from noisybsd.runs.directory import no_checkpoint
from noisybsd.runs.environment import describe_environment
from noisybsd.settings import DataConfig

log = logging.getLogger("noisybsd")

# keys that say which data
PLACES = ("data.root", "data.manifest", "data.embeddings", "data.labels")
OF_OTHER_DATA = (
    *("data.name", "data.root", "data.download", "data.verify", "data.manifest", "data.embeddings"),
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
    for key in (o.split("=", 1)[0] for o in overrides):
        if key.startswith("corrupt"):
            raise UserError(f"{key}: unknown key; did you mean corruptions?")
    overrides, other = _whose_data(directory, overrides)
    try:
        trainer = load_trainer(directory, load_run_config(directory, overrides))
    except Missing as error:
        raise UserError(
            f"{error}\nthese are the run's own data; run.data.root=PATH says where they are now"
        ) from None
    if trainer is None:
        raise no_checkpoint(directory)
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
    # how images are read is the run's; which of them are labelled how, limited or held out is not
    taken = {"name", "root", "verify", "download", "on_error", "storage", "workers", "size"}
    taken |= {"manifest", "embeddings"} & {key.removeprefix("data.") for key in given}
    other = DataConfig(**config.data.model_dump(include=taken))
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

    Raises:
        UserError: the run was trained on embeddings.
    """
    if (embeddings := trainer.config.data.embeddings) is not None:
        raise UserError(
            f"corruptions: the run was trained on data.embeddings={embeddings}, so it takes no images"
        )
    run, split = trainer.dataset, replace(trainer.test, embeddings=None)
    names = possible(names, run.channels)
    if not isinstance(split.images, torch.Tensor):
        host = torch.device("cpu")
        split = keep_resident(split, host, "resident", trainer.config.data.on_error)
    # what lies outside of the view is never seen, and a length is one of the network's input
    split = replace(split, images=trainer.image_views.plain_view(split.images))
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
    for name, split in with_bar(evaluation.sets, f"evaluating on {evaluation.name}"):
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
    if trainer.config.data.embeddings is not None:
        return  # the images are not looked at
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
