"""Runs side by side: `python -m noisybsd.compare runs/… [baseline=ce] [out=FILE] [plots=DIR]`.

Here runs are found, grouped and summarised; compare_tables.py writes tables of it, compare_plots.py draws it.

A section is a recipe, at one noise rate where its runs have several. A row is a method, with the settings
in which runs of the recipe differ, over its seeds. What must not be mixed within a recipe without saying
so is other data, other noise conventions and other budgets.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shlex
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from scipy import stats

from noisybsd.config import PACKAGE, Config, read_record, read_yaml
from noisybsd.errors import UserError, command, did_you_mean
from noisybsd.methods.bsd import TARGET_RULES
from noisybsd.methods.presets import AVERAGED, METHODS
from noisybsd.runs.directory import RESULTS_SCHEMA, flatten, is_place

USAGE = """\
usage: python -m noisybsd.compare RUN-OR-FOLDER… [key=value …]

Compare finished runs: a table for each recipe, with a row for each method and for each setting in which
the runs differ: mean ± standard deviation over its seeds, and the difference to a baseline, paired by
seed, with its 95 % confidence interval. Folders are searched for run directories.

  python -m noisybsd.compare runs/sweep
  python -m noisybsd.compare runs/sweep baseline=elr columns=all
  python -m noisybsd.compare runs/sweep out=table.md,table.csv plots=plots published=true

keys:
  baseline=METHOD    what differences are taken to: a method, or the whole label of a row; default: ce,
                     where there is one
  columns=main       or all: every metric and its difference, in the terminal too; files have them always
  out=FILE[,FILE…]   write the tables too, as .csv, .md or .tex
  plots=DIR          draw accuracy and memorised wrong labels over epochs, accuracy against noise rate,
                     and reliability diagrams, as PNG and SVG
  published=false    true: published numbers beside ours
  mix=false          true: compare runs of one recipe whose data, noise conventions or budgets differ; the
                     tables then say so
"""


# of data and labels, and of budgets: one recipe's runs must agree in them
_DATA = ("data.name", "data.labels", "data.manifest", "data.test_fraction", "noise.name")
_NOISE = ("noise.seed", "noise.file")
_BUDGET = ("epochs", "batch_size", "data.limit", "data.test_limit", "data.balanced", "data.size")
_NETWORK = ("network.name", "network.width", "network.pretrained", "network.embedding_dim")
MUST_AGREE = (*_DATA, *_NOISE, *_BUDGET, *_NETWORK)

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Metric:
    """A column of the tables.

    Args:
        key: its name in CSV files.
        field: its name in results.json.
        percent: shown as such; in CSV files all fractions are in [0,1].
        digits: decimals to show.
        spread: whether to show the standard deviation.
        paired: whether to give differences to the baseline.
        main: whether the terminal shows it unasked.
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
        "training labels that are right after correction by the belief, or, of a method without one, by the "
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
        "of finding the wrong labels by the belief in them, or, of a method without one, by the network's "
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

_REQUIRED = {
    "test_accuracy_last",
    "test_accuracy_last10_mean",
    "test_accuracy_best",
    "test_ece_last",
    "network_passes",
    "seconds",
}

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


@dataclass(frozen=True)
class Summary:
    """Of one metric over the seeds of a row."""

    mean: float
    std: float | None  # None for one seed
    n: int


