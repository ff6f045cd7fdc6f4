"""Decisions on labels from a report's page, and the label file that follows from them.

Dimensions: N training samples, R reviewed ones, L images of the dataset as it is read.
"""

from __future__ import annotations

import csv
import io
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from noisybsd.config import Config
from noisybsd.data.cards import load_card
from noisybsd.data.dataset import (
    load_dataset,
    read_splits,
    real_rate,
    with_labels,
    with_noise,
)
from noisybsd.data.label_files import write_labels
from noisybsd.data.splits import Split
from noisybsd.engine.saved import MAY_DIFFER, load_run_config
from noisybsd.errors import UserError, command, shown
from noisybsd.files import read_text, user_path
from noisybsd.report.findings import Ints

DECISIONS = ("wrong", "right", "unsure")


@dataclass(frozen=True)
class Review:
    """Decisions from a report's page, of one dataset.

    Args:
        index: (R,) reviewed samples, each once.
        given: (R,) their given labels.
        label: (R,) the labels they should have; those given where the decision is not `wrong`.
        decision: R of DECISIONS.
    """

    index: Ints
    given: Ints
    label: Ints
    decision: list[str]
    data_sha256: str


def read_review(path: Path) -> Review:
    """Read the CSV that a report's page downloads.

    Raises:
        UserError: names the file, the line and what is valid.
    """
    text = read_text(path, f"review={path}")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        lines = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UserError(f"review={path}: line {reader.line_num}: {error}") from None
    needed = ("index", "given", "label", "decision", "data_sha256")
    missing = [name for name in needed if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"review={path}: has no column {missing[0]}; valid: {', '.join(needed)}")
    rows: dict[int, tuple[int, int, str]] = {}
    hashes = set()
    for number, row in lines:
        place = f"review={path}: line {number}"
        try:
            index, given, label = (int(row[name]) for name in needed[:3])
        except (TypeError, ValueError):
            raise UserError(f"{place}: index, given and label must be integers") from None
        if row["decision"] not in DECISIONS:
            raise UserError(
                f"{place}: decision: got {row['decision']!r}, valid: {', '.join(DECISIONS)}"
            )
        if index in rows:
            raise UserError(f"{place}: index {index} is in an earlier line already")
        rows[index] = given, label if row["decision"] == "wrong" else given, row["decision"]
        hashes.add(row["data_sha256"])
    if not rows:
        raise UserError(f"review={path}: holds no decisions")
    if len(hashes) > 1:
        raise UserError(f"review={path}: holds decisions on {len(hashes)} different datasets")
    given_labels, labels, decisions = zip(*rows.values(), strict=True)
    return Review(
        np.array(list(rows)),
        np.array(given_labels),
        np.array(labels),
        list(decisions),
        hashes.pop(),
    )


def apply_review(config: Config, path: Path, out: Path) -> dict[str, int]:
    """Write the labels that the run `config` was trained on, corrected by a review, to `out`.

    The file has a label for every training image in the order in which the dataset is read, those
    held out for testing included, so that `data.labels=OUT` with `noise.name=none` trains on it.

    Args:
        path: the CSV downloaded from the run's report.
        out: .csv, .npy or .txt.

    Returns:
        how many decisions of each kind, and `changed` labels.

    Raises:
        UserError: the review is of other images or labels than the run's, or damaged.
    """
    review = read_review(path)
    dataset = load_dataset(config.data, config.noise, config.seed)
    train, classes = dataset.train, len(dataset.class_names)
    if not dataset.is_of(review.data_sha256):
        raise UserError(
            f"review={path}: belongs to another dataset: it is about images and labels of sha256 "
            f"{review.data_sha256[:12]}…, those of data.name={config.data.name} in "
            f"data.root={config.data.root} have {dataset.sha256[:12]}…"
        )
    for name, values, count in (
        ("index", review.index, len(train)),
        ("label", review.label, classes),
    ):
        outside = values[(values < 0) | (values >= count)]
        if len(outside):
            raise UserError(f"review={path}: {name}: got {outside[0]}, valid: 0 to {count - 1}")
    other = np.flatnonzero(train.labels[review.index] != review.given)
    if len(other):
        i = other[0]
        raise UserError(
            f"review={path}: given: got {review.given[i]} for index {review.index[i]}, whose given label is "
            f"{train.labels[review.index[i]]} in the run"
        )
    labels, rows, clean = _in_reading_order(config, train, classes)
    labels[rows[review.index]] = review.label
    counts = Counter(review.decision)
    changed = int((review.label != review.given).sum())
    notes = {
        "dataset": dataset.name,
        "classes": list(dataset.class_names),
        "review": {"data_sha256": review.data_sha256, "changed": changed, **counts},
        "name": "review",
        "rate": None,
        "real_rate": real_rate(labels, clean),
        "seed": config.seed,
        "transition": None,
    }
    write_labels(out, labels, notes, clean=clean)
    return {**{name: counts[name] for name in DECISIONS}, "changed": changed}


