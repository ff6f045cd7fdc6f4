"""Miniature datasets on disk, in every layout, with real JPEG and PNG files."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from noisybsd.data.dataset import Dataset, load_dataset
from noisybsd.files import resource_dir
from noisybsd.settings import DataConfig, NoiseConfig


def load(name: str | Path, root: Path, noise: Any = None, seed: int = 0, **data: Any) -> Dataset:
    """load_dataset with keys of the section data, and those of noise in a dict."""
    section = DataConfig(**{"name": str(name), "root": str(root), "download": False, **data})
    return load_dataset(section, NoiseConfig(**(noise or {})), seed)


def card(folder: Path, base: str, **changes: Any) -> Path:
    """A copy of a shipped card with other entries; None removes one."""
    content = yaml.safe_load((resource_dir("datasets") / f"{base}.yaml").read_text("utf-8"))
    content = {key: value for key, value in (content | changes).items() if value is not None}
    path = folder / f"{base}.yaml"
    path.write_text(yaml.safe_dump(content), "utf-8")
    return path


def picture(path: Path, number: int = 0, size: tuple[int, int] = (12, 10)) -> None:
    """An image file of one grey, which tells its number (0..255)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 95} if path.suffix in (".jpg", ".jpeg", ".JPEG") else {}
    Image.new("RGB", size, (number, number, number)).save(path, **options)


def number_of(image: torch.Tensor) -> int:
    """The number that `picture` gave an image (C,H,W)."""
    return round(float(image[0].float().mean()))


def cifar_labels(n: int, num_classes: int, seed: int) -> np.ndarray:
    """(n,) labels in no regular order, every class among them if n allows."""
    return np.random.default_rng(seed).permutation(np.arange(n) % num_classes)


def cifar10(root: Path, per_batch: int = 20) -> np.ndarray:
    """CIFAR-10's Python layout; image i of the training set is all i % 251. Returns its labels."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    labels = cifar_labels(per_batch * 6, 10, seed=1)
    for k, name in enumerate(names):
        part = np.arange(per_batch * k, per_batch * (k + 1))
        pixels = np.repeat((part % 251).astype(np.uint8)[:, None], 3072, axis=1)
        batch = {"data": pixels, "labels": labels[part].tolist(), "batch_label": name}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return labels[: 5 * per_batch]


def cifar100(root: Path, n: int = 200) -> np.ndarray:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    labels = cifar_labels(2 * n, 100, seed=2)
    for name, part in (("train", slice(n)), ("test", slice(n, None))):
        pixels = np.zeros((n, 3072), np.uint8)
        batch = {"data": pixels, "fine_labels": labels[part].tolist(), "coarse_labels": [0] * n}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=4))
    return labels[:n]


def human_labels(path: Path, clean: np.ndarray, num_classes: int = 10) -> np.ndarray:
    """A CIFAR-N label file for images with these labels (N,); a quarter of `worse_label` is wrong."""
    worse = clean.copy()
    worse[::4] = (worse[::4] + 1) % num_classes
    torch.save({"clean_label": clean, "worse_label": worse, "noisy_label": worse}, path)
    return worse


def clothing1m(root: Path, layout: str = "images", n: int = 28) -> list[tuple[str, int]]:
    """One of the three layouts: images, flat or annotations. Returns training keys and labels."""
    lists = root / "annotations" if layout == "annotations" else root
    lists.mkdir(parents=True, exist_ok=True)
    keys = [f"images/{i % 10}/{i:02d}/{i}234,{i}567.jpg" for i in range(n + 14)]
    labels = [i % 14 for i in range(n + 14)]
    for i, key in enumerate(keys):
        picture(root / (key.removeprefix("images/") if layout == "flat" else key), i)
    pairs = list(zip(keys, labels, strict=True))
    train, test = pairs[:n], pairs[n:]
    lines(lists / "noisy_train_key_list.txt", (key for key, _ in train))
    lines(lists / "clean_test_key_list.txt", (key for key, _ in test))
    lines(lists / "noisy_label_kv.txt", (f"{key} {label}" for key, label in reversed(train)))
    lines(lists / "clean_label_kv.txt", (f"{key} {label}" for key, label in test))
    return train


def webvision(root: Path) -> None:
    """Four training images, one of them of class 50, and two for validation."""
    train = [("google/q0001/a.jpg", 0), ("google/q0002/b.jpg", 1), ("google/q0050/c.jpg", 49)]
    test = [("val1.jpg", 0), ("val2.jpg", 49)]
    for i, (name, _) in enumerate(train):
        picture(root / name, i)
    for i, (name, _) in enumerate(test):
        picture(root / "val_images_256" / name, 10 + i)
    (root / "info").mkdir()
    train.append(("google/q0051/not_there.jpg", 50))
    for name, pairs in (("train_filelist_google.txt", train), ("val_filelist.txt", test)):
        lines(root / "info" / name, (f"{key} {label}" for key, label in pairs))


def food101n(root: Path, folder: str = "images") -> None:
    release, food = root / "Food-101N_release", root / "food-101"
    train = ["apple_pie/1.jpg", "waffles/2.jpg", "sushi/3.jpg"]
    test = ["waffles/10", "apple_pie/11"]
    for i, key in enumerate(train):
        picture(release / folder / key, i)
    for i, key in enumerate(test):
        picture(food / "images" / f"{key}.jpg", 10 + i)
    (release / "meta").mkdir()
    (food / "meta").mkdir()
    lines(release / "meta/imagelist.tsv", ["class_name/key", *train])
    lines(food / "meta/test.txt", test)


def animal10n(root: Path, n: int = 20) -> None:
    for i in range(n):
        picture(root / "training" / f"{i % 10}_{i}.jpg", i)
    for i in range(10):
        picture(root / "testing" / f"{i}_{i}.jpg", 100 + i)


def folders(root: Path, classes: Sequence[str] = ("cat", "dog"), n: int = 10) -> None:
    """A folder per class with n images each, JPEG and PNG by turns; numbers count through."""
    for c, name in enumerate(classes):
        for i in range(n):
            picture(root / name / f"{i:03d}{'.jpg' if i % 2 else '.png'}", c * n + i)


def cifar10_c(root: Path, corruptions: Sequence[str], n: int = 4) -> np.ndarray:
    """n test images at 5 severities; pixels of severity s (1..5) of corruption c are 10c + s, but
    200, 201, 202 at the right end of the first row."""
    folder = root / "CIFAR-10-C"
    folder.mkdir(parents=True)
    labels = np.arange(n, dtype=np.uint8)
    np.save(folder / "labels.npy", np.tile(labels, 5))
    for c, name in enumerate(corruptions):
        severity = np.repeat(np.arange(1, 6), n).astype(np.uint8)
        pixels = np.tile((10 * c + severity)[:, None, None, None], (1, 32, 32, 3))
        pixels[:, 0, -1] = [200, 201, 202]
        np.save(folder / f"{name}.npy", pixels)
    return labels


def lines(path: Path, content: Any) -> Path:
    path.write_text("\n".join(content) + "\n", "utf-8")
    return path
