"""Datasets that list their image files, or sort them into folders of classes: Clothing1M and others.

Dimensions: K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

from noisybsd.data.cards import Card
from noisybsd.data.find import find_images
from noisybsd.data.label_readers import text_lines
from noisybsd.data.names import as_text
from noisybsd.data.splits import Read, Split, file_split, need, refuse_repeated
from noisybsd.errors import UserError, did_you_mean
from noisybsd.settings import DataConfig


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

    problems: list[str] = []
    left_out: Counter[str] = Counter()

    def split(folder: str) -> Split:
        found = find_images(need(Path(data.root) / folder, card))
        problems.extend(found.problems)
        left_out.update(found.left_out)
        labels = []
        for path in found.paths:
            first = PurePath(path).name.split("_")[0]
            if not first.isdecimal() or int(first) >= len(card.classes):
                raise UserError(
                    f"{as_text(Path(data.root) / folder / path)}: the name must start with a label, "
                    f"valid: 0_ to {len(card.classes) - 1}_"
                )
            labels.append(int(first))
        return file_split(card, data, [f"{folder}/{path}" for path in found.paths], labels)

    train, test = split("training"), split("testing")
    return Read(train, test, card.classes, problems=problems, left_out=left_out)


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


def read_test_folders(card: Card, data: DataConfig) -> Iterator[tuple[str, Split]]:
    """Test images in one folder per class, whose names card.folders lists in label order."""
    paths, labels = [], []
    for label, name in enumerate(card.folders):
        found = find_images(need(Path(data.root) / name, card)).paths
        if not found:
            raise UserError(f"{Path(data.root) / name}: no image in it")
        paths += [f"{name}/{path}" for path in found]
        labels += [label] * len(found)
    yield "test", file_split(card, data, paths, labels)
