"""Batches of training images: which samples, in which order, and how they reach the device.

The order is a function of (seed, epoch, rank) alone, so that a run resumes at any batch without
replaying the ones before it, and both loaders give the same batches. Images that fit stay on the
device as uint8 (residence.py); the others are decoded by worker processes while the device computes.

Dimensions: N samples, B batch, C channels, H×W pixels.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from noisybsd.data.images import ImageError, ImageFiles, note_skipped
from noisybsd.data.residence import is_resident, moved
from noisybsd.errors import UserError
from noisybsd.processes import end_with_main_process

if TYPE_CHECKING:
    from noisybsd.data.splits import Split

log = logging.getLogger("noisybsd")

Order = Callable[[int], Tensor]  # epoch -> (M,) int64, M samples of one rank
# index (B,) int64; images (B,C,H,W) uint8, or embeddings (B,A,F) float16
Batch = tuple[Tensor, Tensor]


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

    A rank draws from the samples with index % world_size == rank in every epoch, so that a machine
    reads and keeps the same images throughout. Every rank visits equally many; up to
    world_size - 1 samples, other ones in each epoch, are left over. The sort keys are raw Philox
    output, the same in every version of numpy and on every machine.

    Args:
        n: samples in the training set.
        seed: the run's seed, 0 ≤ seed < 2**64.
        epoch: 0 ≤ epoch < 2**32.
        rank: this process, of `world_size`.
        labels: (N,) the given labels; used with `balanced` only.
        balanced: visit at most this many samples of each given class in an epoch (all ranks
            together), chosen anew in each epoch.

    Returns:
        (M,) int64 indices into the training set; M = n // world_size without `balanced`.
    """
    shards = [np.arange(r, n, world_size) for r in range(world_size)]
    length = n // world_size
    bits = np.random.Philox(key=np.array([seed, epoch | rank << 32], dtype=np.uint64))
    order = shards[rank][np.argsort(bits.random_raw(len(shards[rank])), kind="stable")]
    if balanced is not None:
        assert labels is not None and len(labels) == n
        quota = balanced // world_size
        # ranks hold different numbers of a rare class, and all must take equally many steps
        length = min(int(np.minimum(np.bincount(labels[s]), quota).sum()) for s in shards)
        order = _first_of_each_class(order, labels, quota)
        order = order[np.argsort(bits.random_raw(len(order)), kind="stable")]
    return torch.from_numpy(order[:length])


def _first_of_each_class(order: np.ndarray, labels: np.ndarray, quota: int) -> np.ndarray:
    """The first `quota` samples of every class in the order (M,), class by class."""
    given = labels[order]
    by_class = np.argsort(given, kind="stable")
    counts = np.bincount(given)
    position = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return order[by_class[position < quota]]


def candidates(order: Tensor, batch_size: int, step: int, slot: int) -> Iterator[int]:
    """The sample of a slot of a batch, and after it those to take its place if it is unreadable.

    These are the same slot of the following batches, round to the preceding ones, and then the other slots
    of these batches: deterministic, of the same rank, and none that the batch begins with.
    """
    yield int(order[step * batch_size + slot])
    for other in range(slot, slot + batch_size):
        yield from order[other % batch_size :: batch_size].roll(-step)[1:].tolist()


class Loader:
    """What both loaders share: `epoch(e)` gives the same number of full batches in every epoch.

    Args:
        order: epoch → the samples to visit, (M,) int64; the last, incomplete batch is dropped.
        batch_size: B.
        device: where batches go.

    Raises:
        UserError: an epoch has less than one batch.
    """

    def __init__(self, order: Order, batch_size: int, device: torch.device | str):
        self.order = order
        self.batch_size = batch_size
        self.device = torch.device(device)
        samples = len(order(0))
        self.steps_per_epoch = samples // batch_size
        if self.steps_per_epoch == 0:
            raise UserError(
                f"batch_size={batch_size}: more than the {samples} images that a process sees in an "
                "epoch, of all or of data.limit, or as data.balanced has it"
            )
        self.skipped: list[str] = []  # unreadable files with the reason; others take their place

    @property
    def waited_seconds(self) -> float:
        """Seconds for which training stood still because no batch was there, so far."""
        return 0.0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number `start` on: index (B,), images (B,C,H,W)."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what the loader holds outside this process."""


