"""From a dataset's name to images and labels whose noise is known and recorded.

`load_dataset` is the one entry point of training, `load_evaluation` of further test sets; as a
command, `python -m noisybsd.data check|prepare|pack|noise NAME key=value …`.

Dimensions: N images, C channels, K classes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from noisybsd.data.cards import Card, load_card
from noisybsd.data.fingerprint import covered, hash_images
from noisybsd.data.label_files import labels_sha256
from noisybsd.data.labelling import known_clean, real_rate, with_labels, with_noise
from noisybsd.data.names import kinds
from noisybsd.data.readers.own import read_own_to_test
from noisybsd.data.readers.packed import is_packed
from noisybsd.data.readers.registry import EVALUATIONS
from noisybsd.data.reading import (
    check_fits_card,
    first_of,
    leave_out_missing,
    obtain_missing,
    read_splits,
    refuse_what_has_no_effect,
)
from noisybsd.data.splits import (
    Labels,
    Read,
    Split,
    calibration_rows,
    hold_out,
    image_size,
    labels_of,
    refuse_another_split,
    verified,
    wholly_held_out,
)
from noisybsd.data.votes import votes_sha256
from noisybsd.settings import DataConfig, NoiseConfig

__all__ = ["Dataset", "Evaluation", "Split", "load_dataset", "load_evaluation"]

log = logging.getLogger("noisybsd")


@dataclass(frozen=True)
class Dataset:
    """A dataset, ready to train on.

    Args:
        size: side of the network's input; image files are stored larger where views crop them.
        channels: C.
        mean, std: per channel, on the 0..1 scale.
        sha256: of training and test images and of the given labels, in their order; `notes` says what of
            the images it covers.
        notes: what a run's results say about the data; JSON-able.
        held_out: the test images with the labels given to them, where they were held out of the training
            images; `test` has clean labels where these are known.
        calibration: training images that are not trained on, to calibrate probabilities; data.calibration.
            These and `train` have `rows` then.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    notes: dict[str, Any]
    held_out: Split | None = None
    calibration: Split | None = None

    @property
    def judged(self) -> tuple[Split, ...]:
        """The splits whose labels are noisy: `train`, `calibration` and `held_out`, those there are."""
        splits = (self.train, self.calibration, self.held_out)
        return tuple(split for split in splits if split is not None)

    @property
    def order(self) -> npt.NDArray[np.int64]:
        """(N,): which image of `judged`, these in a row, is the i-th sample: in the order in which the
        training images were read, and then the held-out ones."""
        order = np.arange(sum(map(len, self.judged)))
        if self.calibration is not None:
            assert self.train.rows is not None and self.calibration.rows is not None
            rows = np.concatenate([self.train.rows, self.calibration.rows])
            order[: len(rows)] = np.argsort(rows)
        return order

    @property
    def samples(self) -> Split:
        """Labels and paths of the images of `judged`, in `order`; without the images."""
        return labels_of(*self.judged).take(self.order)

    def is_of(self, sha256: str) -> bool:
        """Whether these are the data that a run recorded by their hash."""
        return sha256 == self.sha256

    def other_than(self, sha256: str) -> str:
        """Says that these are not the data of that hash."""
        return f"sha256 {self.sha256[:12]}… now, {sha256[:12]}… then"


def load_dataset(data: DataConfig, noise: NoiseConfig, seed: int) -> Dataset:
    """Read a dataset, choose its labels and inject the synthetic noise asked for.

    Splits depend on no seed. Noise is drawn for the whole training set before data.limit applies,
    so that an image has the same label whatever the limit.

    Args:
        seed: of the noise, where noise.seed is not set.

    Raises:
        UserError: data that are missing, damaged or out of order, and what to do about it.
    """
    card = load_card(data.name)
    refuse_what_has_no_effect(card, data)
    read, official = read_splits(card, data)
    check_fits_card(read, card)
    _tell(read)
    test, problems, test_labels = read.test, list(read.problems), read.test_labels
    train, held_out, label_note = _labelled(card, data, read)
    train, sizes = leave_out_missing(train, data, problems)
    known_train, known_test = read.images_sha256 or (None, None)
    trained = hash_images(train.inputs, sizes, known_train)
    if test is not None or held_out is not None:
        refuse_another_split(data)
    if test is not None:
        test, sizes = leave_out_missing(test, data, problems)
        tested = hash_images(test.inputs, sizes, known_test)
    elif held_out is not None:
        tested = hash_images(held_out.inputs, [], known_test)
    else:
        train, held_out = hold_out(train, data)
        for line in wholly_held_out(train, held_out, read.class_names):
            log.warning("%s", line)
        tested = f"held out by path: {data.test_fraction} {data.folds} {data.fold}"
    if held_out is not None:
        test, test_labels = verified(held_out, "noisy")
    assert test is not None
    known = known_clean(train.clean_labels)
    train, noise_note = with_noise(card, noise, seed, train, len(read.class_names))
    if known is None and train.clean_labels is not None:
        known = "the given ones, before noise"
    if data.limit is not None:
        train = train.take(_first(len(train), data.limit, _in_order(read.train.labels)))
    if data.test_limit is not None:
        few = _first(len(test), data.test_limit, _in_order(test.labels))
        test, held_out = test.take(few), None if held_out is None else held_out.take(few)
    train, calibration, calibrated = train.without_unknown(), None, ""
    if data.calibration > 0:
        chosen = calibration_rows(train.labels, data.calibration)
        train = replace(train, rows=np.arange(len(train)))
        train, calibration = train.take(~chosen), train.take(chosen)
        calibrated = f" calibrated on {labels_sha256(calibration.labels)}"
    clean = train.clean_labels
    for line in first_of(problems):
        log.warning("left out: %s", line)
    return Dataset(
        name=card.name,
        class_names=read.class_names,
        train=train,
        test=test,
        size=read.size or image_size(card, data)[0],
        channels=card.channels,
        mean=card.mean,
        std=card.std,
        sha256=_fingerprint(f"{trained} {tested}{calibrated}", train),
        held_out=held_out,
        calibration=calibration,
        notes={
            "pixels_verified": official,
            "sha256_covers": f"{covered(train.inputs)}, of training and test images; the training labels"
            + " and votes" * (train.votes is not None),
            **label_note,
            "noise": {
                **noise_note,
                "real_rate": real_rate(train.labels, clean),
                "labels_sha256": labels_sha256(train.labels),
            },
            "clean_labels": known,
            "votes_per_image": None if train.votes is None else float(train.votes.sum(1).mean()),
            "test_labels": test_labels,
            "skipped_images": len(problems),
            "skipped": problems[:20],
            "left_out": dict(read.left_out),
            "notices": read.notices,
        },
    )


