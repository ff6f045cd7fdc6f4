"""Training images that are there more than once: identical ones, and ones that differ by little.

Identical images are known by a hash of their pixels, which collect.py notes. For images that differ by
little, such as a photograph saved twice, the nearest neighbours by embedding are looked at, pixel by pixel.

Dimensions: N training images, P pairs, C channels, S side of a stored image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d

from noisybsd.report.findings import Bools, Findings, Ints, pictures
from noisybsd.report.sprites import Pictures

CANDIDATES = 2000  # pairs of neighbours whose pixels are compared, those of the largest cosine
NEAREST = 3  # neighbours of an image that are candidates
SMALLEST = 0.9  # cosine of an image and its nearest neighbour from which it is looked at
SIDE = 16  # pixels to which images are reduced to be compared
ALIKE = 0.99  # correlation of these pixels from which two images nearly are the same
FLAT = 2.0  # standard deviation, of 0 to 255, below which an image shows nothing to compare


@dataclass(frozen=True)
class Duplicates:
    """Images that are there more than once.

    Args:
        identical: groups of training images of the same pixels, each from two.
        in_test: (N,) bool, training images that are test images too.
        near: pairs of training images that nearly are the same, each with its cosine.
        looked_at: how many pairs were compared to find these.
    """

    identical: list[list[int]]
    in_test: Bools
    near: list[tuple[int, int, float]]
    looked_at: int


def find_duplicates(findings: Findings, images: Pictures | None) -> Duplicates | None:
    """What there is more than once; None where the findings are of a version that noted no hashes.

    Args:
        images: of the N training samples; None: nearly identical ones are not looked for.
    """
    if "identical_to" not in findings.table.column_names:
        return None
    first = findings.table["identical_to"].to_pylist()
    groups: dict[int, list[int]] = {}
    for i, other in enumerate(first):
        if other is not None:
            groups.setdefault(other, []).append(i)
    identical = [group for group in groups.values() if len(group) > 1]
    in_test = np.array(findings.table["in_test"].to_pylist(), dtype=bool)
    pairs, cosines = _candidates(findings, first)
    near = [] if images is None else _alike(images, pairs)
    found = [(int(i), int(j), float(cosines[p])) for p, (i, j) in enumerate(pairs) if p in near]
    return Duplicates(identical, in_test, found, 0 if images is None else len(pairs))


def _candidates(findings: Findings, first: list[int | None]) -> tuple[Ints, Any]:
    """Pairs (P,2) of near neighbours that are not identical, and the cosine of each first one's nearest."""
    cosine = findings.column("nearest_cosine")
    cosine = np.where(np.isnan(cosine), -1, cosine)
    seen: dict[tuple[int, int], float] = {}
    near = findings.table["neighbours"].to_pylist()
    for i in np.argsort(-cosine, kind="stable").tolist():
        if cosine[i] < SMALLEST or len(seen) >= CANDIDATES:
            break
        for j in near[i][:NEAREST]:
            if first[i] is None or first[i] != first[j]:
                seen.setdefault((min(i, j), max(i, j)), float(cosine[i]))
    pairs = np.array(list(seen), np.int64).reshape(-1, 2)
    return pairs, np.array(list(seen.values()))


def _alike(images: Pictures, pairs: Ints) -> set[int]:
    """Which pairs (P,2) nearly are of the same pixels, by the correlation of reduced images."""
    index = np.unique(pairs)
    reduced: dict[int, np.ndarray | None] = {}
    for start in range(0, len(index), 256):
        part = index[start : start + 256]
        for i, picture in zip(part.tolist(), pictures(images, part), strict=True):
            reduced[i] = None if picture is None else _reduced(picture)
    alike = set()
    for p, (i, j) in enumerate(pairs.tolist()):
        one, other = reduced[i], reduced[j]
        if one is not None and other is not None and float((one * other).mean()) >= ALIKE:
            alike.add(p)
    return alike


def _reduced(picture: torch.Tensor) -> np.ndarray | None:
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
        parts.append(
            f"{same['groups']:,} images are there more than once, {same['images']:,} in all; "
            f"{same['with_different_labels']:,} of them have different labels"
        )
    if same["in_test"]:
        parts.append(f"{same['in_test']:,} training images are test images too")
    if near:
        parts.append(f"{near:,} pairs of images differ by little")
    return "; ".join(parts) or None
