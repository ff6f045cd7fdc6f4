"""From a dataset's name to images and labels whose noise is known and recorded.

`load_dataset` is the one entry point of training, `load_evaluation` of further test sets; as a
command, `python -m noisybsd.data check|prepare|pack|noise NAME key=value …`.

Dimensions: N images, C channels, K classes.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from noisybsd.data.cards import Card, load_card
from noisybsd.data.download import checksum, fetch
from noisybsd.data.fingerprint import covered, hash_images
from noisybsd.data.images import ImageFiles
from noisybsd.data.label_files import labels_sha256, read_description, read_labels, read_matrix
from noisybsd.data.names import UNKNOWN, ImageNames, as_text, kinds
from noisybsd.data.noise import NoisyLabels, inject
from noisybsd.data.readers.own import read_own_to_test
from noisybsd.data.readers.packed import is_packed, read_packed
from noisybsd.data.readers.registry import EVALUATIONS, LAYOUTS
from noisybsd.data.splits import (
    Labels,
    Read,
    Split,
    calibration_rows,
    check_labels,
    hold_out,
    image_size,
    labels_of,
    need,
    verified,
)
from noisybsd.data.votes import votes_sha256
from noisybsd.errors import UserError, did_you_mean
from noisybsd.settings import DataConfig, NoiseConfig

__all__ = ["Dataset", "Evaluation", "Split", "load_dataset", "load_evaluation"]

log = logging.getLogger("noisybsd")

ARRAYS = ("digits", "cifar", "cifar_c")  # layouts of images that are no files
NAMED = 10  # files that a message names; the others are counted


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
    _refuse_what_has_no_effect(card, data)
    read, official = read_splits(card, data)
    check_fits_card(read, card)
    _tell(read)
    test, problems, test_labels = read.test, list(read.problems), read.test_labels
    train, held_out, label_note = _labelled(card, data, read)
    train, sizes = leave_out_missing(train, data, problems)
    known_train, known_test = read.images_sha256 or (None, None)
    trained = hash_images(train.inputs, sizes, known_train)
    if data.folds is not None and not (test is None and held_out is None):
        raise UserError(
            f"data.folds={data.folds}: the data have a test split; leave data.folds out"
        )
    if test is not None:
        test, sizes = leave_out_missing(test, data, problems)
        tested = hash_images(test.inputs, sizes, known_test)
    elif held_out is not None:
        tested = hash_images(held_out.inputs, [], known_test)
    else:
        train, held_out = hold_out(train, data)
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
    for line in _first_of(problems):
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


def check_fits_card(read: Read, card: Card) -> None:
    """Refuse images and labels that are not what the card says, before they fail in a step."""
    num_classes = len(read.class_names)
    for name, split in (("training", read.train), ("test", read.test), ("test", read.held_out)):
        if split is None:
            continue
        source = f"{card.name}: its card has {num_classes} classes, but among the {name} images"
        check_labels(split.labels, num_classes, source)
        if split.clean_labels is not None:
            check_labels(
                split.clean_labels[split.clean_labels != UNKNOWN], num_classes, f"{source} clean"
            )
        if isinstance(split.images, ImageFiles):
            continue
        channels, side = split.images.shape[1], split.images.shape[-1]
        if channels != card.channels:
            raise UserError(
                f"{card.name}: the card has channels={card.channels}, the {name} images {channels}"
            )
        if read.size is None and side != card.size:
            raise UserError(f"{card.name}: the card has size={card.size}, the {name} images {side}")


def known_clean(clean: Labels | None) -> str | None:
    """What is known of clean labels (N,)."""
    if clean is None or (clean == UNKNOWN).all():
        return None
    known = int((clean != UNKNOWN).sum())
    return "known" if known == len(clean) else f"known for {known:,} of {len(clean):,} images"


def real_rate(labels: Labels, clean: Labels | None) -> float | None:
    """The share of labels (N,) that are wrong, among those whose clean ones are known."""
    if clean is None or (clean == UNKNOWN).all():
        return None
    return float((labels != clean)[clean != UNKNOWN].mean())


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
    _refuse_what_has_no_effect(card, data)
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


def read_splits(card: Card, data: DataConfig) -> tuple[Read, bool | None]:
    """Let the card's reader read; and say whether the bytes are the official ones (None: unknown)."""
    if is_packed(data):
        return read_packed(card, data), None
    if card.layout not in LAYOUTS:
        if card.layout in EVALUATIONS:
            raise UserError(
                f"data.name={card.name}: has test images only, for noisybsd.evaluate; "
                "there is nothing to train on"
            )
        raise UserError(
            f"{card.name}: layout: {did_you_mean(card.layout, [*LAYOUTS, *EVALUATIONS])}"
        )
    obtain_missing(card, data)
    verified = verify_images(card, data)
    return LAYOUTS[card.layout](card, data), verified


