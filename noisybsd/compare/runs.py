"""Finished runs, found and read, and the metrics that are compared."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from noisybsd.config import Config, read_record
from noisybsd.errors import UserError
from noisybsd.files import kind_of, naming, read_text, user_path
from noisybsd.methods.presets import AVERAGED
from noisybsd.runs import records
from noisybsd.runs.directory import flatten


@dataclass(frozen=True)
class Metric:
    """A column of the tables.

    Args:
        key: its name in CSV files.
        field: its name in results.json.
        percent: whether tables show percent; in CSV files all fractions are in [0,1].
        digits: decimals to show.
        spread: whether to show the standard deviation.
        paired: whether to give differences to the baseline.
        main: whether the terminal shows it by default.
    """

    key: str
    heading: str
    field: str
    meaning: str
    percent: bool = False
    digits: int = 4
    spread: bool = True
    paired: bool = False
    main: bool = False


METRICS = (
    Metric(
        "accuracy_last",
        "last %",
        "test_accuracy_last",
        "test accuracy of the last epoch, the headline",
        percent=True,
        digits=2,
        paired=True,
        main=True,
    ),
    Metric(
        "accuracy_last10",
        "last 10 epochs %",
        "test_accuracy_last10_mean",
        "mean test accuracy of the last ten epochs",
        percent=True,
        digits=2,
    ),
    Metric(
        "accuracy_best_oracle",
        "best (oracle) %",
        "test_accuracy_best",
        "test accuracy of the best epoch, chosen on the test set",
        percent=True,
        digits=2,
    ),
    Metric(
        "accuracy_ema",
        "weight average %",
        "test_accuracy_ema_last",
        "test accuracy of the last epoch's weight average",
        percent=True,
        digits=2,
        paired=True,
    ),
    Metric(
        "ece",
        "ECE",
        "test_ece_last",
        "expected calibration error of the last epoch, 15 bins",
        paired=True,
        main=True,
    ),
    Metric(
        "label_correction",
        "corrected %",
        "label_correction_accuracy",
        "training labels that are right after correction by the belief; for a method without one, by the "
        "network's last prediction",
        percent=True,
        digits=2,
        paired=True,
        main=True,
    ),
    Metric(
        "auroc",
        "AUROC",
        "noise_detection_auroc",
        "of finding the wrong labels by the belief in them; for a method without one, by the network's "
        "last prediction",
        paired=True,
        main=True,
    ),
    Metric(
        "memorised",
        "memorised %",
        "memorised_fraction",
        "wrong training labels that the network predicts",
        percent=True,
        digits=2,
    ),
    Metric(
        "network_passes",
        "passes",
        "network_passes",
        "network passes per sample and epoch: forward 1, backward 2",
        digits=1,
        spread=False,
    ),
    Metric(
        "seconds",
        "seconds",
        "seconds",
        "training and evaluation, all parts of the run",
        digits=0,
    ),
)


SPREAD = "mean ± sample standard deviation over the n seeds"


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        settings: by dotted key, defaults included.
        results: of results.json.
    """

    path: Path
    settings: dict[str, Any]
    results: dict[str, Any]

    @property
    def recipe(self) -> str:
        return str(self.settings["recipe"])

    @property
    def method(self) -> str:
        return str(self.settings["method"])

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])

    @property
    def rate(self) -> float:
        return float(self.settings["noise.rate"])

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, one an epoch."""
        return read_history(self.path, int(self.settings["epochs"]))

    def curve(self, name: str) -> list[float | None]:
        """A metric of metrics.jsonl over the epochs."""
        name = f"{name}_ema" if self.method in AVERAGED and name.startswith("test_") else name
        return [row.get(name) for row in self.history]


def find_runs(paths: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Every finished run at or below `paths`, and a line for each that is not finished.

    Raises:
        UserError: lists paths that do not exist or hold no run, and files that are damaged or of another
            schema version.
    """
    mistakes: list[str] = []
    directories: dict[Path, str] = {}
    for path in paths:
        try:
            place = user_path(path, "path")
            kind = kind_of(place, path)
            with naming(path):
                below = _run_directories(place) if kind == "folder" else ()
                found = list(below)
        except UserError as error:
            mistakes.append(str(error))
            continue
        directories |= dict.fromkeys(found, path)
        if not found:
            what = {"folder": "no runs found there", None: "no such folder"}.get(kind, "no folder")
            mistakes.append(f"{path}: {what}; expected a run directory or a folder that holds some")
    runs, unfinished = [], []
    for directory in directories:
        shown = _shown(directory)
        try:
            if kind_of(directory / "results.json", str(shown)) is not None:
                runs.append(read_run(shown))
            else:
                unfinished.append(_how_far(shown))
        except UserError as error:
            mistakes += str(error).splitlines()
    if not runs and not mistakes:
        mistakes = ["no finished run to compare", *unfinished]
    if mistakes:
        raise UserError("\n".join(mistakes))
    return runs, unfinished


