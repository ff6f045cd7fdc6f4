"""From a dataset's name to training and test images with labels whose noise is known and recorded.

Shapes: N images, K classes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from noisybsd.cards import Card, LabelSet, load_card
from noisybsd.config import DataConfig, NoiseConfig
from noisybsd.errors import UserError, did_you_mean
from noisybsd.layouts import LAYOUTS, Split, check_labels

__all__ = ["Dataset", "Split", "load_dataset"]


@dataclass(frozen=True)
class Dataset:
    """A dataset, ready to train on.

    Args:
        size: side of the network's input; channels: of the images.
        mean, std: per channel, on the 0..1 scale.
        sha256: of training images (files: paths and sizes), given labels and their order.
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
    """Read a dataset, put its labels in place and inject the synthetic noise asked for.

    Args:
        seed: the run's; the noise's where noise.seed is not set. Splits do not depend on it.

    Raises:
        UserError: missing, damaged or misordered data, with what to do about it.
    """
    card = load_card(data.name)
    verified = verify_files(card, data)
    read = LAYOUTS[card.layout](card, data)
    train, test = read.train, read.test
    assert test is not None
    train, label_set = _with_labels(card, data, train)
    train, noise_note = _with_noise(noise, seed, train, len(read.class_names))
    if data.limit is not None:
        train = take(train, limited(train.labels, data.limit))
    noise_note["real_rate"] = _noise_rate(train)
    return Dataset(
        name=card.name,
        class_names=read.class_names,
        train=train,
        test=test,
        size=card.size,
        channels=card.channels,
        mean=card.mean,
        std=card.std,
        sha256=fingerprint(train),
        notes={
            "pixels_verified": verified,
            "label_set": label_set,
            "noise": noise_note,
            "test_labels": "clean",
            "skipped_images": 0,
            **read.notes,
        },
    )


def verify_files(card: Card, data: DataConfig) -> bool | None:
    """Compare the card's checksums with the files; None where the card has none.

    Raises:
        UserError: a file is missing, or differs while data.verify is true.
    """
    names = [name for name in card.checksums if name not in {s.file for s in card.labels.values()}]
    wrong = [name for name in names if not _matches(Path(data.root) / name, card.checksums[name])]
    if wrong and data.verify:
        raise UserError(
            f"{Path(data.root) / wrong[0]}: not the official bytes ({len(wrong)} of {len(names)} "
            f"files differ); {card.obtain.strip()}\n"
            "data.verify=false trains on them as they are, and the results say so"
        )
    return not wrong if names else None


def _matches(path: Path, checksum: str) -> bool:
    algorithm, expected = checksum.split(":")
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest() == expected
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _with_labels(card: Card, data: DataConfig, train: Split) -> tuple[Split, str]:
    """Replace the labels in the files by the label set that data.labels names."""
    name = card.default_labels if data.labels == "default" else data.labels
    if name == "default":
        return train, name
    if name not in card.labels:
        raise UserError(f"data.labels: {did_you_mean(name, ['default', *card.labels])}")
    labels, clean = _read_label_set(card.labels[name], card, Path(data.root))
    check_labels(labels, len(card.classes), f"data.labels={name}")
    assert train.clean_labels is not None
    if len(clean) != len(train) or (clean != train.clean_labels).any():
        same = (clean == train.clean_labels).mean() if len(clean) == len(train) else 0.0
        raise UserError(
            f"data.labels={name}: its clean labels agree with the images' own for {same:.1%} of "
            f"{len(train)} images, so the images are in another order than the labels. "
            "TensorFlow Datasets' copy is in such an order; the labels go with data_batch_1..5"
        )
    return replace(train, labels=labels), name


def _read_label_set(entry: LabelSet, card: Card, root: Path) -> tuple[np.ndarray, np.ndarray]:
    import _codecs

    path = root / entry.file
    if entry.file in card.checksums and not _matches(path, card.checksums[entry.file]):
        raise UserError(f"{path}: not the official file (its checksum differs); download it again")
    allowed = [
        np._core.multiarray._reconstruct,
        (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        np.dtypes.Int64DType,
        _codecs.encode,
    ]
    with torch.serialization.safe_globals(allowed):
        content = torch.load(path, weights_only=True)
    for key in (entry.key, entry.clean_key):
        if key not in content:
            raise UserError(f"{path}: {did_you_mean(key, content)}")
    return np.asarray(content[entry.key]), np.asarray(content[entry.clean_key])


def _with_noise(
    noise: NoiseConfig, seed: int, train: Split, num_classes: int
) -> tuple[Split, dict[str, Any]]:
    note: dict[str, Any] = {"name": noise.name, "rate": noise.rate, "seed": None}
    if noise.name != "none":
        raise NotImplementedError
    return train, {**note, "labels_sha256": hashlib.sha256(train.labels.tobytes()).hexdigest()}


def _noise_rate(train: Split) -> float | None:
    if train.clean_labels is None:
        return None
    return float((train.labels != train.clean_labels).mean())


def limited(labels: np.ndarray, limit: int) -> np.ndarray:
    """Indices of the first `limit` images; evenly spaced ones where images are sorted by class."""
    if limit > len(labels):
        raise UserError(f"data.limit={limit}: there are {len(labels)} training images")
    if (np.diff(labels) >= 0).all():
        return np.linspace(0, len(labels) - 1, limit).astype(np.int64)
    return np.arange(limit)


def take(split: Split, index: np.ndarray) -> Split:
    """The part of a split at index (M,)."""
    assert isinstance(split.images, torch.Tensor)
    return Split(
        split.images[torch.from_numpy(index)],
        split.labels[index],
        None if split.clean_labels is None else split.clean_labels[index],
        None if split.paths is None else [split.paths[i] for i in index],
    )


def fingerprint(train: Split) -> str:
    """SHA-256 over the training images and given labels, in order."""
    assert isinstance(train.images, torch.Tensor)
    digest = hashlib.sha256(train.images.contiguous().numpy().data)
    digest.update(np.ascontiguousarray(train.labels).data)
    return digest.hexdigest()
