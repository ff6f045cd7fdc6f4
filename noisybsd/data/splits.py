"""Splits of a dataset, and what all readers share: files, labels, hold-outs.

Dimensions: N images, C channels, S side of a stored image, K classes.
"""

from __future__ import annotations

import hashlib
import math
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from noisybsd.data.cards import Card
from noisybsd.data.images import ImageFiles
from noisybsd.data.names import UNKNOWN, examples
from noisybsd.data.votes import Labels, Votes
from noisybsd.errors import UserError
from noisybsd.settings import DataConfig


@dataclass(frozen=True)
class Split:
    """Images with the labels given to them.

    Args:
        images: uint8 (N,C,S,S), or image files that decode to that.
        labels: int64 (N,), the given labels.
        clean_labels: int64 (N,), where they are known: for metrics, never for training. UNKNOWN where
            nobody has verified the label of an image.
        paths: N image files relative to data.root, where the images come from files.
        skipped: files found unreadable when they were decoded, each with the reason.
        embeddings: float16 (N,A,F), features of A views of each image, the image itself first: what a
            network with a frozen backbone is given in the images' place.
        votes: float32 (N,K), see data/votes.py; None: every image has one label. Only to train on.
        rows: int64 (N,), where each image stands among the training images as they were read, for two
            splits that were one; None: not known.
    """

    images: torch.Tensor | ImageFiles
    labels: Labels
    clean_labels: Labels | None
    paths: list[str] | None = None
    skipped: list[str] = field(default_factory=list)
    embeddings: torch.Tensor | None = None
    votes: Votes | None = None
    rows: npt.NDArray[np.int64] | None = None

    @property
    def inputs(self) -> torch.Tensor | ImageFiles:
        """What the network is given: the embeddings, or else the images."""
        return self.images if self.embeddings is None else self.embeddings

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: npt.NDArray[Any]) -> Split:
        """The images at index (M,), or where it is True (N,)."""
        index = np.arange(len(self))[index]
        if isinstance(self.images, ImageFiles):
            images: torch.Tensor | ImageFiles = self.images[index]
        else:
            images = self.images[torch.from_numpy(index)]
        return Split(
            images,
            self.labels[index],
            None if self.clean_labels is None else self.clean_labels[index],
            None if self.paths is None else [self.paths[i] for i in index],
            embeddings=None if self.embeddings is None else self.embeddings[index],
            votes=None if self.votes is None else self.votes[index],
            rows=None if self.rows is None else self.rows[index],
        )

    def without_unknown(self) -> Split:
        """The same, without clean labels where not one is known."""
        clean = self.clean_labels
        some = clean is not None and (clean != UNKNOWN).any()
        return self if some else replace(self, clean_labels=None)


@dataclass(frozen=True)
class Read:
    """What a reader found.

    Args:
        test: None where the data have no test split; see hold_out.
        held_out: the test split of a pack, where it was held out of the training images, with the labels
            given to it; `test` is None then.
        test_labels: what is known of its labels: clean, partly verified, noisy or unverified.
        problems: entries that had to be left out, each with its reason.
        images_sha256: of the training and the test images, where the reader knows it.
        size: side of the network's input, where the data fix it.
        left_out: how many files are no images or are not used, by what they are.
        notices: what a person should know of how the files were read, a sentence each.
    """

    train: Split
    test: Split | None
    class_names: tuple[str, ...]
    test_labels: str = "clean"
    problems: list[str] = field(default_factory=list)
    images_sha256: tuple[str, str] | None = None
    size: int | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    notices: list[str] = field(default_factory=list)
    held_out: Split | None = None

    @property
    def both(self) -> Split:
        """The training images, followed by those held out of them, with all that is known of their labels."""
        return self.train if self.held_out is None else labels_of(self.train, self.held_out)


def image_size(card: Card, data: DataConfig) -> tuple[int, int]:
    """Side of the network's input, and the side at which image files are stored before cropping."""
    size = data.size or card.size
    return size, round(size * (card.stored_size or card.size) / card.size)


def file_split(
    card: Card, data: DataConfig, paths: list[str], labels: Sequence[int] | Labels
) -> Split:
    """A split of image files, relative to data.root; clean where the card says so."""
    given = np.asarray(labels, dtype=np.int64)
    size, stored = image_size(card, data)
    images = ImageFiles(paths, data.root, stored, card.channels, least=size)
    return Split(images, given, given.copy() if card.clean else None, paths)


class Missing(UserError):
    """Data that are not there, and how to get them."""

    def __init__(self, path: Path, card: Card):
        super().__init__(
            f"{path}: not there; data.root=FOLDER says where the data are. {how_to_get(card)}"
        )
        self.path = path


def how_to_get(card: Card) -> str:
    """Where to get the data of a card; of own images, in what form they are to be there."""
    what = "What belongs there" if card.layout == "own" else f"How to get {card.name}"
    return f"{what}: {card.obtain.strip()}"


def need(path: Path, card: Card) -> Path:
    """`path`, if it is there.

    Raises:
        Missing: it is not.
    """
    if not path.exists():
        raise Missing(path, card)
    return path


