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
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from noisybsd.data.cards import Card, load_card
from noisybsd.data.download import checksum, fetch
from noisybsd.data.images import ImageFiles
from noisybsd.data.label_files import labels_sha256, read_description, read_labels, read_matrix
from noisybsd.data.noise import NoisyLabels, inject
from noisybsd.data.readers.packed import PACK, read_packed
from noisybsd.data.readers.registry import EVALUATIONS, LAYOUTS
from noisybsd.data.splits import Labels, Read, Split, hold_out, image_size, need
from noisybsd.errors import UserError, did_you_mean
from noisybsd.settings import DataConfig, NoiseConfig

__all__ = ["Dataset", "Evaluation", "Split", "load_dataset", "load_evaluation"]

log = logging.getLogger("noisybsd")

NAMED = 10  # files that a message names; the others are counted


@dataclass(frozen=True)
class Dataset:
    """A dataset, ready to train on.

    Args:
        size: side of the network's input; image files are stored larger where views crop them.
        channels: C.
        mean, std: per channel, on the 0..1 scale.
        sha256: of training images (of files: paths and sizes) and given labels, in their order.
        notes: what a run's results say about the data; JSON-able.
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
    read, verified = read_splits(card, data)
    train, test, problems = read.train, read.test, list(read.problems)
    train, label_note = with_labels(card, data, train, len(read.class_names))
    train, images_sha256 = leave_out_missing(train, data, problems)
    images_sha256 = read.images_sha256 or images_sha256 or _pixels_sha256(train)
    test_labels = read.test_labels
    if test is None:
        train, test, test_labels = hold_out(train, data.test_fraction)
    else:
        test, _ = leave_out_missing(test, data, problems)
    known = "known" if train.clean_labels is not None else None
    train, noise_note = with_noise(card, noise, seed, train, len(read.class_names))
    if known is None and train.clean_labels is not None:
        known = "the given ones, before noise"
    if data.limit is not None:
        train = train.take(_first(len(train), data.limit, _in_order(read.train.labels)))
    if data.test_limit is not None:
        test = test.take(_first(len(test), data.test_limit, _in_order(test.labels)))
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
        sha256=_fingerprint(images_sha256, train.labels),
        notes={
            "pixels_verified": verified,
            **label_note,
            "noise": {
                **noise_note,
                "real_rate": None if clean is None else float((train.labels != clean).mean()),
                "labels_sha256": labels_sha256(train.labels),
            },
            "clean_labels": known,
            "test_labels": test_labels,
            "skipped_images": len(problems),
            "skipped": problems[:20],
        },
    )


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


def load_evaluation(data: DataConfig) -> Evaluation:
    """Test sets for a trained network.

    Args:
        data: name: cifar10c, cifar100c, webvision_imagenet, or any dataset for its test split.

    Raises:
        UserError: here or while iterating over the sets: data that are missing or damaged.
    """
    card = load_card(data.name)
    if card.layout not in EVALUATIONS:
        found = load_dataset(data, NoiseConfig(), seed=0)
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


def _present(split: Split, data: DataConfig) -> Split:
    """A split without missing and empty files, which go into `skipped`, if data.on_error=skip."""
    problems: list[str] = []
    present, _ = leave_out_missing(split, data, problems)
    return replace(present, skipped=problems)


def read_splits(card: Card, data: DataConfig) -> tuple[Read, bool | None]:
    """Let the card's reader read; and say whether the bytes are the official ones (None: unknown)."""
    if (Path(data.root) / PACK).is_file():
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
    files = card.layout not in ("digits", "cifar", "cifar_c")
    if data.size is not None and not files:
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
    card: Card, data: DataConfig, train: Split, num_classes: int
) -> tuple[Split, dict[str, Any]]:
    """Put the labels that data.labels names in place, after a check that they are in order.

    Returns:
        the split, and a note for the results: label_set, what describes a label file, and whether
        clean labels beside the given ones prove that these are in the images' order.

    Raises:
        UserError: an unknown label set, a file that is not the official one, or labels whose clean
            counterparts are not the images' own.
    """
    if data.labels == "default":
        return train, {"label_set": "default", "published_rate": card.noise_rate}
    if data.labels in card.labels:
        entry = card.labels[data.labels]
        path = need(Path(data.root) / entry.file, card)
        if entry.file in card.checksums and not _official(card, data, entry.file):
            raise UserError(f"{path}: not the official file, its checksum differs: get it again")
        labels, clean = read_labels(path, num_classes, len(train), entry.key, entry.clean_key)
        if clean is None:
            raise UserError(f"{path}: has no entry {entry.clean_key}, which proves the order")
        note: dict[str, Any] = {"label_set": data.labels, "published_rate": entry.noise_rate}
    elif Path(data.labels).expanduser().is_file():
        labels, clean = read_labels(data.labels, num_classes, len(train))
        about = read_description(data.labels)
        described = {key: (about or {}).get(key) for key in ("name", "rate", "seed")}
        note = {"label_set": data.labels, "label_file": described}
        if clean is None and about is None and train.clean_labels is not None:
            _check_better_than_chance(data, labels, train.clean_labels)
    else:
        options = did_you_mean(data.labels, ["default", *card.labels])
        missing = " (there is no such file)" if Path(data.labels).suffix else ""
        raise UserError(f"data.labels: {options}, or a label file's path{missing}")
    if clean is not None and train.clean_labels is not None:
        _check_order(data, clean, train.clean_labels)
    note["order_proven"] = clean is not None and train.clean_labels is not None
    known = train.clean_labels if train.clean_labels is not None else clean
    return replace(train, labels=labels, clean_labels=known), note


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
    clean = train.labels if train.clean_labels is None else train.clean_labels
    return replace(train, labels=noisy.labels, clean_labels=clean), noisy.notes


