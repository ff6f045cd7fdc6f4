"""Images that are there more than once: identical ones, by a hash of their decoded pixels.

Dimensions: N images, C channels, S side of a stored image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from noisybsd.data.images import ImageFiles
from noisybsd.data.names import as_text
from noisybsd.data.splits import Split
from noisybsd.errors import counted

SIDE = 8  # pixels of a thumbnail


@dataclass
class Looks:
    """What images look like, in little.

    Args:
        hashes: N of 16 bytes, the same for images of the same pixels and for no others; None where an
            image is unreadable.
        thumbnails: (N,64) float16, the grey values of 8x8 pixels; NaN where an image is unreadable.
    """

    hashes: list[bytes | None]
    thumbnails: npt.NDArray[np.float16]

    @classmethod
    def unknown(cls, n: int) -> Looks:
        return cls([None] * n, np.full((n, SIDE**2), np.nan, np.float16))

    def note(self, rows: Sequence[int], images: Tensor) -> None:
        """Note what images (B,C,S,S) uint8 look like, those in `rows` (B,)."""
        grey = adaptive_avg_pool2d(images.float().mean(dim=1), SIDE).flatten(1)
        self.thumbnails[list(rows)] = grey.cpu().numpy()
        for i, image in zip(rows, images.cpu().contiguous().numpy(), strict=True):
            self.hashes[i] = hashlib.blake2b(image.data, digest_size=16).digest()

    def forget(self, rows: Iterable[int]) -> None:
        """Images that are unreadable."""
        for i in rows:
            self.hashes[i] = None
            self.thumbnails[i] = np.nan


class LookedAtFiles(ImageFiles):
    """Image files that note what every image looks like as it is decoded.

    Args:
        files: N of them.
    """

    def __init__(self, files: ImageFiles):
        super().__init__(files.paths, files.root, files.size, files.channels, files.least)
        self.looks = Looks.unknown(len(self))

    def decode(self, i: int) -> Tensor:
        image = super().decode(i)
        self.looks.note([i], image[None])
        return image


def looks_of(images: Tensor | ImageFiles) -> Looks:
    """What images look like: (N,C,S,S) uint8 on any device, or files, once they are decoded."""
    if isinstance(images, LookedAtFiles):
        return images.looks
    assert isinstance(images, Tensor)
    looks, start = Looks.unknown(len(images)), 0
    for part in images.split(1024):
        looks.note(range(start, start + len(part)), part)
        start += len(part)
    return looks


@dataclass(frozen=True)
class Member:
    """One of several identical images: image `index` of the split train or test."""

    split: str
    index: int


def identical(hashes: Mapping[str, Sequence[bytes | None]]) -> list[list[Member]]:
    """Groups of identical images within and across splits, in the order in which they first appear.

    Args:
        hashes: split: the hashes of its images (N,), None where one is unreadable.
    """
    first: dict[bytes, Member] = {}
    groups: dict[bytes, list[Member]] = {}
    for split, each in hashes.items():
        for i, digest in enumerate(each):
            if digest is None:
                continue
            member = Member(split, i)
            if digest in first:
                groups.setdefault(digest, [first[digest]]).append(member)
            else:
                first[digest] = member
    return list(groups.values())


def describe(
    groups: Sequence[list[Member]], splits: Mapping[str, Split], class_names: Sequence[str]
) -> Iterator[str]:
    """A sentence each on what there is of: copies, copies with different labels, copies across splits."""
    if not groups:
        return

    def named(member: Member) -> str:
        split = splits[member.split]
        name = f"{member.split} image {member.index}"
        if split.paths is not None:
            name = as_text(split.paths[member.index])
        return f"{name} ({class_names[split.labels[member.index]]})"

    def told(chosen: Sequence[list[Member]], most: int = 3) -> str:
        shown = [" = ".join(map(named, group[:3])) for group in chosen[:most]]
        more = f"; and {len(chosen) - most:,} more" if len(chosen) > most else ""
        return "; ".join(shown) + more

    def labels(group: list[Member]) -> set[int]:
        return {int(splits[member.split].labels[member.index]) for member in group}

    total = sum(map(len, groups))
    images = counted(len(groups), "image is", "images are")
    yield f"{images} there more than once, {total:,} in all: {told(groups)}"
    if differing := [group for group in groups if len(labels(group)) > 1]:
        these = counted(len(differing), "of these has", "of these have")
        yield f"{these} different labels: {told(differing)}"
    if across := [group for group in groups if len({member.split for member in group}) > 1]:
        both = (
            "of these is both a training and a test image",
            "of these are both training and test images",
        )
        yield f"{counted(len(across), *both)}: {told(across)}"