def refuse_repeated(names: Iterable[str], source: object) -> None:
    """Refuse a name that stands twice in `source`."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{source}: {name} is listed twice")
        seen.add(name)


def check_labels(labels: Labels, num_classes: int, source: object) -> None:
    """Refuse labels (N,) outside 0..num_classes-1, naming the first and where it comes from."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UserError(
            f"{source}: label {labels[wrong[0]]} of image {wrong[0]} is out of range, "
            f"valid: 0 to {num_classes - 1} ({len(wrong)} such labels)"
        )


def stratified_holdout(labels: Labels, fraction: float, seed: int = 0) -> npt.NDArray[np.bool_]:
    """Choose a share of every class, the same on every machine and with every version of numpy.

    Args:
        labels: int64 (N,).
        fraction: the share; of a class at least one image is chosen, and at least one is not. Of a
            single image, none is chosen.

    Returns:
        (N,), True where chosen.
    """
    keys = np.random.Philox(key=seed).random_raw(len(labels))
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        chosen[members[np.argsort(keys[members], kind="stable")[:count]]] = True
    return chosen


def calibration_rows(labels: Labels, share: float) -> npt.NDArray[np.bool_]:
    """Which training images (N,) data.calibration holds out, by the given labels (N,)."""
    return stratified_holdout(labels, share, seed=1)  # 0 chooses test images


def holdout_by_path(
    paths: Sequence[str], until: float, start: float = 0.0
) -> npt.NDArray[np.bool_]:
    """Choose a share of the images by their paths alone, so that other labels leave the choice as it is.

    The images of a folder are put in the order of their paths' hashes, and a part of that order is chosen.
    The ends of the part are rounded by a hash of the folder, so that many small folders have their share
    too. Shares that meet choose no image twice and leave none out.

    Args:
        paths: N, relative to data.root.
        until, start: where in each folder's order the part ends and starts, in [0, 1].

    Returns:
        (N,), True where chosen.
    """
    folders: dict[str, list[int]] = {}
    for i in sorted(range(len(paths)), key=lambda i: _hash(paths[i])):
        folders.setdefault(posixpath.dirname(paths[i]), []).append(i)
    chosen = np.zeros(len(paths), dtype=bool)
    for folder, members in folders.items():
        rounding = int.from_bytes(_hash(folder)[:6]) / 2**48
        first, last = (math.floor(at * len(members) + rounding) for at in (start, until))
        chosen[members[first:last]] = True
    return chosen


def _hash(name: str) -> bytes:
    return hashlib.sha256(os.fsencode(name)).digest()


def refuse_another_split(data: DataConfig) -> None:
    """Refuse to hold out a share of data that have a test split."""
    for key in ("folds", "test_fraction"):
        value = getattr(data, key)
        if value != DataConfig.model_fields[key].default:
            raise UserError(f"data.{key}={value}: the data have a test split; leave data.{key} out")


def hold_out(train: Split, data: DataConfig) -> tuple[Split, Split]:
    """Split off a test split, the same in every run and whatever the labels.

    Returns:
        what remains to train on; and what is held out, with the labels given to it.

    Raises:
        UserError: no image would be left on one side.
    """
    assert train.paths is not None
    start, until, what = 0.0, data.test_fraction, f"data.test_fraction={data.test_fraction}"
    if data.folds is not None:
        start, until = data.fold / data.folds, (data.fold + 1) / data.folds
        what = f"data.folds={data.folds}"
    chosen = holdout_by_path(train.paths, until, start)
    if chosen.all() or not chosen.any():
        raise UserError(
            f"no test split, and of {len(train)} images {what} holds out {int(chosen.sum())}: use another "
            "share, or name the test images (docs/data.md says how)"
        )
    return train.take(~chosen), train.take(chosen)


def wholly_held_out(train: Split, held_out: Split, class_names: Sequence[str]) -> list[str]:
    """A sentence that names the classes without an image to train on; nothing if there is no such class."""
    classes = [
        class_names[k] for k in sorted({*held_out.labels.tolist()} - {*train.labels.tolist()})
    ]
    if not classes:
        return []
    return [
        f"no image to train on is left of {examples(classes)}, since all are held out to test on: add "
        "images, or name the test images (docs/data.md says how)"
    ]


def labels_of(*splits: Split) -> Split:
    """The labels and paths of splits in a row, without their images."""
    clean = [
        np.full(len(each), UNKNOWN) if each.clean_labels is None else each.clean_labels
        for each in splits
    ]
    votes = [each.votes for each in splits if each.votes is not None]
    return Split(
        torch.empty(sum(map(len, splits)), 0),
        np.concatenate([each.labels for each in splits]),
        np.concatenate(clean),
        [path for each in splits for path in each.paths or ()] or None,
        votes=np.concatenate(votes) if len(votes) == len(splits) else None,
    ).without_unknown()


def verified(test: Split, otherwise: str) -> tuple[Split, str]:
    """A test split with its clean labels in place of the given ones, and what its labels are then.

    Args:
        otherwise: what they are where no clean label is known.
    """
    test = replace(test.without_unknown(), votes=None)
    clean = test.clean_labels
    if clean is None:
        return test, otherwise
    known = clean != UNKNOWN
    labels = np.where(known, clean, test.labels)
    return replace(test, labels=labels), "clean" if known.all() else "partly verified"
