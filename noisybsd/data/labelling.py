"""Which labels the training images get: a set of the card's, a file of the user's, or synthetic noise.

Dimensions: N images, C channels, S side of a stored image, K classes.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from noisybsd.data.cards import Card
from noisybsd.data.images import ImageFiles
from noisybsd.data.label_files import read_description, read_labels
from noisybsd.data.names import UNKNOWN, ImageNames
from noisybsd.data.noise import NoisyLabels, inject
from noisybsd.data.reading import is_official
from noisybsd.data.splits import Labels, Split, need
from noisybsd.data.transition import read_matrix
from noisybsd.errors import UserError, did_you_mean
from noisybsd.files import spare_inputs
from noisybsd.settings import DataConfig, NoiseConfig

log = logging.getLogger("noisybsd")


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
        if entry.file in card.checksums and not is_official(card, data, entry.file):
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
    own, clean = train.clean_labels, found.clean
    both = np.zeros(len(train), dtype=bool)
    if clean is None:
        clean = own
    elif own is not None:
        both = (clean != UNKNOWN) & (own != UNKNOWN)
        if both.any():
            _check_order(data, clean[both], own[both])
        clean = np.where(own != UNKNOWN, own, clean)
    note["order_proven"] = bool(both.any())
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


def spare_sources(out: Path, data: DataConfig) -> None:
    """Refuse to write over the files that a dataset's labels are read from."""
    lists = () if data.manifest is None else (data.manifest, Path(data.root) / data.manifest)
    files = [("data.labels", data.labels), *(("data.manifest", path) for path in lists)]
    spare_inputs(out, [*files, ("data.embeddings", data.embeddings)])


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