def _in_reading_order(
    config: Config, train: Split, num_classes: int
) -> tuple[Ints, Ints, Ints | None]:
    """The labels of all training images as the dataset is read, before any is held out or left out.

    Returns:
        labels (L,); rows (N,), where the images of `train` are among them; clean labels (L,) or None.
    """
    card = load_card(config.data.name)
    read, _ = read_splits(card, config.data)
    whole, _ = with_labels(card, config.data, read.train, read.class_names)
    if train.paths is None:  # only data.limit leaves out any, and noise is drawn for all
        whole, _ = with_noise(card, config.noise, config.seed, whole, num_classes)
        rows = np.arange(len(train))
        if (whole.labels[rows] != train.labels).any():
            raise UserError(
                f"data.limit={config.data.limit}: took images from all over the dataset; a review "
                "can be applied to a run on all of it"
            )
    else:
        assert whole.paths is not None
        places = {path: i for i, path in enumerate(whole.paths)}
        rows = np.array([places[path] for path in train.paths], np.int64)
    labels = whole.labels.copy()
    labels[rows] = train.labels
    return labels, rows, whole.clean_labels


USAGE = f"""\
usage: python -m noisybsd.data apply-review run=DIR review=FILE out=FILE [key=value …]

Correct the labels that the run in DIR was trained on by the decisions FILE, downloaded from the run's
report.html, and write them to out=FILE (.csv, .npy or .txt), to train on with data.labels=FILE. `wrong`
takes the decision's label; `right` and `unsure` leave the given one. A review of other images or
labels than the run's is refused.

keys that may differ from the run's own: {", ".join(MAY_DIFFER)}
"""


@command
def main(arguments: list[str]) -> int:
    """`apply-review` of `python -m noisybsd.data`: its arguments, without that word."""
    if not arguments or {"-h", "--help", "help"} & set(arguments):
        print(USAGE, end="")
        return 0 if arguments else 2
    own: dict[str, str] = {}
    overrides = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in ("run", "review", "out"):
            own[key] = value
        else:
            overrides.append(argument)
    for key in ("run", "review", "out"):
        if not own.get(key):
            raise UserError(f"apply-review: {key}= is missing; --help says more")
    directory, review, out = (user_path(own[key], key) for key in ("run", "review", "out"))
    config = load_run_config(directory, overrides)
    counts = apply_review(config, review, out)
    told = ", ".join(f"{counts[name]} {name}" for name in DECISIONS)
    print(f"{told}; {counts['changed']} labels changed\n{shown(out)}: to train on these labels:")
    again = [f"recipe={directory / 'config.yaml'}", f"data.labels={out}", "noise.name=none"]
    print("  " + shown(shlex.join(["python", "-m", "noisybsd.train", *again, "noise.rate=0"])))
    return 0