@dataclass(frozen=True)
class Difference:
    """Of one metric to the baseline, paired by seed, with a 95 % confidence interval where there is one."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Row:
    """The runs of one method with one set of settings, one for each seed."""

    method: str
    settings: tuple[str, ...]
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        return " ".join((self.method, *self.settings))

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    def values(self, metric: Metric) -> dict[int, float]:
        """By seed, where known."""
        values = {run.seed: run.results.get(metric.field) for run in self.runs}
        return {seed: value for seed, value in values.items() if value is not None}

    def summary(self, metric: Metric) -> Summary | None:
        values = list(self.values(metric).values())
        if not values:
            return None
        std = statistics.stdev(values) if len(values) > 1 else None
        return Summary(statistics.fmean(values), std, len(values))

    def difference(self, baseline: Row, metric: Metric) -> Difference | None:
        mine, theirs = self.values(metric), baseline.values(metric)
        return paired_difference([mine[s] - theirs[s] for s in sorted(mine.keys() & theirs.keys())])


@dataclass(frozen=True)
class Section:
    """A recipe, at one noise rate where its runs have several."""

    recipe: str
    rate: float | None  # None where all runs of the recipe have the same
    rows: tuple[Row, ...]
    baseline: str | None
    notes: tuple[str, ...] = ()
    published: tuple[dict[str, str], ...] = ()

    @property
    def title(self) -> str:
        return self.recipe if self.rate is None else f"{self.recipe}, noise.rate={self.rate:g}"

    @property
    def runs(self) -> list[Run]:
        return [run for row in self.rows for run in row.runs]

    def baseline_of(self, row: Row) -> Row | None:
        """The row that `row` is compared to: the baseline with the same settings, or the only one."""
        named = [r for r in self.rows if r.label == self.baseline]
        candidates = named or [r for r in self.rows if r.method == self.baseline]
        alike = [r for r in candidates if r.settings == row.settings]
        found = alike or (candidates if len(candidates) == 1 else [])
        return found[0] if found and row not in candidates else None


@dataclass(frozen=True)
class Comparison:
    """All there is to say."""

    sections: tuple[Section, ...]
    notes: tuple[str, ...]  # what was not used, and how the numbers came about
    command: str = field(default="")


def paired_difference(differences: Sequence[float]) -> Difference | None:
    """Their mean, with the t-interval of 95 %: mean ± t_{0.975, n-1} s / sqrt(n). None if there are none.

    No interval for one pair, nor where all differences are the same, as happens on small test sets:
    one of length 0 would say that nothing is left open.
    """
    n = len(differences)
    if n == 0:
        return None
    mean = statistics.fmean(differences)
    if max(differences) - min(differences) < 1e-9:
        return Difference(mean, None, None, n)
    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return Difference(mean, mean - half, mean + half, n)


def find_runs(paths: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Every finished run at or below `paths`, and a line for each that is not finished.

    Raises:
        UserError: lists paths that do not exist or hold no run, and files that are damaged or of another
            schema version.
    """
    mistakes: list[str] = []
    directories: dict[Path, str] = {}
    for path in paths:
        found = [d.resolve() for d in _run_directories(Path(path).expanduser())]
        directories |= dict.fromkeys(found, path)
        if not found:
            what = "no runs found there" if Path(path).expanduser().is_dir() else "no such folder"
            mistakes.append(f"{path}: {what}; expected a run directory or a folder that holds some")
    runs, unfinished = [], []
    for directory in directories:
        shown = _shown(directory)
        try:
            if (directory / "results.json").exists():
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
    """Directories of runs, begun or failed before that, sorted; what lies inside one is its own."""
    for parent, folders, files in os.walk(path):
        folders.sort()
        if {"config.yaml", "failed.txt"} & set(files):
            folders.clear()
            yield Path(parent)


def _shown(path: Path) -> Path:
    """As one would type it: relative to the working directory where it lies inside."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _how_far(path: Path) -> str:
    record, log, failure = (path / n for n in ("config.yaml", "metrics.jsonl", "failed.txt"))
    epochs = read_yaml(record).get("epochs") if record.exists() else "?"
    epoch = len(log.read_bytes().splitlines()) if log.exists() else 0
    failed = f", failed: {failure.read_text('utf-8').strip()}" if failure.exists() else ""
    return f"{path}: not finished, not used: epoch {epoch} of {epochs}{failed}"


def read_run(path: Path) -> Run:
    """Read the finished run in `path`.

    Raises:
        UserError: a file is damaged, or of another schema version.
    """
    defaults = flatten(Config.model_construct(recipe="").model_dump(mode="json"))
    recorded = flatten(read_record(path / "config.yaml"))
    settings = defaults | recorded
    missing = [key for key in ("recipe", "method", "seed", "epochs") if key not in recorded]
    if missing:
        raise UserError(f"{path / 'config.yaml'}: damaged: it has no {missing[0]}")
    for key, kind in (("seed", int), ("epochs", int), ("noise.rate", int | float)):
        if not isinstance(settings[key], kind):
            raise UserError(f"{path / 'config.yaml'}: damaged: {key} is {settings[key]!r}")
    results = _read_results(path / "results.json")
    if settings["precision"] == "auto":  # where a run was made is no setting, but bits are
        settings["precision"] = "auto: " + ("bf16" if results.get("device") == "cuda" else "fp32")
    run = Run(path, settings, results)
    if run.method in AVERAGED:
        run = Run(path, settings, results | _of_average(run))
    return run


def _read_results(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text("utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged: {error}. {_REMEDY}") from None
    if not isinstance(results, dict):
        raise UserError(f"{path}: damaged: it holds no JSON object. {_REMEDY}")
    if results.get("schema") != RESULTS_SCHEMA:
        raise UserError(
            f"{path}: of schema version {results.get('schema')}; this noisybsd reads version "
            f"{RESULTS_SCHEMA}: compare such runs with the noisybsd that made them"
        )
    for metric in METRICS:
        value = results.get(metric.field)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number and (value is not None or metric.field in _REQUIRED):
            raise UserError(f"{path}: damaged: {metric.field} is {value!r}. {_REMEDY}")
    if not isinstance(results.get("data_sha256"), str):
        raise UserError(f"{path}: damaged: it has no data_sha256. {_REMEDY}")
    return results


_REMEDY = "Delete it and train in that directory again: it is written anew from the checkpoint"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def read_history(path: Path, epochs: int) -> list[dict[str, Any]]:
    """The rows of a finished run's metrics.jsonl.

    Raises:
        UserError: it is damaged.
    """
    file = path / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: damaged: {error}") from None
    if len(rows) != epochs or any(row.get("test_accuracy") is None for row in rows):
        raise UserError(
            f"{file}: damaged: {len(rows)} rows for {epochs} epochs, or some are not whole"
        )
    return rows


def _of_average(run: Run) -> dict[str, Any]:
    """The weight average's test numbers by the names of the network's."""
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


def group(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by key, both in order of appearance."""
    groups: dict[K, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)