class ResidentLoader(Loader):
    """Images that live on the device.

    Args:
        images: (R,C,H,W) uint8, the images of this rank: row r is sample r * world_size + rank.
        unreadable: what is wrong with a sample, by its index, where the image is missing.
        world_size: number of processes.
    """

    def __init__(
        self,
        images: Tensor,
        order: Order,
        batch_size: int,
        device: torch.device | str,
        unreadable: Mapping[int, ImageError] | None = None,
        world_size: int = 1,
    ):
        super().__init__(order, batch_size, device)
        self.images = moved(images, self.device)
        self.world_size = world_size
        self.unreadable = dict(unreadable or {})
        note_skipped(self.skipped, self.unreadable.values())

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = self._readable(self.order(epoch)).to(self.device)
        for step in range(start, self.steps_per_epoch):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield index, self.images[index // self.world_size]

    def _readable(self, order: Tensor) -> Tensor:
        """The order (M,) with other samples in the place of unreadable ones."""
        if not self.unreadable:
            return order
        readable = order.clone()
        bad = np.isin(order.numpy(), list(self.unreadable))
        for position in np.flatnonzero(bad[: self.steps_per_epoch * self.batch_size]).tolist():
            step, slot = divmod(position, self.batch_size)
            batch = readable[step * self.batch_size : (step + 1) * self.batch_size]
            others = candidates(order, self.batch_size, step, slot)
            good = (i for i in others if i not in self.unreadable and i not in batch)
            if (found := next(good, None)) is None:
                raise _no_replacement(self.unreadable[int(order[position])])
            readable[position] = found
        return readable


class StreamingLoader(Loader):
    """Images that do not fit: worker processes decode ahead while the device computes.

    One stream of batches runs through all epochs, so that the first ones of an epoch are decoded
    during the evaluation before it.

    Args:
        images: files; or (N,C,H,W) uint8 in host memory or mapped from disk, without workers.
        workers: decoding processes; 0: decode in this one.
        on_error: "stop" at an unreadable image, or "skip": another takes its place.

    Raises (while iterating):
        ImageError: an unreadable image, with on_error="stop".
        UserError: a worker was killed, or no readable image is left to take another's place.
    """

    def __init__(
        self,
        images: ImageFiles | Tensor,
        order: Order,
        batch_size: int,
        device: torch.device | str,
        workers: int = 2,
        on_error: str = "stop",
    ):
        super().__init__(order, batch_size, device)
        self.workers = workers if isinstance(images, ImageFiles) else 0
        self._numbers = _NumbersFrom(0)
        with _no_warning_of_cores():
            self._loader = DataLoader(
                _NumberedBatches(images, order, batch_size, self.steps_per_epoch, on_error),
                batch_size=None,
                sampler=self._numbers,
                num_workers=self.workers,
                persistent_workers=self.workers > 0,
                multiprocessing_context=_process_context() if self.workers else None,
                worker_init_fn=_begin_worker,
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),  # or else it draws from the global one
            )
        if self.workers > (cores := os.cpu_count() or 1):
            log.info("data.workers=%d is more than the %d cores here", self.workers, cores)
        self._stream: Any = None
        self._next_number = 0
        self._waited = 0.0
        self._idle: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def waited_seconds(self) -> float:
        """Seconds for which training stood still because no batch was there, so far.

        On CUDA it is the time that the compute stream stood idle, which only the device knows:
        reading it waits for the device, so read it once an epoch.
        """
        if self._idle:
            self._idle[-1][1].synchronize()
            self._waited += sum(idle.elapsed_time(ready) for idle, ready in self._idle) / 1000
            self._idle.clear()
        return self._waited

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        first = epoch * self.steps_per_epoch + start
        if self._stream is None or self._next_number != first:
            self._numbers.first = self._next_number = first
            with _main_module_hidden(), _no_warning_of_cores(), _hangup_blocked():
                self._stream = iter(self._loader)
        count = self.steps_per_epoch - start
        return self._to_cuda(count) if self.device.type == "cuda" else self._on_host(count)

    def close(self) -> None:
        """Stop the workers. Iterating again starts new ones."""
        if self.workers and self._stream is not None:
            self._stream._shutdown_workers()  # dropping it is not enough while a traceback holds it
            self._loader._iterator = None
        self._stream = None

    def _on_host(self, count: int) -> Iterator[Batch]:
        for _ in range(count):
            started = time.perf_counter()
            batch = self._next()
            self._waited += time.perf_counter() - started
            yield batch

    def _to_cuda(self, count: int) -> Iterator[Batch]:
        """Copy on a stream of its own: while a step computes, the next batch is on its way."""
        copying = torch.cuda.Stream(self.device)
        for _ in range(count):
            computing = torch.cuda.current_stream(self.device)
            idle = computing.record_event(torch.cuda.Event(enable_timing=True))
            batch = self._next()
            with torch.cuda.stream(copying):
                index, images = (part.to(self.device, non_blocking=True) for part in batch)
            computing.wait_stream(copying)
            for part in (index, images):
                part.record_stream(computing)
            ready = computing.record_event(torch.cuda.Event(enable_timing=True))
            self._idle.append((idle, ready))
            yield index, images

    def _next(self) -> Batch:
        try:
            batch = next(self._stream)
        except (RuntimeError, OSError, EOFError) as error:
            if not _is_lost_worker(error):
                raise
            self.close()
            raise UserError(
                "a decoding process was killed, most often for want of memory (RAM, or /dev/shm "
                f"in a container): use a smaller data.workers (got {self.workers}) or batch_size "
                f"(got {self.batch_size}). {repr(error)[:200]}"
            ) from None
        if isinstance(batch, UserError):
            self.close()
            raise batch
        self._next_number += 1
        index, images, errors = batch
        note_skipped(self.skipped, errors)
        return index, images


