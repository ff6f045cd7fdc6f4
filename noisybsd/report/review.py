"""Decisions on labels from a report's page, and the label file or folder that follows from them.

Dimensions: N samples of the label table, R reviewed ones, L images of the dataset as it is read.
"""

from __future__ import annotations

import csv
import io
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from noisybsd.config import Config
from noisybsd.data.cards import load_card
from noisybsd.data.label_files import write_labels
from noisybsd.data.labelling import real_rate, spare_sources, with_labels, with_noise
from noisybsd.data.names import as_text, whole_number
from noisybsd.data.reading import read_splits
from noisybsd.data.splits import Split
from noisybsd.data.tables import decoded, separator_of
from noisybsd.engine.data import run_dataset
from noisybsd.engine.saved import load_run_config
from noisybsd.errors import UserError, brief, did_you_mean, shown
from noisybsd.files import naming, open_file, spare_inputs, user_path
from noisybsd.report.findings import Ints
from noisybsd.report.links import link_classes

DECISIONS = ("wrong", "right", "unsure")
NAMED = 20  # rows that a message names


@dataclass(frozen=True)
class Review:
    """Decisions from a report's page, of one dataset.

    Args:
        index: (R,) reviewed samples, each once.
        given: (R,) their given labels.
        label: (R,) the labels they should have: another where the decision is `wrong`, else the given one.
        decision: R of DECISIONS.
        path: R names of the images; "" where the file has none.
    """

    index: Ints
    given: Ints
    label: Ints
    decision: list[str]
    data_sha256: str
    path: list[str]


def read_review(path: Path, class_names: Sequence[str]) -> Review:
    """Read the CSV that a report's page downloads, also as a spreadsheet saves it.

    A person may have written the right class into it: its number or its name, into the column label.

    Raises:
        UserError: names the file, the line and what is valid.
    """
    with naming(f"review={path}: cannot be read"), open_file(path, "rb") as file:
        text = decoded(file.read(), f"review={path}")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator_of(text))
    classes = [*map(as_text, class_names)]
    try:
        lines = [(reader.line_num, row) for row in reader if any(row.values())]
    except csv.Error as error:
        raise UserError(f"review={path}: line {reader.line_num}: {error}") from None
    needed = ("index", "given", "label", "decision", "data_sha256")
    missing = [name for name in needed if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"review={path}: has no column {missing[0]}; valid: {', '.join(needed)}")
    rows: dict[int, tuple[int, int, str, str]] = {}
    data_sha256: str | None = None
    without: list[str] = []
    edited: list[str] = []
    for number, row in lines:
        place = f"review={path}: line {number}"
        wrong = row["decision"] == "wrong"
        index, given = (_integer(row, column, place) for column in ("index", "given"))
        label = _right_class(row, given, classes, place)
        if row["decision"] not in DECISIONS:
            raise UserError(
                f"{place}: decision: got {row['decision']!r}, valid: {', '.join(DECISIONS)}"
            )
        if index in rows:
            raise UserError(f"{place}: index {index} is in an earlier line already")
        if wrong == (label == given):
            named = without if wrong else edited
            named.append(f"line {number} ({row.get('path') or f'index {index}'})")
        if data_sha256 not in (None, row["data_sha256"]):
            raise UserError(
                f"{place}: data_sha256: got {row['data_sha256']!r}, but {data_sha256!r} before; valid: "
                "decisions on one dataset"
            )
        data_sha256 = row["data_sha256"]
        rows[index] = given, label, row["decision"], row.get("path") or ""
    if without:
        raise UserError(
            f"review={path}: {len(without):,} labels are marked as wrong, and no other class is given: "
            f"{_first_of(without)}. Write the right class into the column label (its name, or its number "
            "from 0), or mark them unsure"
        )
    if edited:
        raise UserError(
            f"review={path}: {len(edited):,} labels are marked as right or unsure, and another class is "
            f"given: {_first_of(edited)}. Write wrong into the column decision, or the given class into label"
        )
    if data_sha256 is None:
        raise UserError(f"review={path}: holds no decisions")
    given_labels, labels, decisions, names = zip(*rows.values(), strict=True)
    return Review(
        np.array(list(rows)),
        np.array(given_labels),
        np.array(labels),
        list(decisions),
        data_sha256,
        list(names),
    )


