"""Readers of the folder layouts in which datasets come: a card and a root in, splits out.

A reader looks at files and labels only; label sets and noise are labelling.py's, limits and hold-outs
dataset.py's. To add a layout, write a reader and name it in LAYOUTS (training and test images) or
EVALUATIONS (test images only).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from noisybsd.data.cards import Card
from noisybsd.data.readers.arrays import read_cifar, read_cifar_c, read_digits
from noisybsd.data.readers.lists import (
    read_animal10n,
    read_clothing1m,
    read_food101n,
    read_test_folders,
    read_webvision,
)
from noisybsd.data.readers.own import read_own
from noisybsd.data.splits import Read, Split
from noisybsd.settings import DataConfig

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