def _refuse_what_has_no_effect(card: Card, data: DataConfig) -> None:
    if data.manifest is not None and card.layout != "own":
        raise UserError(f"data.manifest={data.manifest}: goes with data.name=own, got {card.name}")
    if data.embeddings is not None and data.manifest is None:
        raise UserError(
            f"data.embeddings={data.embeddings}: goes with data.manifest=FILE, a table whose row i says "
            "the label of row i"
        )
    if data.annotators and data.manifest is None and data.labels in ("default", *card.labels):
        raise UserError(
            f"data.annotators=[{','.join(data.annotators)}]: are columns of a label file, data.labels=FILE, "
            "or of data.manifest=FILE, and neither is given"
        )
    if data.size is not None and card.layout in ARRAYS:
        raise UserError(f"data.size={data.size}: {card.name} has images of {card.size} pixels")


def obtain_missing(card: Card, data: DataConfig) -> None:
    """Download what data.labels and the images need and what is not in data.root."""
    root = Path(data.root)
    chosen = card.labels[data.labels].file if data.labels in card.labels else None
    label_files = {entry.file for entry in card.labels.values()}
    for item in card.downloads:
        if item.file in label_files and item.file != chosen:
            continue
        if not (root / item.makes).exists() and data.download:
            fetch(item, root)


def verify_images(card: Card, data: DataConfig) -> bool | None:
    """Compare the card's checksums with the image files; None where the card has none.

    Raises:
        UserError: a file is missing, or differs while data.verify is true.
    """
    label_files = {entry.file for entry in card.labels.values()}
    names = [name for name in card.checksums if name not in label_files]
    wrong = [name for name in names if not _official(card, data, name)]
    if wrong and data.verify:
        raise UserError(
            f"{Path(data.root) / wrong[0]}: not the official bytes ({len(wrong)} of {len(names)} "
            f"files differ). How to get {card.name}: {card.obtain.strip()}. "
            "Or data.verify=false: trains on these pixels, and the results say so"
        )
    return not wrong if names else None


def _official(card: Card, data: DataConfig, name: str) -> bool:
    algorithm, digest = card.checksums[name].split(":")
    return checksum(need(Path(data.root) / name, card), algorithm) == digest