def draw_noise(
    card: Card, noise: NoiseConfig, seed: int, train: Split, num_classes: int
) -> NoisyLabels:
    """Noisy labels for a split that has no synthetic noise yet, by noise.name.

    Raises:
        UserError: see noise.inject; or the given labels are known to be noisy already.
    """
    if train.clean_labels is not None and (train.clean_labels != train.labels).any():
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
        asymmetric_map=card.asymmetric_map,
        coarse=card.coarse,
        features=_features(train) if noise.name == "instance" else None,
        matrix=None if noise.file is None else read_matrix(noise.file, num_classes),
    )


def _features(train: Split) -> np.ndarray:
    """Pixels as they are, flattened (N, C*S*S)."""
    if isinstance(train.images, ImageFiles):
        raise UserError("noise.name=instance: needs decoded images; run `noisybsd.data pack` first")
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
) -> tuple[Split, str | None]:
    """Leave out files that are missing or empty, if data.on_error=skip, and add them to `problems`.

    Returns:
        what is left, and the SHA-256 of its files' paths and sizes (None: it is not in files).

    Raises:
        UserError: lists the first problems, if data.on_error=stop.
    """
    if not isinstance(split.images, ImageFiles):
        return split, None
    assert split.paths is not None
    digest = hashlib.sha256()
    usable = np.zeros(len(split), dtype=bool)
    for i, path in enumerate(split.paths):
        full = os.path.join(split.images.root, path)  # noqa: PTH118 (up to a million times)
        try:
            size = os.stat(full).st_size  # noqa: PTH116
        except OSError as error:
            problems.append(f"{full}: {error.strerror}")
            continue
        if size == 0:
            problems.append(f"{full}: is empty (zero bytes)")
            continue
        usable[i] = True
        digest.update(b"%s\0%d\n" % (os.fsencode(path), size))
    if problems and data.on_error == "stop":
        advice = "data.on_error=skip leaves such files out and counts them"
        raise UserError("\n".join([*_first_of(problems), advice]))
    if not usable.any():
        because = f": {problems[-1]}" if len(split) else ""
        raise UserError(f"data.root={data.root}: not one usable image of {len(split)}{because}")
    return split if usable.all() else split.take(usable), digest.hexdigest()


def _first_of(problems: list[str]) -> list[str]:
    more = [f"… and {len(problems) - NAMED} more"] if len(problems) > NAMED else []
    return problems[:NAMED] + more


def _pixels_sha256(split: Split) -> str:
    assert not isinstance(split.images, ImageFiles)
    return hashlib.sha256(split.images.contiguous().numpy().data).hexdigest()


def _fingerprint(images_sha256: str, labels: Labels) -> str:
    return hashlib.sha256(f"{images_sha256} {labels_sha256(labels)}".encode()).hexdigest()