def mixed(runs: Sequence[Run]) -> Iterator[str]:
    """One line for each thing in which runs of one recipe must agree and do not."""
    for recipe, members in group(runs, lambda run: run.recipe).items():
        for key in MUST_AGREE:
            by_value = group(members, lambda run: json.dumps(run.settings[key]))  # noqa: B023
            if len(by_value) > 1:
                yield f"{recipe}: {key} differs: {_parties(by_value)}"
        same_data = group(
            members,
            lambda run: json.dumps(
                [_labels_seed(run), run.rate, *map(run.settings.get, MUST_AGREE)]
            ),
        )
        for alike in same_data.values():
            by_hash = group(alike, lambda run: str(run.results["data_sha256"])[:12])
            if len(by_hash) > 1:
                seed = _labels_seed(alike[0])
                where = recipe if seed is None else f"{recipe}, seed {seed}"
                yield f"{where}: data_sha256 differs: {_parties(by_hash)}"
        # across seeds, hashes differ with the labels: what is known of the images must agree at least
        by_pixels = group(members, lambda run: json.dumps(_pixels_verified(run)))
        if len(by_pixels) > 1:
            yield f"{recipe}: data.pixels_verified differs: {_parties(by_pixels)}"


def _labels_seed(run: Run) -> int | None:
    """The seed that a run's labels depend on; None where every seed has the same."""
    drawn = run.settings["noise.name"] != "none" and run.settings["noise.seed"] is None
    return run.seed if drawn else None


def _pixels_verified(run: Run) -> bool | None:
    verified: bool | None = run.results.get("data", {}).get("pixels_verified")
    return verified


def _parties(groups: dict[str, list[Run]]) -> str:
    return "; ".join(
        f"{value} in {members[0].path}" + (f" and {len(members) - 1} more" if members[1:] else "")
        for value, members in groups.items()
    )


def compare(
    runs: Sequence[Run], baseline: str | None = None, mix: bool = False, published: bool = False
) -> tuple[Section, ...]:
    """Group `runs` into sections and rows.

    Raises:
        UserError: lists runs that must not be mixed; runs that are the same; or there is no such baseline.
    """
    lines = list(mixed(runs))
    if lines and not mix:
        raise UserError("\n".join([*lines, "mix=true compares them all the same, and says so"]))
    by_recipe = group(sorted(runs, key=lambda run: run.recipe), lambda run: run.recipe)
    sections = []
    for recipe, members in by_recipe.items():
        shown = _shown_settings(members)
        rates = {run.rate for run in members}
        notes = tuple(
            f"MIXED: {line}" for line in lines if re.match(rf"{re.escape(recipe)}[:,]", line)
        )
        for rate in sorted(rates):
            at_rate = [run for run in members if run.rate == rate]
            rows = _rows(at_rate, shown)
            sections.append(
                Section(
                    recipe,
                    rate if len(rates) > 1 else None,
                    rows,
                    _baseline(baseline, rows),
                    notes,
                    tuple(_published(at_rate)) if published else (),
                )
            )
    _check_baseline(baseline, sections)
    return tuple(sections)


