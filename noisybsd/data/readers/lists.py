"""Readers of the folder layouts in which datasets come: a card and a root in, splits out.

A reader looks at files and labels only; label sets, noise, limits and hold-outs are data.py's. To add
a layout, write a reader and name it in LAYOUTS (training and test images) or EVALUATIONS (test
images only).

Pickles come from the network, so they must not run code: they are read with an allowlist of numpy's
array constructors.

Dimensions: N images, C channels, S side of a stored image, K classes.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet
import torch

from noisybsd.config import DataConfig
from noisybsd.data.cards import Card
from noisybsd.data.label_files import text_lines
from noisybsd.data.readers.folders import read_own
from noisybsd.data.splits import (
    Read,
    Split,
    check_labels,
    file_split,
    find_images,
    need,
    refuse_repeated,
    stratified_holdout,
)
from noisybsd.errors import UserError, did_you_mean

PACK = "pack.json"  # marks a folder that `python -m noisybsd.data pack` wrote


# --- arrays: digits, CIFAR ----------------------------------------------------------------------


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
        pixels, given = np.asarray(batch["data"]), np.asarray(batch[key])
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


# --- lists of image files: Clothing1M, WebVision, Food-101N, ANIMAL-10N -------------------------


def read_clothing1m(card: Card, data: DataConfig) -> Read:
    """Clothing1M: 1,000,000 noisy labels to train on, the clean test set; clean_train is not used.

    Takes the three layouts in use: the lists in root or in root/annotations; the images in
    root/images/0..9 or in root/0..9.
    """
    root = Path(data.root)
    lists = root / "annotations" if (root / "annotations").is_dir() else root
    folder = "images/" if (root / "images").is_dir() else ""

    def split(keys: str, labels: str) -> Split:
        label_of = dict(_pairs(need(lists / labels, card), len(card.classes)))
        listed = _lines(need(lists / keys, card))
        refuse_repeated(listed, lists / keys)
        unknown = [key for key in listed if key not in label_of]
        if unknown:
            raise UserError(
                f"{lists / keys}: {unknown[0]} has no label in {labels} ({len(unknown)} such keys)"
            )
        paths = [folder + key.removeprefix("images/") for key in listed]
        return file_split(card, data, paths, [label_of[key] for key in listed])

    train = split("noisy_train_key_list.txt", "noisy_label_kv.txt")
    test = split("clean_test_key_list.txt", "clean_label_kv.txt")
    return Read(train, test, card.classes)


def read_webvision(card: Card, data: DataConfig) -> Read:
    """WebVision 1.0: the images of its first K classes that came from Google, and its validation set."""
    root, num_classes = Path(data.root), len(card.classes)

    def split(name: str, folder: str) -> Split:
        path = need(root / "info" / name, card)
        pairs = [(key, label) for key, label in _pairs(path, 1000) if label < num_classes]
        refuse_repeated([key for key, _ in pairs], path)
        return file_split(
            card, data, [folder + key for key, _ in pairs], [label for _, label in pairs]
        )

    train = split("train_filelist_google.txt", "")
    test = split("val_filelist.txt", "val_images_256/")
    return Read(train, test, card.classes)


def read_food101n(card: Card, data: DataConfig) -> Read:
    """Food-101N to train on and Food-101's test images, each in its own folder as unpacked."""
    root, number = Path(data.root), {name: i for i, name in enumerate(card.classes)}
    release = "Food-101N_release"
    folder = next((f for f in ("images", "train") if (root / release / f).is_dir()), "images")

    def split(path: Path, folder: str, suffix: str, header: int) -> Split:
        keys = _lines(need(path, card))[header:]
        refuse_repeated(keys, path)
        classes = [key.split("/")[0] for key in keys]
        for key, name in zip(keys, classes, strict=True):
            if name not in number:
                raise UserError(f"{path}: {key}: {did_you_mean(name, number)}")
        paths = [f"{folder}/{key}{suffix}" for key in keys]
        return file_split(card, data, paths, [number[name] for name in classes])

    train = split(root / release / "meta/imagelist.tsv", f"{release}/{folder}", "", header=1)
    test = split(root / "food-101/meta/test.txt", "food-101/images", ".jpg", header=0)
    return Read(train, test, card.classes)