class _NumberedBatches(Dataset):
    """Batch number epoch * steps_per_epoch + step: what a worker needs to make it."""

    def __init__(
        self,
        images: ImageFiles | Tensor,
        order: Order,
        batch_size: int,
        steps_per_epoch: int,
        on_error: str,
    ):
        self.images = images
        self.order = order
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.on_error = on_error
        self._current: tuple[int, Tensor] | None = None

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, list[ImageError]] | UserError:
        """Index (B,), images (B,C,H,W) and the errors of replaced images; or what stops the run,
        returned, because an exception would reach the user as a worker's traceback."""
        epoch, step = divmod(number, self.steps_per_epoch)
        if self._current is None or self._current[0] != epoch:
            self._current = epoch, self.order(epoch)
        order = self._current[1]
        index = order[step * self.batch_size : (step + 1) * self.batch_size].clone()
        if isinstance(self.images, Tensor):
            return index, self.images[index], []
        images: list[Tensor] = []
        errors: list[ImageError] = []
        for slot in range(self.batch_size):
            for k, i in enumerate(candidates(order, self.batch_size, step, slot)):
                if k and i in index:
                    continue
                try:
                    images.append(self.images.decode(i))
                except ImageError as error:
                    if self.on_error == "stop":
                        return error.stopping()
                    errors.append(error)
                else:
                    index[slot] = i
                    break
            else:
                return _no_replacement(errors[-1])
        return index, default_collate(images), errors  # straight into shared memory


class _NumbersFrom(Sampler[int]):
    """first, first + 1, … without end."""

    def __init__(self, first: int):
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first)


def _process_context() -> Any:
    """How workers start. Not by fork: FAISS and other threaded libraries hang in forked children."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "noisybsd.data.loader"])
    return context


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Start workers without importing the running program again in each.

    They need nothing of it, a training program takes seconds to import, and a user's script
    without an `if __name__ == "__main__"` would run a second time.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _no_warning_of_cores() -> Iterator[None]:
    """torch warns twice of more workers than cores; the log says it once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield


