"""Images that are there more than once: identical ones, by a hash of their decoded pixels.

Dimensions: N images, C channels, S side of a stored image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from noisybsd.data.images import ImageFiles
from noisybsd.data.names import as_text
from noisybsd.data.splits import Split


def pixel_hash(image: Tensor) -> bytes:
    """16 bytes that are the same for images (C,S,S) uint8 of the same pixels, and for no others."""
    return hashlib.blake2b(image.cpu().contiguous().numpy().data, digest_size=16).digest()


def pixel_hashes(images: Tensor) -> list[bytes]:
    """The hashes of images (N,C,S,S) uint8, on any device."""
    return [pixel_hash(image) for part in images.split(1024) for image in part.cpu()]


class HashedFiles(ImageFiles):
    """Image files that note the hash of every image as it is decoded.

    Args:
        files: N of them.

    Attributes:
        hashes: (N,) filled by `decode`; None where an image was not decoded, or is unreadable.
    """

    def __init__(self, files: ImageFiles):
        super().__init__(files.paths, files.root, files.size, files.channels)
        self.hashes: list[bytes | None] = [None] * len(self)

    def decode(self, i: int) -> Tensor:
        image = super().decode(i)
        self.hashes[i] = pixel_hash(image)
        return image


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
    groups: Iterable[list[Member]], splits: Mapping[str, Split], class_names: Sequence[str]
) -> Iterator[str]:
    """A sentence each on what there is of: copies, copies with different labels, copies across splits."""
    groups = list(groups)
    if not groups:
        return

    def named(member: Member) -> str:
        split = splits[member.split]
        name = f"{member.split} image {member.index}"
        if split.paths is not None:
            name = as_text(split.paths[member.index])
        return f"{name} ({class_names[split.labels[member.index]]})"

    def told(chosen: list[list[Member]], most: int = 3) -> str:
        shown = [" = ".join(map(named, group[:3])) for group in chosen[:most]]
        more = f"; and {len(chosen) - most:,} more" if len(chosen) > most else ""
        return "; ".join(shown) + more

    def labels(group: list[Member]) -> set[int]:
        return {int(splits[member.split].labels[member.index]) for member in group}

    total = sum(map(len, groups))
    yield f"{len(groups):,} images are there more than once, {total:,} in all: {told(groups)}"
    if differing := [group for group in groups if len(labels(group)) > 1]:
        yield f"{len(differing):,} of these have different labels: {told(differing)}"
    if across := [group for group in groups if len({member.split for member in group}) > 1]:
        yield f"{len(across):,} of these are both training and test images: {told(across)}"


def hashes_of(images: Tensor | ImageFiles) -> list[bytes | None]:
    """The hashes of images; those of files are decoded for it, all of them."""
    if isinstance(images, torch.Tensor):
        return list(pixel_hashes(images))
    files = HashedFiles(images)
    for _ in files.decode_many(range(len(files))):
        pass
    return files.hashes
