"""Hashes that tell one set of images from another, cheap enough for the start of every run.

Dimensions: N images, C channels, S side of a stored image.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from noisybsd.data.images import ImageFiles, sample_of_file

SAMPLED = 2000  # image files, or images of a large array, whose content is hashed
WHOLE = 1 << 30  # bytes of an array up to which all of it is


def covered(images: torch.Tensor | ImageFiles) -> str:
    """What of images the hash covers, in words."""
    if isinstance(images, ImageFiles):
        return f"paths and sizes of all image files, the content of up to {SAMPLED:,} of them"
    return (
        f"the pixels of all images, of an array over {WHOLE >> 30} GiB those of {SAMPLED:,} images"
    )


def hash_images(images: torch.Tensor | ImageFiles, sizes: Sequence[int], known: str | None) -> str:
    """The SHA-256 of images (N,C,S,S) uint8 or embeddings (N,A,F), or of as many files of `sizes` bytes.

    Args:
        known: where a reader has looked already.
    """
    if isinstance(images, ImageFiles):
        return files_sha256(images.root, images.paths, sizes)
    return images_sha256(images) if known is None else known


def sampled(n: int) -> npt.NDArray[np.int64]:
    """Which of n images are hashed: all, or SAMPLED evenly spaced ones."""
    return np.linspace(0, n - 1, min(n, SAMPLED)).astype(np.int64)


def files_sha256(root: Path, paths: Sequence[str], sizes: Sequence[int]) -> str:
    """SHA-256 of the paths and sizes of files (N,), and of the content of the sampled ones."""
    names = hashlib.sha256()
    for path, size in zip(paths, sizes, strict=True):
        names.update(b"%s\0%d\n" % (os.fsencode(path), size))
    digest = hashlib.sha256(names.hexdigest().encode())
    for i in sampled(len(paths)).tolist():
        try:
            with open(os.path.join(root, paths[i]), "rb") as file:  # noqa: PTH118, PTH123
                digest.update(sample_of_file(file.fileno(), sizes[i]))
        except OSError as error:  # unreadable: decoding it says so, or leaves it out
            digest.update(f"{error.errno}".encode())
    return digest.hexdigest()


def images_sha256(images: torch.Tensor) -> str:
    """SHA-256 of the pixels (N,C,S,S) uint8: of all images, or of the sampled ones of a large array."""
    whole = images.numel() <= WHOLE
    digest = hashlib.sha256()
    for part in images.split(1024) if whole else (images[i] for i in sampled(len(images)).tolist()):
        digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()
