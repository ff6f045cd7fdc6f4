"""Images that are there more than once: identical ones, and ones that differ by little.

Identical images are known by a hash of their pixels, which collect.py notes. Of images that differ by
little, such as a photograph saved twice, the thumbnails are neighbours: a bank of these is searched, and
the nearest pairs are compared pixel by pixel.

Dimensions: N images of the label table, C channels, S side of a stored image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d, normalize

from noisybsd.errors import counted
from noisybsd.models.bank import FeatureBank
from noisybsd.report.findings import Bools, Findings, Floats, Ints
from noisybsd.report.pictures import Pictures

CANDIDATES = 2000  # pairs of neighbours whose pixels are compared, those of the largest cosine
NEAREST = 3  # neighbours of a thumbnail that are candidates
NEAR = 0.98  # cosine of two thumbnails, less their means, from which they are
EXACT = 20_000  # thumbnails up to which every neighbour is found
SIDE = 16  # pixels to which images are reduced to be compared
ALIKE = 0.99  # correlation of these pixels from which two images nearly are the same
FLAT = 2.0  # standard deviation, of 0 to 255, below which an image shows nothing to compare

Pair = tuple[int, int, float]  # two images, the lower index first, and their cosine


@dataclass(frozen=True)
class Duplicates:
    """Images that are there more than once.

    Args:
        identical: groups of images of the same pixels, each from two.
        in_test: (N,) bool, training images that are test images too.
        near: pairs of images that nearly are the same, with the cosine of their thumbnails.
        looked_at: how many pairs were compared to find these.
    """

    identical: list[list[int]]
    in_test: Bools
    near: list[Pair]
    looked_at: int


def find_duplicates(findings: Findings, images: Pictures | None) -> Duplicates:
    """What there is more than once.

    Args:
        images: of the N samples; None: nearly identical ones are not looked for.
    """
    first = findings.table["identical_to"].to_pylist()
    groups: dict[int, list[int]] = {}
    for i, other in enumerate(first):
        if other is not None:
            groups.setdefault(other, []).append(i)
    in_test = findings.table["in_test"].to_numpy()
    pairs = [] if images is None else _candidates(findings.arrays["thumbnails"], first)
    near = pairs and _alike(images, pairs)
    return Duplicates(list(groups.values()), in_test, near, len(pairs))


def _candidates(thumbnails: Floats, first: list[int | None]) -> list[Pair]:
    """Pairs of images that are not identical and whose thumbnails (N,64) are near to each other."""
    vectors = torch.from_numpy(thumbnails.astype(np.float32))
    vectors -= vectors.mean(dim=1, keepdim=True)
    seen = (vectors.std(dim=1) >= FLAT).nonzero()[:, 0]  # NaN is not
    if len(seen) < 2:
        return []
    bank = FeatureBank(len(vectors), vectors.shape[1])
    bank.write(seen, normalize(vectors[seen], dim=1))
    engine = "ivf" if len(seen) > EXACT else "exact"
    found = bank.search(min(NEAREST, len(seen) - 1, len(vectors) - 1), engine=engine)
    pairs: dict[tuple[int, int], float] = {}
    for i, k in (found.similarity >= NEAR).nonzero().tolist():
        j = int(found.index[i, k])
        if first[i] is None or first[i] != first[j]:
            pairs[min(i, j), max(i, j)] = float(found.similarity[i, k])
    ranked = sorted(pairs.items(), key=lambda item: -item[1])[:CANDIDATES]
    return [(i, j, cosine) for (i, j), cosine in ranked]


def _alike(images: Pictures | None, pairs: list[Pair]) -> list[Pair]:
    """Those pairs that nearly are of the same pixels, by the correlation of reduced images."""
    assert images is not None
    index = np.unique([pair[:2] for pair in pairs])
    reduced: dict[int, Floats | None] = {}
    for start in range(0, len(index), 256):
        part = index[start : start + 256]
        for i, picture in zip(part.tolist(), images.look_at(part), strict=True):
            reduced[i] = None if picture is None else _reduced(picture)

    def alike(i: int, j: int) -> bool:
        one, other = reduced[i], reduced[j]
        return one is not None and other is not None and float((one * other).mean()) >= ALIKE

    return [pair for pair in pairs if alike(*pair[:2])]


def _reduced(picture: torch.Tensor) -> Floats | None:
    """The pixels of a reduced image (C,S,S), of mean 0 and variance 1; None if it is of one colour."""
    side = min(SIDE, picture.shape[-1])
    pixels = adaptive_avg_pool2d(picture.float(), side).flatten().numpy()
    spread = float(pixels.std())
    return None if spread < FLAT else (pixels - pixels.mean()) / spread


def summary(found: Duplicates, labels: Ints) -> dict[str, Any]:
    """The numbers of what was found, JSON-able.

    Args:
        labels: (N,) given.

    Returns:
        identical: {groups, images, with_different_labels, in_test}; near: [{index, cosine}].
    """
    return {
        "identical": {
            "groups": len(found.identical),
            "images": sum(map(len, found.identical)),
            "with_different_labels": sum(differ(group, labels) for group in found.identical),
            "in_test": int(found.in_test.sum()),
        },
        "near": [{"index": [i, j], "cosine": round(cosine, 4)} for i, j, cosine in found.near],
    }


def differ(group: list[int], labels: Ints) -> bool:
    """Whether images of one group are given different labels."""
    return len({int(labels[i]) for i in group}) > 1


def told(counts: dict[str, Any]) -> str | None:
    """What `summary` found, in a sentence; None if there is nothing."""
    same, near = counts["identical"], len(counts["near"])
    parts = []
    if same["groups"]:
        images = counted(same["groups"], "image is", "images are")
        differing = counted(same["with_different_labels"], "of them has", "of them have")
        parts.append(
            f"{images} there more than once, {same['images']:,} in all; {differing} different labels"
        )
    if same["in_test"]:
        too = "training image is a test image too", "training images are test images too"
        parts.append(counted(same["in_test"], *too))
    if near:
        pairs = counted(near, "pair of images differs", "pairs of images differ")
        parts.append(f"{pairs} by little")
    return "; ".join(parts) or None