def with_labels(
    card: Card, data: DataConfig, train: Split, class_names: tuple[str, ...]
) -> tuple[Split, dict[str, Any]]:
    """Put the labels that data.labels names in place, after a check that they are in order.

    Returns:
        the split, and a note for the results: label_set, what describes a label file, and whether
        clean labels beside the given ones prove that these are in the images' order.

    Raises:
        UserError: an unknown label set, a file that is not the official one, or labels whose clean
            counterparts are not the images' own.
    """
    num_classes, images = len(class_names), None
    if data.labels == "default":
        return train, {"label_set": "default", "published_rate": card.noise_rate}
    if data.labels in card.labels:
        entry = card.labels[data.labels]
        path = need(Path(data.root) / entry.file, card)
        if entry.file in card.checksums and not _official(card, data, entry.file):
            raise UserError(f"{path}: not the official file, its checksum differs: get it again")
        found = read_labels(path, num_classes, len(train), entry.key, entry.clean_key)
        if found.clean is None:
            raise UserError(f"{path}: has no entry {entry.clean_key}, which proves the order")
        note: dict[str, Any] = {"label_set": data.labels, "published_rate": entry.noise_rate}
    elif Path(data.labels).expanduser().is_file():
        if train.paths is not None:
            images = ImageNames(train.paths, data.root)
        found = read_labels(
            data.labels,
            num_classes,
            len(train),
            data.annotators,
            class_names=class_names,
            images=images,
            setting="data.annotators",
        )
        if found.by == "position":
            log.warning(
                "data.labels=%s names no images: label i is taken as that of training image i",
                data.labels,
            )
        about = read_description(data.labels)
        described = {key: (about or {}).get(key) for key in ("name", "rate", "seed")}
        note = {"label_set": data.labels, "label_file": described, "labels_matched_by": found.by}
        own = train.clean_labels
        if found.clean is None and about is None and found.by == "position" and own is not None:
            _check_better_than_chance(data, found.labels, own)
    else:
        options = did_you_mean(data.labels, ["default", *card.labels])
        missing = " (there is no such file)" if Path(data.labels).suffix else ""
        raise UserError(f"data.labels: {options}, or a label file's path{missing}")
    own, clean, both = train.clean_labels, found.clean, np.zeros(len(train), dtype=bool)
    if clean is not None and own is not None:
        both = (clean != UNKNOWN) & (own != UNKNOWN)
    if clean is not None and own is not None and both.any():
        _check_order(data, clean[both], own[both])
    note["order_proven"] = bool(both.any())
    if clean is not None and own is not None:
        clean = np.where(own != UNKNOWN, own, clean)
    clean = own if clean is None else clean
    return replace(train, labels=found.labels, clean_labels=clean, votes=found.votes), note


def _check_order(data: DataConfig, clean: Labels, own: Labels) -> None:
    """Refuse label files whose clean labels (N,) are not the images' own (N,)."""
    same = float((clean == own).mean())
    if same < 1:
        raise UserError(
            f"data.labels={data.labels}: its clean labels agree with the images' own for {same:.1%} "
            f"of {len(own)} images: labels and images are in different orders. CIFAR-N's .pt files go "
            "with data_batch_1 to 5 (torchvision's order); the images of TensorFlow Datasets, and the "
            "files named _ordered, have another order"
        )


def _check_better_than_chance(data: DataConfig, labels: Labels, own: Labels) -> None:
    """Refuse labels (N,) that agree with the images' own (N,) no more than in a random order."""
    labels, own = labels[own != UNKNOWN], own[own != UNKNOWN]
    if not len(own):
        return
    k = int(max(labels.max(), own.max())) + 1
    shares = [np.bincount(part, minlength=k) / len(own) for part in (labels, own)]
    chance = float(shares[0] @ shares[1])
    same = float((labels == own).mean())
    if same <= chance + 3 * math.sqrt(chance * (1 - chance) / len(own)):
        raise UserError(
            f"data.labels={data.labels}: agree with the images' own labels for {same:.1%} of "
            f"{len(own)} images, as they would by chance: probably they are in another order, such "
            "as that of TensorFlow Datasets. If they are not, a column clean_label (.csv) proves it"
        )


def with_noise(
    card: Card, noise: NoiseConfig, seed: int, train: Split, num_classes: int
) -> tuple[Split, dict[str, Any]]:
    """Inject noise.name; the labels before that count as the clean ones where none are known."""
    if noise.name == "none":
        if noise.file is not None:
            raise UserError(f"noise.file={noise.file}: goes with noise.name=matrix, got none")
        return train, {"name": "none", "rate": 0.0, "seed": None}
    noisy = draw_noise(card, noise, seed, train, num_classes)
    return replace(train, labels=noisy.labels, clean_labels=before_noise(train)), noisy.notes


def before_noise(train: Split) -> Labels:
    """The labels (N,) that count as clean beside synthetic noise: the clean ones, else the given ones."""
    if train.clean_labels is None:
        return train.labels
    return np.where(train.clean_labels == UNKNOWN, train.labels, train.clean_labels)