def read_animal10n(card: Card, data: DataConfig) -> Read:
    """ANIMAL-10N: training/ and testing/ with files named <label>_<number>.jpg."""

    def split(folder: str) -> tuple[Split, list[str]]:
        paths, problems = find_images(need(Path(data.root) / folder, card))
        labels = []
        for path in paths:
            first = PurePath(path).name.split("_")[0]
            if not first.isdecimal() or int(first) >= len(card.classes):
                raise UserError(
                    f"{Path(data.root) / folder / path}: the name must start with a label, "
                    f"valid: 0_ to {len(card.classes) - 1}_"
                )
            labels.append(int(first))
        return file_split(card, data, [f"{folder}/{path}" for path in paths], labels), problems

    (train, problems), (test, more) = split("training"), split("testing")
    return Read(train, test, card.classes, problems=problems + more)


def _lines(path: Path) -> list[str]:
    return [line for line in map(str.strip, text_lines(path)) if line]


def _pairs(path: Path, num_classes: int) -> Iterator[tuple[str, int]]:
    """Lines `key label`, apart by white space: Clothing1M's keys contain commas."""
    for line in _lines(path):
        key, _, label = line.replace("\t", " ").rpartition(" ")
        if not key or not label.isdecimal() or int(label) >= num_classes:
            raise UserError(
                f"{path}: line {line!r}: expected `key label`, label from 0 to {num_classes - 1}"
            )
        yield key.strip(), int(label)


# --- what `pack` wrote --------------------------------------------------------------------------


def read_packed(card: Card, data: DataConfig) -> Read:
    """Decoded images in one file per split, mapped into memory: see pack in datatools.py."""
    root = Path(data.root)
    try:
        about = json.loads((root / PACK).read_text("utf-8"))
        if about["card"] != card.name:
            raise UserError(f"{root / PACK}: holds {about['card']}, not data.name={card.name}")
        if data.size not in (None, about["size"]):
            raise UserError(f"data.size={data.size}: {root} was packed with size {about['size']}")
        splits = {name: _packed_split(root, name, about[name]) for name in about["splits"]}
        return Read(
            splits["train"],
            splits.get("test"),
            tuple(about["classes"]),
            about["test_labels"],
            about["problems"],
            about["train"]["images_sha256"],
            about["size"],
        )
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{root / PACK}: damaged: {error}; pack the images again") from None


def _packed_split(root: Path, name: str, about: Mapping[str, Any]) -> Split:
    # "c": pages are read when touched; torch wants memory that may be written, nothing reaches the file
    images = np.load(root / f"{name}_images.npy", mmap_mode="c", allow_pickle=False)
    table = pyarrow.parquet.read_table(root / f"{name}.parquet")
    if not len(images) == table.num_rows == about["count"]:
        raise ValueError(f"{name} has {len(images)} images and {table.num_rows} labels")
    # copies, because Arrow's own memory may not be written, at which torch warns
    labels = {key: table[key].to_numpy().copy() for key in table.column_names if key != "path"}
    return Split(
        torch.from_numpy(images),
        labels["label"],
        labels.get("clean_label"),
        table["path"].to_pylist(),
    )


# --- test images only ---------------------------------------------------------------------------

SEVERITIES = range(1, 6)


def read_cifar_c(card: Card, data: DataConfig) -> Iterator[tuple[str, Split]]:
    """CIFAR-10-C, CIFAR-100-C: for each corruption and severity `corruption/severity` and its images.

    A file holds the test images five times, from the weakest severity to the strongest.
    """
    folder = need(Path(data.root) / f"CIFAR-{len(card.classes)}-C", card)
    labels = _load_npy(need(folder / "labels.npy", card)).astype(np.int64)
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


def read_test_folders(card: Card, data: DataConfig) -> Iterator[tuple[str, Split]]:
    """Test images in one folder per class, whose names card.folders lists in label order."""
    paths, labels = [], []
    for label, name in enumerate(card.folders):
        found, _ = find_images(need(Path(data.root) / name, card))
        if not found:
            raise UserError(f"{Path(data.root) / name}: no image in it")
        paths += [f"{name}/{path}" for path in found]
        labels += [label] * len(found)
    yield "test", file_split(card, data, paths, labels)


def _load_npy(path: Path) -> npt.NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not readable as a numpy array: {error}") from None


LAYOUTS: dict[str, Callable[[Card, DataConfig], Read]] = {
    "digits": read_digits,
    "cifar": read_cifar,
    "clothing1m": read_clothing1m,
    "webvision": read_webvision,
    "food101n": read_food101n,
    "animal10n": read_animal10n,
    "own": read_own,
}

EVALUATIONS: dict[str, Callable[[Card, DataConfig], Iterator[tuple[str, Split]]]] = {
    "cifar_c": read_cifar_c,
    "test_folders": read_test_folders,
}
