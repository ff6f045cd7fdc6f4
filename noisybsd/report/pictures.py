"""The pictures of a label table's samples.

Dimensions: N samples, n pictures, C channels, S side of a stored image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from noisybsd.data.dataset import Dataset
from noisybsd.data.images import ImageFiles
from noisybsd.report.findings import Ints


@dataclass(frozen=True)
class Pictures:
    """The images of the N samples of a label table.

    Args:
        parts: (n,C,S,S) uint8, or as many files, of the training samples and of the held-out ones.
        order: (N,), which of these in a row is the i-th sample; None: the i-th.
    """

    parts: Sequence[torch.Tensor | ImageFiles]
    order: Ints | None = None

    @classmethod
    def of(cls, dataset: Dataset) -> Pictures:
        return cls([split.images for split in dataset.judged], dataset.order)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C,S,S)."""
        channels, height, width = self.parts[0].shape[1:]
        return channels, height, width

    def look_at(self, index: Ints, largest: int | None = None) -> list[torch.Tensor | None]:
        """Some images, (C,S,S) uint8 each; None where a file cannot be read.

        Args:
            index: (n,), of the samples.
            largest: pixels of a side that files are decoded to at most.
        """
        found: list[torch.Tensor | None] = [None] * len(index)
        index = index if self.order is None else self.order[index]
        start = 0
        for part in self.parts:
            inside = np.flatnonzero((index >= start) & (index < start + len(part)))
            for i, picture in zip(
                inside, _look_at(part, index[inside] - start, largest), strict=True
            ):
                found[i] = picture
            start += len(part)
        return found


def _look_at(
    images: torch.Tensor | ImageFiles, index: Ints, largest: int | None
) -> list[torch.Tensor | None]:
    if isinstance(images, torch.Tensor):
        return list(images[torch.from_numpy(index)].cpu())
    files, side = images, min(images.size, largest or images.size)
    files = ImageFiles([files.path(i) for i in index], files.root, side, files.channels)
    decoded = files.decode_many(range(len(files)))
    return [image if isinstance(image, torch.Tensor) else None for image in decoded]
