"""Readers of the folder layouts in which datasets come: card and root in, splits out.

Shapes: N images, C channels, S side. Readers look at files and labels; noise, limits and hold-outs
are data.py's. Pickles and .pt files come from the network, so neither may run code: both are read
with an allowlist of numpy's array constructors.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch

from noisybsd.cards import Card
from noisybsd.config import DataConfig
from noisybsd.errors import UserError

if TYPE_CHECKING:
    from noisybsd.images import ImageFiles


@dataclass(frozen=True)
class Split:
    """Images with the labels given to them.

    Args:
        images: uint8 (N,C,S,S), or image files that decode to that.
        labels: int64 (N,), the given labels.
        clean_labels: int64 (N,), benchmarks only: for metrics, never for training.
        paths: the image files, relative to the data's root, where there are such.
    """

    images: torch.Tensor | ImageFiles
    labels: np.ndarray
    clean_labels: np.ndarray | None
    paths: list[str] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Read:
    """What a reader found. Without a test split, data.py holds one out of the training split."""

    train: Split
    test: Split | None
    class_names: tuple[str, ...]
    notes: dict[str, Any] = field(default_factory=dict)


def stratified_holdout(labels: np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
    """Choose a share of every class, the same on every platform and version.

    Args:
        labels: int64 (N,).
        fraction: share of each class to choose; a class keeps at least one unchosen image.

    Returns:
        bool (N,), True where chosen.
    """
    keys = np.random.Philox(seed).random_raw(len(labels))
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        chosen[members[np.argsort(keys[members], kind="stable")[:count]]] = True
    return chosen


def read_digits(card: Card, data: DataConfig) -> Read:
    """The 8x8 handwritten digits inside scikit-learn: nothing to download."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    held_out = stratified_holdout(labels, fraction=0.2)
    splits = [
        Split(torch.from_numpy(pixels[part]), labels[part], labels[part].copy())
        for part in (~held_out, held_out)
    ]
    return Read(*splits, class_names=card.classes)


# --- CIFAR --------------------------------------------------------------------------------------

_PICKLE_GLOBALS: dict[tuple[str, str], Any] = {
    (module, name): value
    for name, value in {
        "_reconstruct": np._core.multiarray._reconstruct,
        "ndarray": np.ndarray,
        "dtype": np.dtype,
    }.items()
    for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads builtin containers and numpy arrays, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if (module, name) not in _PICKLE_GLOBALS:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which is not an array")
        return _PICKLE_GLOBALS[module, name]


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes an array's bytes in pickle protocol 2."""
    return text.encode("latin1")


def load_pickle(path: Path) -> dict[str, Any]:
    """Read a pickled dict of arrays without running code from it.

    Raises:
        UserError: names the file, whether it is missing, damaged or asks for more than arrays.
    """
    with _opened(path) as file:
        try:
            content = _ArrayUnpickler(file, encoding="latin1").load()
        except Exception as error:  # a damaged pickle can raise nearly anything
            raise UserError(f"{path}: not a readable CIFAR batch: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__}, expected a dict")
    return content


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


_CIFAR = {  # classes: folder, training files, test files, key of the labels
    10: ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"], "labels"),
    100: ("cifar-100-python", ["train"], ["test"], "fine_labels"),
}


def read_cifar(card: Card, data: DataConfig) -> Read:
    """CIFAR-10 and CIFAR-100 in their Python layout, images in the official order."""
    folder, train, test, key = _CIFAR[len(card.classes)]
    splits = [_read_cifar_batches(Path(data.root) / folder, files, key) for files in (train, test)]
    for files, split in zip((train, test), splits, strict=True):
        check_labels(split.labels, len(card.classes), f"{Path(data.root) / folder / files[0]}")
    return Read(*splits, class_names=card.classes)


def _read_cifar_batches(folder: Path, files: list[str], key: str) -> Split:
    images, labels = [], []
    for name in files:
        batch = load_pickle(folder / name)
        missing = {"data", key} - batch.keys()
        if missing:
            raise UserError(f"{folder / name}: lacks {', '.join(sorted(missing))}")
        pixels, given = np.asarray(batch["data"]), np.asarray(batch[key], dtype=np.int64)
        if pixels.dtype != np.uint8 or pixels.shape != (len(given), 3072):
            raise UserError(
                f"{folder / name}: data is {pixels.dtype} {pixels.shape}, "
                f"expected uint8 ({len(given)}, 3072) for its {len(given)} labels"
            )
        images.append(pixels.reshape(-1, 3, 32, 32))
        labels.append(given)
    given = np.concatenate(labels)
    return Split(torch.from_numpy(np.concatenate(images)), given, given.copy())


def check_labels(labels: np.ndarray, num_classes: int, source: str) -> None:
    """Refuse labels (N,) outside 0..num_classes-1, naming the first offender and its source."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UserError(
            f"{source}: label {labels[wrong[0]]} of image {wrong[0]} is out of range "
            f"0..{num_classes - 1} ({len(wrong)} such labels)"
        )


LAYOUTS: dict[str, Callable[[Card, DataConfig], Read]] = {
    "digits": read_digits,
    "cifar": read_cifar,
}