@contextlib.contextmanager
def _hangup_blocked() -> Iterator[None]:
    """Start processes that a closed terminal does not end, so that the main one can end its step.

    A process inherits which signals are blocked; here, one that comes meanwhile is delivered afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(worker: int) -> None:
    """Ignore Ctrl-C, which reaches every process of a terminal: the main one stops the workers in order.

    Where the main process is killed, they stop by themselves.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_main_process()


def _is_lost_worker(error: Exception) -> bool:
    """Whether a worker is gone, rather than wrong: found dead, or while it handed over a batch."""
    lost = isinstance(error, ConnectionError | EOFError | FileNotFoundError)
    raised_inside = "in DataLoader worker process" in str(error)
    return (lost or "DataLoader worker (pid" in str(error)) and not raised_inside


def _no_replacement(error: ImageError) -> UserError:
    return UserError(
        f"data.on_error=skip: no readable image can take the place of {error}; put it right, or lower "
        "batch_size"
    )


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
) -> ResidentLoader | StreamingLoader:
    """The loader for a training split.

    Args:
        split: its images and given labels.
        batch_size: B, per process.
        seed: the run's seed.
        device: where batches go.
        storage: "resident", "stream", or "auto": resident if that takes half of free memory at most.
        workers: decoding processes, if streaming.
        rank: this process, of `world_size`.
        on_error: "stop" at an unreadable image, or "skip".
        balanced: see `epoch_order`.
    """
    images, device = split.inputs, torch.device(device)
    labels = split.labels if balanced is not None else None
    shard: dict[str, Any] = {"rank": rank, "world_size": world_size}
    order = partial(epoch_order, len(images), seed, **shard, labels=labels, balanced=balanced)
    if not is_resident(images, device, storage, world_size, "training"):
        return StreamingLoader(images, order, batch_size, device, workers, on_error)
    unreadable: dict[int, ImageError] = {}
    if isinstance(images, ImageFiles):
        images, errors = images[rank::world_size].load_all(on_error)
        unreadable = {row * world_size + rank: error for row, error in errors.items()}
    else:
        images = images[rank::world_size]
    return ResidentLoader(images, order, batch_size, device, unreadable, world_size)


def eval_batches(
    split: Split,
    batch_size: int,
    device: torch.device | str,
    *,
    workers: int = 2,
    on_error: str = "stop",
) -> Iterator[tuple[Tensor, Tensor]]:
    """A split in order; the last batch is short. Files are decoded by threads, ahead of use.

    Args:
        split: its images and labels.
        batch_size: b.
        device: where batches go.
        workers: decoding threads.
        on_error: "stop" at an unreadable image, or "skip": leave it out, and note it in
            `split.skipped`.

    Yields:
        images (b,C,H,W) uint8, or embeddings (b,A,F), on the device; labels (b,) int64 on the host.
    """
    labels = torch.from_numpy(split.labels)
    inputs = split.inputs
    if isinstance(inputs, Tensor):
        batches: Iterable[tuple[Tensor, Tensor]] = zip(
            inputs.split(batch_size), labels.split(batch_size), strict=True
        )
    else:
        batches = _decoded(inputs, labels, batch_size, workers, on_error, split.skipped)
    for images, given in batches:
        yield images.to(device), given


def _decoded(
    files: ImageFiles,
    labels: Tensor,
    batch_size: int,
    workers: int,
    on_error: str,
    skipped: list[str],
) -> Iterator[tuple[Tensor, Tensor]]:
    images: list[Tensor] = []
    kept: list[int] = []
    for i, result in enumerate(files.decode_many(range(len(files)), max(workers, 1))):
        if isinstance(result, Tensor):
            images.append(result)
            kept.append(i)
        elif on_error == "stop":
            raise result.stopping()
        else:
            note_skipped(skipped, [result])
        if images and (len(images) == batch_size or i == len(files) - 1):
            yield torch.stack(images), labels[kept]
            images, kept = [], []