def _labelled(
    card: Card, data: DataConfig, read: Read
) -> tuple[Split, Split | None, dict[str, Any]]:
    """`with_labels` for the training images and those that a pack holds out; and its note."""
    n = len(read.train)
    whole, note = with_labels(card, data, read.both, read.class_names)

    def labelled(split: Split, rows: slice) -> Split:
        clean = None if whole.clean_labels is None else whole.clean_labels[rows]
        votes = None if whole.votes is None else whole.votes[rows]
        return replace(split, labels=whole.labels[rows], clean_labels=clean, votes=votes)

    held_out = None if read.held_out is None else labelled(read.held_out, slice(n, None))
    return labelled(read.train, slice(n)), held_out, note


def _tell(read: Read) -> None:
    """Say in the log how the files were read, and which of them are left out."""
    for line in read.notices:
        log.warning("%s", line)
    if read.left_out:
        log.warning("left out: %s", kinds(read.left_out))


@dataclass(frozen=True)
class Evaluation:
    """Test sets for a trained network.

    Args:
        size: side of the network's input.
        channels: C.
        sets: `corruption/severity` or `test`, and the images; read when asked for, since all of
            them together may not fit into memory.
    """

    name: str
    class_names: tuple[str, ...]
    size: int
    channels: int
    sets: Iterator[tuple[str, Split]]


def load_evaluation(data: DataConfig, class_names: tuple[str, ...] = ()) -> Evaluation:
    """Test sets for a trained network.

    Args:
        data: name: cifar10c, cifar100c, webvision_imagenet; own images, all of them where they are not
            split; or any dataset for its test split.
        class_names: the network's; own images need not have all of them.

    Raises:
        UserError: here or while iterating over the sets: data that are missing or damaged.
    """
    card = load_card(data.name)
    if card.layout == "own" and not is_packed(data):
        return _own_evaluation(card, data, class_names)
    if card.layout not in EVALUATIONS:
        found = load_dataset(data, NoiseConfig(), seed=0)
        if card.layout == "own":
            unused = f"{len(found.train):,} training images of the pack {data.root}"
            log.warning("not used: %s", unused)
        sets = iter([("test", found.test)])
        return Evaluation(found.name, found.class_names, found.size, found.channels, sets)
    refuse_what_has_no_effect(card, data)
    obtain_missing(card, data)
    return Evaluation(
        card.name,
        card.classes,
        image_size(card, data)[0],
        card.channels,
        ((name, _present(split, data)) for name, split in EVALUATIONS[card.layout](card, data)),
    )


def _own_evaluation(card: Card, data: DataConfig, class_names: tuple[str, ...]) -> Evaluation:
    if not card.classes:
        card = card.model_copy(update={"classes": class_names})
    read = read_own_to_test(card, data)
    _tell(read)
    problems = list(read.problems)
    split, _ = leave_out_missing(read.train, data, problems)
    return Evaluation(
        card.name,
        read.class_names,
        image_size(card, data)[0],
        card.channels,
        iter([("test", replace(split, skipped=problems))]),
    )


def _present(split: Split, data: DataConfig) -> Split:
    """A split without missing and empty files, which go into `skipped`, if data.on_error=skip."""
    problems: list[str] = []
    present, _ = leave_out_missing(split, data, problems)
    return replace(present, skipped=problems)


def _in_order(labels: Labels) -> bool:
    """Whether images come class by class, by the labels (N,) they come with, before other label sets and
    noise."""
    return bool((np.diff(labels) >= 0).all())


def _first(n: int, limit: int, in_order: bool) -> np.ndarray:
    """The first `limit` of n images; where they come class by class, evenly spaced ones."""
    if in_order:
        return np.linspace(0, n - 1, min(limit, n)).astype(np.int64)
    return np.arange(min(limit, n))


def _fingerprint(images_sha256: str, train: Split) -> str:
    votes = "" if train.votes is None else f" {votes_sha256(train.votes)}"
    text = f"{images_sha256} {labels_sha256(train.labels)}{votes}"
    return hashlib.sha256(text.encode()).hexdigest()