def _first_of(rows: list[str]) -> str:
    return ", ".join(rows[:NAMED]) + " …" * (len(rows) > NAMED)


def _integer(row: dict[str, str | None], column: str, place: str) -> int:
    number = whole_number((row[column] or "").strip())  # a spreadsheet may write 2.0
    if number is None:
        raise UserError(f"{place}: {column}: got {row[column]!r}, valid: an integer")
    return number


def _right_class(row: dict[str, str | None], given: int, names: list[str], place: str) -> int:
    """The class, of K `names`, that a row says is the right one.

    Raises:
        UserError: there is no such class, or the columns label and label_name name two.
    """
    cell, name = (row["label"] or "").strip(), (row.get("label_name") or "").strip()
    if (number := whole_number(cell or str(given))) is not None:
        label = number
        if not 0 <= label < len(names):
            raise UserError(f"{place}: label: got {label}, valid: 0 to {len(names) - 1}, or a name")
        if cell in names and names[label] not in (cell, name):  # classes are called by numbers
            if cell != name:
                raise UserError(
                    f"{place}: label: {cell!r} is the number of class {names[label]!r} and the name of "
                    "another: write the name of the right class into label_name"
                )
            label = names.index(cell)
    else:
        if cell not in names:
            raise UserError(f"{place}: label: {did_you_mean(cell, names)}")
        label = names.index(cell)
    # who writes into the column label alone leaves the given label's name
    if name and name not in (names[label], names[given] if 0 <= given < len(names) else ""):
        raise UserError(
            f"{place}: label is {cell or given} ({names[label]}) and label_name {name!r}: make them one class"
        )
    return label


def apply_review(
    config: Config, path: Path, out: Path | None, links: Path | None = None
) -> dict[str, int]:
    """Write the labels that the run `config` was trained on, corrected by a review.

    The file has a label for every training image in the order in which the dataset is read, those
    held out for testing included, so that `data.labels=OUT` with `noise.name=none` trains on it.

    Args:
        path: the CSV downloaded from the run's report.
        out: .csv, .npy or .txt.
        links: a new folder, with a folder of each class that holds links to its images.

    Returns:
        how many decisions of each kind, and `changed` labels.

    Raises:
        UserError: the review is of other images or labels than the run's, or damaged.
    """
    if out is not None:
        spare_inputs(out, [("review", path)])
        spare_sources(out, config.data)
    dataset = run_dataset(config)
    review = read_review(path, dataset.class_names)
    samples, classes = dataset.samples, len(dataset.class_names)
    if not dataset.is_of(review.data_sha256):
        raise UserError(
            f"review={path}: belongs to another dataset than that of data.name={config.data.name} in "
            f"data.root={config.data.root}: {dataset.other_than(review.data_sha256)}"
        )
    outside = review.index[(review.index < 0) | (review.index >= len(samples))]
    if len(outside):
        raise UserError(f"review={path}: index: got {outside[0]}, valid: 0 to {len(samples) - 1}")
    review = replace(review, index=_reviewed(review, samples, path))
    other = np.flatnonzero(samples.labels[review.index] != review.given)
    if len(other):
        i = other[0]
        raise UserError(
            f"review={path}: given: got {review.given[i]} for index {review.index[i]}, whose given label is "
            f"{samples.labels[review.index[i]]} in the run"
        )
    whole, test, rows = _in_reading_order(config, samples, classes)
    whole.labels[rows[review.index]] = review.label
    counts = Counter(review.decision)
    changed = int((review.label != review.given).sum())
    if links is not None:
        splits = {"": whole} if test is None else {"train": whole, "test": test}
        link_classes(links, Path(config.data.root), splits, dataset.class_names)
    notes = {
        "dataset": dataset.name,
        "classes": list(dataset.class_names),
        "review": {"data_sha256": review.data_sha256, "changed": changed, **counts},
        "name": "review",
        "rate": None,
        "real_rate": real_rate(whole.labels, whole.clean_labels),
        "seed": config.seed,
        "transition": None,
    }
    if out is not None:
        write_labels(out, whole.labels, notes, clean=whole.clean_labels, paths=whole.paths)
    return {**{name: counts[name] for name in DECISIONS}, "changed": changed}


