"""The report of a run, written into its directory: the label table, the page and the estimates."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from noisybsd.config import Config
from noisybsd.data.cards import load_card
from noisybsd.data.dataset import Dataset
from noisybsd.data.images import ImageFiles
from noisybsd.data.names import as_text
from noisybsd.data.splits import Split, image_size
from noisybsd.engine.data import run_dataset
from noisybsd.engine.saved import load_run_config, load_trainer
from noisybsd.errors import UserError
from noisybsd.files import kind_of, write_json, write_text
from noisybsd.report.collect import collect
from noisybsd.report.duplicates import find_duplicates, summary
from noisybsd.report.estimates import estimates
from noisybsd.report.findings import Findings
from noisybsd.report.folds import out_of_fold
from noisybsd.report.page import Run, build_page
from noisybsd.report.pictures import Pictures
from noisybsd.report.rankings import detection_metrics
from noisybsd.runs.directory import FOLDS, no_checkpoint
from noisybsd.runs.records import read_history


def load_run(directory: Path, overrides: list[str]) -> Run:
    """The findings of a run: those that training wrote; without them, from its checkpoint.

    Raises:
        UserError: not a run directory, or it holds neither findings nor a checkpoint; or findings
            have to be made and the data are not there.
    """
    config = load_run_config(directory, overrides)
    history = _history(directory / "metrics.jsonl")
    findings = Findings.read(directory)
    dataset, problem, notices = None, None, []
    if findings is None or findings.about["epoch"] != len(history):
        trainer = load_trainer(directory, config)
        if trainer is not None:
            dataset, findings = trainer.dataset, collect(trainer, directory)
            findings.write(directory)
        elif findings is None:
            raise no_checkpoint(directory)
        if findings.about["epoch"] < len(history):
            checkpoint = (
                "has no checkpoint any more" if trainer is None else "has no later checkpoint"
            )
            notices.append(
                f"The run went on to epoch {len(history)}, but it {checkpoint}. This page shows "
                f"what was found after epoch {findings.about['epoch']}."
            )
    if dataset is None:
        try:
            dataset = run_dataset(config)
        except UserError as error:
            problem = error
    if dataset is not None and dataset.is_of(findings.about["data_sha256"]):
        pictures = Pictures.of(_as_judged(dataset, findings))
        return Run(findings, history, pictures, notices, _address(pictures, directory))
    reason = (
        str(problem).splitlines()[0]
        if problem
        else f"those in data.root={config.data.root}, or their labels, are no longer those that the run was "
        "trained on"
    )
    images = _files(findings, config)
    shown = "no pictures are shown" if images is None else "pictures are shown if their files exist"
    notices.append(f"The images: {reason}; {shown}.")
    return Run(findings, history, images, notices, _address(images, directory))


def _as_judged(dataset: Dataset, findings: Findings) -> Dataset:
    """The dataset without images that the table has not: a frozen network leaves out unreadable ones."""
    judged = {*findings.table["path"].to_pylist()}

    def part(split: Split) -> Split:
        if split.paths is None:
            return split
        return split.take(np.array([as_text(path) in judged for path in split.paths], bool))

    return replace(
        dataset,
        train=part(dataset.train),
        calibration=None if dataset.calibration is None else part(dataset.calibration),
        held_out=None if dataset.held_out is None else part(dataset.held_out),
    )


def _address(images: Pictures | None, directory: Path) -> str | None:
    """Where the folder of the image files is, as seen from a page in `directory`; None: there are none."""
    files = None if images is None else images.parts[0]
    if not isinstance(files, ImageFiles):
        return None
    return quote(os.fsencode(os.path.relpath(files.root, directory)))


def _history(path: Path) -> list[dict[str, Any]]:
    return [] if kind_of(path, str(path)) is None else read_history(path)


def _files(findings: Findings, config: Config) -> Pictures | None:
    """The image files that the table names, whether or not they are there."""
    paths = findings.table["path"].to_pylist()
    if None in paths:
        return None
    card = load_card(config.data.name)
    size = image_size(card, config.data)[1]
    return Pictures([ImageFiles(paths, config.data.root, size, card.channels)])


def report(directory: Path, overrides: list[str], top: int = 2000) -> dict[str, Any]:
    """Write the label table, the page and labels_metrics.json of the run in `directory`.

    Returns:
        what labels_metrics.json holds: about, estimates, detection, notices (sentences on what the page
        lacks), out_of_fold (a sentence, where data.folds is set), duplicates.
    """
    run, folds = load_run(directory, overrides), None
    config = load_run_config(directory, overrides)
    if (done := run.findings.about["epoch"]) < config.epochs:
        unfinished = f"The run is not finished: {done} of {config.epochs} epochs."
        run = replace(run, notices=[unfinished, *run.notices])
    notices = run.notices
    if config.data.folds is not None:
        findings, folds = out_of_fold(run.findings, directory, config)
        run = replace(run, findings=findings, notices=[*run.notices, folds])
        (directory / FOLDS).mkdir(exist_ok=True)
        findings.write(directory / FOLDS)
    said, detection = estimates(run.findings), detection_metrics(run.findings)
    duplicates = find_duplicates(run.findings, run.images)
    page = build_page(run, said, detection, top, duplicates)
    write_text(directory / "report.html", page)
    metrics = {
        "about": {k: v for k, v in run.findings.about.items() if k != "class_names"},
        "estimates": as_json(said),
        "detection": detection,
        "notices": notices,
        "out_of_fold": folds,
        "duplicates": summary(duplicates, run.findings.arrays["labels"]),
    }
    write_json(directory / "labels_metrics.json", metrics)
    return metrics


def as_json(value: Any) -> Any:
    """With lists for arrays and null for NaN."""
    if isinstance(value, dict):
        return {key: as_json(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        return [as_json(each) for each in value.tolist()]
    if isinstance(value, list):
        return [as_json(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
