"""Batches of training images: which samples, in which order, and how they reach the device.

The order is a function of (seed, epoch, rank) alone, so a run resumes at any batch without replaying
the ones before it, and both loaders give the same batches. Images that fit stay on the device as
uint8; the others are decoded by worker processes.

Dimensions: N samples, B batch, C channels, H×W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from noisybsd.errors import UserError

if TYPE_CHECKING:
    from noisybsd.data import Split


def epoch_order(
    n: int,
    seed: int,
    epoch: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    labels: np.ndarray | None = None,
    balanced: int | None = None,
) -> Tensor:
    """The samples of one epoch on one rank, shuffled: a pure function of its arguments.

    A rank draws from the samples with index % world_size == rank in every epoch, so that its rows of
    per-sample state never move to another rank. Every rank gets equally many; the up to
    world_size - 1 samples over are not visited. The keys are raw Philox output, which is the same in
    every version of numpy and on every machine.

    Args:
        n: samples in the training set.
        seed: the run's seed, 0 ≤ seed < 2**64.
        epoch: 0 ≤ epoch < 2**32.
        rank: this process, of `world_size`.
        labels: (N,) the given labels; needed for `balanced` only.
        balanced: visit at most this many samples of each given class per epoch (all ranks together),
            chosen anew in each epoch.

    Returns:
        (M,) int64 indices into the training set; M = n // world_size without `balanced`.
    """
    shards = [np.arange(r, n, world_size)[: n // world_size] for r in range(world_size)]
    length = len(shards[rank])
    key = np.array([seed, epoch | rank << 32], dtype=np.uint64)
    keys = np.random.Philox(key=key).random_raw(length)
    order = shards[rank][np.argsort(keys, kind="stable")]
    if balanced is not None:
        assert labels is not None and len(labels) == n
        quota = balanced // world_size
        # ranks hold different numbers of a rare class, and all must take equally many steps
        length = min(int(np.minimum(np.bincount(labels[s]), quota).sum()) for s in shards)
        order = _first_of_each_class(order, labels, quota)[:length]
    return torch.from_numpy(order)


def _first_of_each_class(order: np.ndarray, labels: np.ndarray, quota: int) -> np.ndarray:
    """Keep the first `quota` samples of every class, in the given order (M,)."""
    given = labels[order]
    by_class = np.argsort(given, kind="stable")
    counts = np.bincount(given)
    position = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return order[np.sort(by_class[position < quota])]


class ResidentLoader:
    """Training images that live on the device.

    Args:
        images: (N,C,H,W) uint8; moved to `device` once.
        batch_size: B; the last, incomplete batch of an epoch is dropped.
        order: keyword arguments of `epoch_order` other than n, seed and epoch.
    """

    def __init__(
        self,
        images: Tensor,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        **order: int | np.ndarray | None,
    ):
        self.images = images.to(device)
        self.batch_size = batch_size
        self.seed = seed
        self._order_options = order
        self.steps_per_epoch = len(self._order(0)) // batch_size
        self.skipped: list[str] = []
        self.waited_seconds = 0.0
        if self.steps_per_epoch == 0:
            raise UserError(
                f"batch_size={batch_size}: an epoch has only {len(self._order(0))} training images"
            )

    def _order(self, epoch: int) -> Tensor:
        return epoch_order(len(self.images), self.seed, epoch, **self._order_options)  # type: ignore[arg-type]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of one epoch from number `start` on: index (B,) int64, images (B,C,H,W) uint8."""
        order = self._order(epoch).to(self.images.device)
        for step in range(start, self.steps_per_epoch):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield index, self.images[index]

    def close(self) -> None:
        """Nothing to release."""


def build_loader(
    split: Split,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    *,
    storage: str = "auto",
    workers: int = 2,
    rank: int = 0,
    world_size: int = 1,
    on_error: str = "stop",
    balanced: int | None = None,
) -> ResidentLoader:
    """The loader for a training split."""
    assert isinstance(split.images, Tensor)
    return ResidentLoader(
        split.images,
        batch_size,
        seed,
        device,
        rank=rank,
        world_size=world_size,
        labels=split.labels,
        balanced=balanced,
    )


def eval_batches(
    split: Split, batch_size: int, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """A split in order: images (b,C,H,W) uint8 and labels (b,) int64 on the device, last one short."""
    assert isinstance(split.images, Tensor)
    labels = torch.from_numpy(split.labels)
    for images, target in zip(
        split.images.split(batch_size), labels.split(batch_size), strict=True
    ):
        yield images.to(device, non_blocking=True), target.to(device, non_blocking=True)