def _shown_settings(runs: Sequence[Run]) -> dict[Path, tuple[str, ...]]:
    """For each run of a recipe, the settings to name beside its method.

    A setting that the method's preset makes is named where it is not what the preset says; any other one
    where the runs differ in it.
    """
    presets = {run.method: flatten(METHODS.get(run.method, {})) for run in runs}
    free: dict[str, set[str]] = defaultdict(set)  # values of what no preset makes
    for run in runs:
        for key, value in run.settings.items():
            if key not in presets[run.method] and has_effect(key, run.settings):
                free[key].add(json.dumps(value))

    def named(run: Run) -> Iterator[str]:
        for key, value in run.settings.items():
            if is_place(key) or key in ("recipe", "method", "seed", "noise.rate"):
                continue
            if not has_effect(key, run.settings):
                continue
            preset = presets[run.method]
            differs = value != preset[key] if key in preset else len(free[key]) > 1
            if differs or (key.startswith("options.") and key not in preset):
                yield f"{key}={_typed(value)}"

    return {run.path: tuple(named(run)) for run in runs}


def has_effect(key: str, settings: dict[str, Any]) -> bool:
    """Whether a run of these settings, by dotted key, uses `key`, or lacks the part it belongs to."""
    part, _, name = key.partition(".")
    if part == "posterior":
        rule = TARGET_RULES.get(settings["targets"])  # None: an idea of somebody's own, not here
        used = key != "posterior.evidence_share" or settings.get("posterior.label_evidence", True)
        return used and (rule is None or rule.uses_posterior)
    return part != "contrastive" or name == "name" or settings["contrastive.name"] != "none"


def _typed(value: Any) -> str:
    """A setting's value as one would type it."""
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _rows(runs: Sequence[Run], shown: dict[Path, tuple[str, ...]]) -> tuple[Row, ...]:
    """Raises UserError if a row has a seed twice."""
    order = {name: i for i, name in enumerate(METHODS)}
    groups = group(runs, lambda run: (run.method, shown[run.path]))
    rows = [
        Row(method, settings, tuple(sorted(members, key=lambda run: run.seed)))
        for (method, settings), members in groups.items()
    ]
    doubled = [
        f"{row.label}, seed {seed}: the same run twice, name one: {', '.join(str(r.path) for r in same)}"
        for row in rows
        for seed, same in group(row.runs, lambda run: run.seed).items()
        if len(same) > 1
    ]
    if doubled:
        raise UserError("\n".join(doubled))
    return tuple(sorted(rows, key=lambda row: (order.get(row.method, len(order)), row.label)))


def _baseline(asked: str | None, rows: Sequence[Row]) -> str | None:
    name = asked or "ce"
    return name if any(name in (row.method, row.label) for row in rows) else None


def _check_baseline(asked: str | None, sections: Sequence[Section]) -> None:
    if asked and not any(section.baseline for section in sections):
        labels = {name for s in sections for row in s.rows for name in (row.method, row.label)}
        raise UserError(f"baseline: {did_you_mean(asked, labels)}")


def condition(settings: dict[str, Any]) -> str:
    """The labels or noise of a run, as published.csv names them."""
    if settings["noise.name"] == "none":
        return str(settings["data.labels"])
    return f"{settings['noise.name']} {settings['noise.rate']:g}"


def _published(runs: Sequence[Run]) -> Iterator[dict[str, str]]:
    """Published numbers on the data and labels of `runs`."""
    wanted = {(str(run.settings["data.name"]), condition(run.settings)) for run in runs}
    with (PACKAGE / "published.csv").open(encoding="utf-8", newline="") as file:
        for entry in csv.DictReader(line for line in file if not line.startswith("#")):
            if (entry["dataset"], entry["labels_or_noise"]) in wanted:
                yield entry


def describe(section: Section) -> str:
    """One line: data, noise and budget of a section."""
    settings = [run.settings for run in section.runs]

    def each(key: str) -> str:
        return "/".join(dict.fromkeys(_typed(s[key]) for s in settings))

    noise = "/".join(dict.fromkeys(condition(s) for s in settings))
    real = [rate for run in section.runs if (rate := run.results.get("noise_rate")) is not None]
    wrong = f" ({100 * statistics.fmean(real):.1f} % of the labels wrong)" if real else ""
    limit = "".join(
        f", first {each(key)} {kind} images"
        for key, kind in (("data.limit", "training"), ("data.test_limit", "test"))
        if each(key) != "null"
    )
    return (
        f"{each('data.name')}{limit}; labels: {noise}{wrong}; {each('network.name')}; "
        f"{each('epochs')} epochs, batch size {each('batch_size')}"
    )


