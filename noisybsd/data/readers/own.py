"""Anyone's own images: listed in a manifest, or in a folder per class."""

from __future__ import annotations

from noisybsd.data.cards import Card
from noisybsd.data.readers.folders import read_folders, read_folders_to_test
from noisybsd.data.readers.manifest import read_manifest, read_manifest_to_test
from noisybsd.data.splits import Read
from noisybsd.settings import DataConfig


def read_own(card: Card, data: DataConfig) -> Read:
    """Images to train on, and to test on where they are told apart."""
    return read_manifest(card, data) if data.manifest else read_folders(card, data)


def read_own_to_test(card: Card, data: DataConfig) -> Read:
    """Images to test a trained network on, as the split `train` of what is read."""
    return read_manifest_to_test(card, data) if data.manifest else read_folders_to_test(card, data)