def _run_directories(path: Path) -> Iterator[Path]:
    """Run directories at or below `path`, sorted, with those of runs that failed before they began, those
    that lost their configuration, and linked ones."""

    def refused(error: OSError) -> None:
        raise error

    seen = set()  # links may lead in a circle
    for parent, folders, files in os.walk(path, onerror=refused, followlinks=True):
        folders.sort()
        real = Path(parent).resolve()
        if real in seen:
            folders.clear()
        elif {"config.yaml", "failed.txt", "results.json"} & set(files):
            folders.clear()
            yield real
        seen.add(real)


def _shown(path: Path) -> Path:
    """The path as one would type it: relative, if it is inside the working directory."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _how_far(path: Path) -> str:
    def text(name: str) -> str:
        file = path / name
        return "" if kind_of(file, str(file)) is None else read_text(file)

    record = path / "config.yaml"
    epochs = read_record(record).get("epochs") if text(record.name) else "?"
    epoch, failure = len(text("metrics.jsonl").splitlines()), text("failed.txt").strip()
    failed = f", failed: {failure}" if failure else ""
    return f"{path}: not finished, not used: epoch {epoch} of {epochs}{failed}"


def read_run(path: Path) -> Run:
    """Read the finished run in `path`.

    Raises:
        UserError: a file is damaged, or of another schema version.
    """
    defaults = flatten(Config.model_construct(recipe="").model_dump(mode="json"))
    record = read_record(path / "config.yaml")
    records.check_config(record, str(path / "config.yaml"))
    settings = defaults | flatten(record)
    results = records.read_results(path / "results.json")
    if settings["precision"] == "auto":  # the device decides, so it is named
        settings["precision"] = "auto: " + ("bf16" if results.get("device") == "cuda" else "fp32")
    run = Run(path, settings, results)
    if run.method in AVERAGED:
        run = Run(path, settings, results | _of_average(run))
    return run


def read_history(path: Path, epochs: int) -> list[dict[str, Any]]:
    """The rows of a finished run's metrics.jsonl.

    Raises:
        UserError: it is damaged.
    """
    rows = records.read_history(path / "metrics.jsonl")
    if len(rows) != epochs:
        raise UserError(
            f"{path / 'metrics.jsonl'}: damaged: {len(rows)} rows for {epochs} epochs. "
            f"{records.HISTORY_REMEDY}"
        )
    return rows


def _of_average(run: Run) -> dict[str, Any]:
    """The test numbers of the weight average, under the names of the network's."""
    accuracies = [value for value in run.curve("test_accuracy") if value is not None]
    if len(accuracies) < len(run.history):
        raise UserError(f"{run.path}: method {run.method} without a weight average (ema.decay=0)")
    return {
        "test_accuracy_last": accuracies[-1],
        "test_accuracy_last10_mean": statistics.fmean(accuracies[-10:]),
        "test_accuracy_best": max(accuracies),
        "test_ece_last": run.results.get("test_ece_ema_last"),
        "reliability": run.results.get("reliability_ema"),
    }