def provenance(sections: Sequence[Section]) -> Iterator[str]:
    """Lines on commit, hardware, versions and data of all runs."""
    runs = [run for section in sections for run in section.runs]

    def every(of: Callable[[dict[str, Any]], Any]) -> str:
        return "; ".join(dict.fromkeys(str(of(run.results)) for run in runs))

    yield f"commit: {every(lambda r: r.get('git_commit') or 'unknown')}"
    yield f"hardware: {every(lambda r: r.get('hardware', 'unknown'))}"
    versions = every(lambda r: ", ".join(f"{k} {v}" for k, v in r.get("versions", {}).items()))
    yield f"versions: {versions}"
    for name, members in group(runs, lambda run: str(run.settings["data.name"])).items():
        verified = {_pixels_verified(run) for run in members}
        yield f"data: {name}: {'; '.join(_PIXELS[known] for known in sorted(verified, key=str))}"


_PIXELS = {
    True: "the official files, by checksum",
    False: "NOT the official files: other pixels (e.g. from JPEG copies); numbers may differ from "
    "published ones for that reason",
    None: "no official checksum to hold them against",
}


def notes(
    sections: Sequence[Section], unfinished: Sequence[str], published: bool = False
) -> Iterator[str]:
    """What must stand with the tables, beside the meaning of their columns."""
    if any(section.baseline for section in sections):
        yield (
            "differences (of percentages: in points) are paired over common seeds, with the 95 % t-interval "
            "of their mean: one that holds 0 leaves open which is better; there is none where all pairs "
            "differ by the same; intervals hold what seeds change, not what other test images would, and "
            "are not corrected for the number of comparisons"
        )
    averaged = {row.method for section in sections for row in section.rows} & set(AVERAGED)
    for method in sorted(averaged):
        yield f"{method}: accuracies and ECE are those of the weight average, the method's network"
    for section in sections:
        counts = sorted({len(row.runs) for row in section.rows})
        if len(counts) > 1:
            yield f"{section.title}: rows have different numbers of seeds, {counts[0]} to {counts[-1]}"
    if published:
        for section in sections:
            if not section.published:
                yield f"{section.title}: no published numbers on these data and labels are known here"
    yield from provenance(sections)
    yield from unfinished


_KEYS = ("baseline", "columns", "out", "plots", "published", "mix")


def _options(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Paths and options. A path may hold a `=`, as the run directories of a sweep do.

    Raises:
        UserError: lists every mistake.
    """
    is_option = [re.match(r"\w+=", a) is not None and not Path(a).exists() for a in arguments]
    paths = [a for a, option in zip(arguments, is_option, strict=True) if not option]
    given = [a.split("=", 1) for a, option in zip(arguments, is_option, strict=True) if option]
    options: dict[str, Any] = {"baseline": None, "columns": "main", "out": "", "plots": None}
    mistakes = [
        f"{key}: unknown key, {did_you_mean(key, _KEYS)}" for key, _ in given if key not in _KEYS
    ]
    options |= dict(given)
    for key in ("published", "mix"):
        value = options.get(key, "false")
        options[key] = value == "true"
        if value not in ("true", "false"):
            mistakes.append(f"{key}: got {value!r}; valid: true, false")
    if options["columns"] not in ("main", "all"):
        mistakes.append(f"columns: {did_you_mean(options['columns'], ('main', 'all'))}")
    options["out"] = [Path(name).expanduser() for name in filter(None, options["out"].split(","))]
    mistakes += [
        f"out: got {str(file)!r}; valid: a file name that ends in .csv, .md or .tex"
        for file in options["out"]
        if file.suffix not in (".csv", ".md", ".tex")
    ]
    if not paths:
        mistakes.append("give run directories, or folders that hold some; --help says more")
    if mistakes:
        raise UserError("\n".join(mistakes))
    return paths, options


@command
def main(arguments: list[str]) -> int:
    if not arguments or {"-h", "--help", "help"} & set(arguments):
        print(USAGE, end="")
        return 0 if arguments else 2
    paths, options = _options(arguments)
    runs, unfinished = find_runs(paths)
    sections = compare(runs, options["baseline"], options["mix"], options["published"])
    comparison = Comparison(
        sections,
        tuple(notes(sections, unfinished, options["published"])),
        shlex.join(["python", "-m", "noisybsd.compare", *arguments]),
    )
    from noisybsd.compare import tables as compare_tables

    # files first: whoever reads the tables, as `head` does, may close the pipe
    written = list(options["out"])
    for file in written:
        compare_tables.write(comparison, file)
    if options["plots"]:
        from noisybsd.compare.plots import draw

        written += draw(sections, Path(options["plots"]).expanduser())
    compare_tables.show(comparison, every=options["columns"] == "all")
    for file in written:
        print(f"written to {file}")
    return 0


if __name__ == "__main__":
    # as the module that the tables and plots import
    from noisybsd.compare import sections as this

    sys.exit(this.main())