def _reviewed(review: Review, samples: Split, file: Path) -> Ints:
    """Where the reviewed images are among the samples, (R,): by their names, for a run on a frozen network
    leaves out unreadable images, and the numbers on its page are without these."""
    if samples.paths is None:
        return review.index
    names = [as_text(path) for path in samples.paths]
    place, index = {name: i for i, name in enumerate(names)}, review.index.copy()
    for r, name in enumerate(review.path):
        if name and names[index[r]] != name:
            if name not in place:
                raise UserError(f"review={file}: path: the run has no image {brief(name)}")
            index[r] = place[name]
    return index


def _in_reading_order(
    config: Config, samples: Split, num_classes: int
) -> tuple[Split, Split | None, Ints]:
    """All training images as the dataset is read, before any is held out or left out, with the labels that
    the run was trained on.

    Returns:
        these (L), the test images that the dataset comes with, and rows (N,), where `samples` are among L.
    """
    card = load_card(config.data.name)
    read, _ = read_splits(card, config.data)
    whole, _ = with_labels(card, config.data, read.both, read.class_names)
    if samples.paths is None:  # only data.limit leaves out any, and noise is drawn for all
        whole, _ = with_noise(card, config.noise, config.seed, whole, num_classes)
        rows = np.arange(len(samples))
        if (whole.labels[rows] != samples.labels).any():
            raise UserError(
                f"data.limit={config.data.limit}: took images from all over the dataset; a review "
                "can be applied to a run on all of it"
            )
    else:
        assert whole.paths is not None
        places = {path: i for i, path in enumerate(whole.paths)}
        rows = np.array([places[path] for path in samples.paths], np.int64)
    labels = whole.labels.copy()
    labels[rows] = samples.labels
    return replace(whole, labels=labels), read.test, rows


def run(arguments: list[str]) -> int:
    """`apply-review` of `python -m noisybsd.data`: its arguments, without that word."""
    own: dict[str, str] = {}
    overrides = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in ("run", "review", "out", "links"):
            own[key] = value
        else:
            overrides.append(argument)
    for key in ("run", "review"):
        if not own.get(key):
            raise UserError(f"apply-review: {key}= is missing; --help says more")
    if not own.keys() & {"out", "links"}:
        raise UserError("apply-review: give out=FILE, links=FOLDER or both; --help says more")
    paths = {key: user_path(value, key) for key, value in own.items()}
    directory, out, links = paths["run"], paths.get("out"), paths.get("links")
    config = load_run_config(directory, overrides)
    counts = apply_review(config, paths["review"], out, links)
    told = ", ".join(f"{counts[name]} {name}" for name in DECISIONS)
    print(f"{told}; {counts['changed']} labels changed")
    single = ["data.annotators=[]"] if config.data.annotators else []

    def again(*settings: str) -> list[str]:
        """The run's configuration with what was said here, and with `settings` in place of some of it."""
        set_now = {setting.partition("=")[0] for setting in settings}
        said = [each for each in overrides if each.partition("=")[0] not in set_now]
        return [f"recipe={directory / 'config.yaml'}", *said, *settings, *single]

    if out is not None:
        _say_how_to_train(out, again(f"data.labels={out}"))
    of_files = load_card(config.data.name).layout == "own"
    if (
        links is not None and of_files and config.data.embeddings is None
    ):  # in the order of the manifest
        labels = (f"data.root={links}", "data.manifest=null", "data.labels=default")
        _say_how_to_train(links, again(*labels))
    return 0


def _say_how_to_train(place: Path, settings: list[str]) -> None:
    print(f"{shown(place)}: to train on these labels:")
    command = ["python", "-m", "noisybsd.train", *settings, "noise.name=none", "noise.rate=0"]
    print("  " + shown(shlex.join(command)))