def draw_noise(
    card: Card, noise: NoiseConfig, seed: int, train: Split, num_classes: int
) -> NoisyLabels:
    """Noisy labels for a split that has no synthetic noise yet, by noise.name.

    Raises:
        UserError: see noise.inject; or the given labels are known to be noisy already.
    """
    if train.votes is not None:
        raise UserError(
            f"noise.name={noise.name}: the training images have several labels each, or soft ones, and "
            "synthetic noise is drawn for single labels; use noise.name=none noise.rate=0"
        )
    if (before_noise(train) != train.labels).any():
        raise UserError(
            f"noise.name={noise.name}: the training labels are noisy already; for these as they are, "
            "noise.name=none noise.rate=0; for synthetic noise, data.labels=default of a dataset whose "
            "labels are clean"
        )
    return inject(
        train.labels,
        noise.name,
        noise.rate,
        num_classes,
        seed if noise.seed is None else noise.seed,
        class_map=card.asymmetric_map,
        superclasses=card.coarse,
        features=_features(train) if noise.name == "instance" else None,
        matrix=None if noise.file is None else read_matrix(noise.file, num_classes),
    )


def _features(train: Split) -> np.ndarray:
    """Pixels as they are, flattened (N, C*S*S)."""
    if isinstance(train.images, ImageFiles):
        raise UserError("noise.name=instance: needs decoded images; run `noisybsd.data pack` first")
    if len(train.images) != len(train):  # labels_of_both
        raise UserError("noise.name=instance: cannot look at the images that this pack holds out")
    return train.images.flatten(1).numpy()


def _in_order(labels: Labels) -> bool:
    """Whether images come class by class, by the labels (N,) they come with, before other label sets and
    noise."""
    return bool((np.diff(labels) >= 0).all())


def _first(n: int, limit: int, in_order: bool) -> np.ndarray:
    """The first `limit` of n images; where they come class by class, evenly spaced ones."""
    if in_order:
        return np.linspace(0, n - 1, min(limit, n)).astype(np.int64)
    return np.arange(min(limit, n))


def leave_out_missing(
    split: Split, data: DataConfig, problems: list[str]
) -> tuple[Split, list[int]]:
    """Leave out files that are missing or empty, if data.on_error=skip, and add them to `problems`.

    Returns:
        what is left, and the bytes of its files, if it is in files.

    Raises:
        UserError: lists the first problems, if data.on_error=stop.
    """
    if not isinstance(split.inputs, ImageFiles):
        return split, []
    assert isinstance(split.images, ImageFiles) and split.paths is not None
    usable = np.zeros(len(split), dtype=bool)
    sizes = np.zeros(len(split), dtype=np.int64)
    for i, path in enumerate(split.paths):
        full = os.path.join(split.images.root, path)  # noqa: PTH118 (up to a million times)
        try:
            status = os.stat(full)  # noqa: PTH116
        except (OSError, ValueError) as error:  # a name may hold a NUL
            reason = error.strerror if isinstance(error, OSError) else str(error)
            problems.append(f"{as_text(full)}: {reason}")
            continue
        if not stat.S_ISREG(status.st_mode):
            problems.append(f"{as_text(full)}: is no file")
        elif status.st_size == 0:
            problems.append(f"{as_text(full)}: is empty (zero bytes)")
        else:
            usable[i], sizes[i] = True, status.st_size
    if problems and data.on_error == "stop":
        advice = "data.on_error=skip leaves such files out and counts them"
        raise UserError("\n".join([*_first_of(problems), advice]))
    if not usable.any():
        because = f": {problems[-1]}" if len(split) else ""
        raise UserError(f"data.root={data.root}: not one usable image of {len(split)}{because}")
    return split if usable.all() else split.take(usable), sizes[usable].tolist()


def _first_of(problems: list[str]) -> list[str]:
    more = [f"… and {len(problems) - NAMED} more"] if len(problems) > NAMED else []
    return problems[:NAMED] + more


def _fingerprint(images_sha256: str, train: Split) -> str:
    votes = "" if train.votes is None else f" {votes_sha256(train.votes)}"
    text = f"{images_sha256} {labels_sha256(train.labels)}{votes}"
    return hashlib.sha256(text.encode()).hexdigest()
