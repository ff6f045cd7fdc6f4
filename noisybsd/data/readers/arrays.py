"""Datasets in arrays: digits, CIFAR, CIFAR-C.

Pickles come from the network, so they must not run code: they are read with an allowlist of numpy's
array constructors.

Dimensions: N images, K classes.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from noisybsd.data.cards import Card
from noisybsd.data.splits import Read, Split, check_labels, need, stratified_holdout
from noisybsd.errors import UserError
from noisybsd.settings import DataConfig


def read_digits(card: Card, data: DataConfig) -> Read:
    """The 8x8 handwritten digits inside scikit-learn, split 80/20 the same in every run."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None])
    labels = digits.target.astype(np.int64)
    whole = Split(pixels, labels, labels.copy())
    held_out = stratified_holdout(labels, fraction=0.2)
    return Read(whole.take(~held_out), whole.take(held_out), card.classes)


_CIFAR = {  # classes: folder, training files, test files, key of the labels
    10: ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"], "labels"),
    100: ("cifar-100-python", ["train"], ["test"], "fine_labels"),
}


def read_cifar(card: Card, data: DataConfig) -> Read:
    """CIFAR-10 and CIFAR-100 in their Python layout, images in the official order."""
    if len(card.classes) not in _CIFAR:
        raise UserError(
            f"{card.name}: classes: layout cifar has {' or '.join(map(str, _CIFAR))} of them, "
            f"got {len(card.classes)}"
        )
    folder, train_files, test_files, key = _CIFAR[len(card.classes)]
    root, num_classes = Path(data.root) / folder, len(card.classes)
    train, test = (
        _cifar_batches([need(root / name, card) for name in names], key, num_classes)
        for names in (train_files, test_files)
    )
    return Read(train, test, card.classes)


def _cifar_batches(paths: list[Path], key: str, num_classes: int) -> Split:
    images, labels = [], []
    for path in paths:
        batch = load_pickle(path)
        missing = {"data", key} - batch.keys()
        if missing:
            raise UserError(f"{path}: lacks {', '.join(sorted(missing))}")
        pixels, given = _array(path, "data", batch["data"]), _array(path, key, batch[key])
        _refuse_other_than_labels(given, f"{path}: {key}")
        if pixels.dtype != np.uint8 or pixels.shape != (len(given), 3072):
            raise UserError(
                f"{path}: data is {pixels.dtype} of shape {pixels.shape}, "
                f"expected uint8 ({len(given)}, 3072) for its {len(given)} labels"
            )
        check_labels(given, num_classes, path)
        images.append(pixels.reshape(-1, 3, 32, 32))
        labels.append(given.astype(np.int64))
    given = np.concatenate(labels)
    return Split(torch.from_numpy(np.concatenate(images)), given, given.copy())


def _refuse_other_than_labels(labels: npt.NDArray[Any], source: str) -> None:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise UserError(
            f"{source}: got {labels.dtype} of shape {labels.shape}, expected integers of shape (N,)"
        )


def _array(path: Path, key: str, value: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(value)
    except (ValueError, TypeError):  # lists of unequal lengths
        raise UserError(f"{path}: {key} is a {type(value).__name__} that is no array") from None


def _latin1(text: str, encoding: str) -> bytes:
    """Stands for _codecs.encode, with which pickle protocol 2 writes the bytes of an array."""
    return text.encode("latin1")


_reconstruct = np._core.multiarray._reconstruct  # type: ignore[attr-defined]


_PICKLE_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads builtin containers and numpy arrays, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLE_GLOBALS:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which could run code")
        return _PICKLE_GLOBALS[module, name]


def load_pickle(path: Path) -> dict[str, Any]:
    """Read a pickled dict of arrays, lists and numbers without running code from it.

    Raises:
        UserError: names the file: missing, damaged, or asking for more than arrays.
    """
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{path}: not a readable CIFAR batch: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__}, expected a dict")
    return content


SEVERITIES = range(1, 6)


def read_cifar_c(card: Card, data: DataConfig) -> Iterator[tuple[str, Split]]:
    """CIFAR-10-C, CIFAR-100-C: for each corruption and severity `corruption/severity` and its images.

    A file holds the test images five times, from the weakest severity to the strongest.
    """
    folder = need(Path(data.root) / f"CIFAR-{len(card.classes)}-C", card)
    labels = _load_npy(need(folder / "labels.npy", card))
    _refuse_other_than_labels(labels, str(folder / "labels.npy"))
    labels = labels.astype(np.int64)
    check_labels(labels, len(card.classes), folder / "labels.npy")
    if len(labels) % len(SEVERITIES):
        raise UserError(
            f"{folder / 'labels.npy'}: got {len(labels)} labels, valid: a multiple of "
            f"{len(SEVERITIES)}, the test images at each severity"
        )
    paths = [need(folder / f"{corruption}.npy", card) for corruption in card.corruptions]
    for corruption, path in zip(card.corruptions, paths, strict=True):
        images = _load_npy(path)
        if images.dtype != np.uint8 or images.shape != (len(labels), 32, 32, 3):
            raise UserError(
                f"{path}: holds {images.dtype} of shape {images.shape}, "
                f"expected uint8 ({len(labels)}, 32, 32, 3)"
            )
        parts = zip(
            np.split(images, len(SEVERITIES)), np.split(labels, len(SEVERITIES)), strict=True
        )
        for severity, (pixels, given) in zip(SEVERITIES, parts, strict=True):
            tensor = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
            yield f"{corruption}/{severity}", Split(tensor, given, given.copy())


def _load_npy(path: Path) -> npt.NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not readable as a numpy array: {error}") from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path}: holds several arrays, expected one")
    return array
