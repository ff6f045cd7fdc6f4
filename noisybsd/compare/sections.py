"""Runs grouped and summarised; tables.py writes tables of it, plots.py draws it.

A section is a recipe, at one noise rate if its runs have several. A row is a method, with the settings in
which runs of the recipe differ, over its seeds. Runs of one recipe with other data, noise conventions or
budgets are refused, or mixed with a note.
"""

from __future__ import annotations

import csv
import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from noisybsd.compare.runs import Metric, Run
from noisybsd.config import read_recipe, recipe_names
from noisybsd.errors import UserError, did_you_mean
from noisybsd.methods.presets import AVERAGED, METHODS
from noisybsd.runs.directory import flatten, is_place
from noisybsd.values import as_typed

PUBLISHED = Path(__file__).with_name("published.csv")

# of data and labels, and of budgets: one recipe's runs must agree in them
_DATA = ("data.name", "data.labels", "data.manifest", "data.test_fraction", "noise.name")
_FOLD = ("data.folds", "data.fold")  # which images are held out, a row for each
_NOISE = ("noise.seed", "noise.file")
_BUDGET = ("epochs", "batch_size", "data.limit", "data.test_limit", "data.balanced", "data.size")
_NETWORK = ("network.name", "network.width", "network.pretrained", "network.embedding_dim")
MUST_AGREE = (*_DATA, *_NOISE, *_BUDGET, *_NETWORK)

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Summary:
    """Mean and spread of one metric over the seeds of a row."""

    mean: float
    std: float | None  # None for one seed
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean difference of one metric to the baseline, paired by seed; low and high: its 95 % interval."""

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
    """A recipe, at one noise rate if its runs have several."""

    recipe: str
    rate: float | None  # None: all runs of the recipe have the same
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
    """All sections, with the notes that belong to them and the command that made them."""

    sections: tuple[Section, ...]
    notes: tuple[str, ...]  # what was not used, and how the numbers came about
    command: str = ""


def paired_difference(differences: Sequence[float]) -> Difference | None:
    """Their mean, with the t-interval of 95 %: mean ± t_{0.975, n-1} s / sqrt(n). None if there are none.

    One pair gives no interval. Neither do equal differences, which happen on small test sets: an interval
    of length 0 would claim certainty.
    """
    n = len(differences)
    if n == 0:
        return None
    mean = statistics.fmean(differences)
    if max(differences) - min(differences) < 1e-9:
        return Difference(mean, None, None, n)
    from scipy import stats  # here, since it takes a while to import

    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return Difference(mean, mean - half, mean + half, n)


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
                [_labels_seed(run), run.rate, *map(run.settings.get, (*MUST_AGREE, *_FOLD))]
            ),
        )
        for alike in same_data.values():
            by_hash = group(alike, lambda run: str(run.results["data_sha256"])[:12])
            if len(by_hash) > 1:
                seed = _labels_seed(alike[0])
                where = recipe if seed is None else f"{recipe}, seed {seed}"
                yield f"{where}: data_sha256 differs: {_parties(by_hash)}"
        # seeds have other labels and so other hashes: compare at least whether the pixels are official
        by_pixels = group(members, lambda run: json.dumps(_pixels_verified(run)))
        if len(by_pixels) > 1:
            yield f"{recipe}: data.pixels_verified differs: {_parties(by_pixels)}"
        by_schedule = group(members, lambda run: json.dumps(run.results.get("extended_after", [])))
        if len(by_schedule) > 1:
            yield f"{recipe}: extended_after differs: {_parties(by_schedule)}"


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
        raise UserError("\n".join([*lines, "mix=true compares them anyway, and the tables say so"]))
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

    A setting of the method's preset is named if it differs from the preset, unless the recipe sets it and
    all runs have it; any other one if the runs differ in it.
    """
    recipe = _of_recipe(runs[0].recipe)
    presets = {run.method: flatten(METHODS.get(run.method, {})) for run in runs}
    free: dict[str, set[str]] = defaultdict(set)  # values of what no preset makes
    for run in runs:
        for key, value in run.settings.items():
            if key not in presets[run.method] and not _idle(run, key):
                free[key].add(json.dumps(value))

    def is_recipes(key: str, value: Any) -> bool:
        return recipe.get(key) == value and all(run.settings.get(key) == value for run in runs)

    def named(run: Run) -> Iterator[str]:
        for key, value in run.settings.items():
            if (
                is_place(key)
                or key in ("recipe", "method", "seed", "noise.rate")
                or _idle(run, key)
            ):
                continue
            preset = presets[run.method]
            if key in preset:
                differs = value != preset[key] and not is_recipes(key, value)
            else:
                differs = len(free[key]) > 1
            if differs or (key.startswith("options.") and key not in preset):
                yield f"{key}={as_typed(value)}"

    return {run.path: tuple(named(run)) for run in runs}


def _of_recipe(name: str) -> dict[str, Any]:
    """The settings that a recipe of this package sets; none, if it has none of that name."""
    return flatten(read_recipe(name)) if name in recipe_names() else {}


def _idle(run: Run, key: str) -> bool:
    """Whether a setting is of a part that the run does without."""
    for part, (switch, off) in {
        "contrastive.": ("contrastive.name", "none"),
        "neighbours.": ("neighbours.k", 0),
    }.items():
        if key.startswith(part) and key != switch:
            return bool(run.settings[switch] == off)
    return False


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
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        for entry in csv.DictReader(line for line in file if not line.startswith("#")):
            if (entry["dataset"], entry["labels_or_noise"]) in wanted:
                yield entry


def describe(section: Section) -> str:
    """One line: data, noise, budget and seeds of a section."""
    settings = [run.settings for run in section.runs]

    def each(key: str) -> str:
        return "/".join(dict.fromkeys(as_typed(s[key]) for s in settings))

    noise = "/".join(dict.fromkeys(condition(s) for s in settings))
    real = [rate for run in section.runs if (rate := run.results.get("noise_rate")) is not None]
    wrong = f" ({100 * statistics.fmean(real):.1f} % of the labels wrong)" if real else ""
    limit = "".join(
        f", first {each(key)} {kind} images"
        for key, kind in (("data.limit", "training"), ("data.test_limit", "test"))
        if each(key) != "null"
    )
    seeds = sorted({run.seed for run in section.runs})
    return (
        f"{each('data.name')}{limit}; labels: {noise}{wrong}; {each('network.name')}; "
        f"{each('epochs')} epochs, batch size {each('batch_size')}; "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
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
        test_labels = {run.results.get("data", {}).get("test_labels", "clean") for run in members}
        for kind in sorted(test_labels - {"clean"}):
            yield f"data: {name}: test labels are {kind}: accuracies and ECE are measured on them as they are"


_PIXELS = {
    True: "the official files, by checksum",
    False: "NOT the official files: other pixels (e.g. from JPEG copies); numbers may differ from "
    "published ones for that reason",
    None: "no official checksum to compare with",
}


def notes(
    sections: Sequence[Section], unfinished: Sequence[str], published: bool = False
) -> Iterator[str]:
    """Lines to show with the tables, beside the meaning of their columns."""
    if any(section.baseline for section in sections):
        yield (
            "differences (of percentages: in points) are paired by seed, with the 95 % t-interval of their "
            "mean. An interval that contains 0 leaves open which is better. There is no interval if all "
            "pairs differ by the same amount. Intervals cover what other seeds would change, not what other "
            "test images would, and are not corrected for the number of comparisons"
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
                yield f"{section.title}: no published numbers on these data and labels are known to us"
    yield from provenance(sections)
    yield from unfinished
