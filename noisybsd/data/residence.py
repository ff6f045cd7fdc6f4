"""Which images stay on a device: those that fit.

Dimensions: N images, C channels, H×W pixels.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from noisybsd.data.images import ImageFiles, note_skipped
from noisybsd.errors import UserError

if TYPE_CHECKING:
    from noisybsd.data.splits import Split

log = logging.getLogger("noisybsd")


def free_memory(device: torch.device) -> int:
    """Bytes free on a CUDA device, or in host memory (within the container's limit)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, StopIteration):  # Linux: counts what caches would give back
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = (
            next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
        )
    with contextlib.suppress(OSError, ValueError):  # cgroup v2; its text is "max" without a limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(stat.get("inactive_file", 0)))
    return free


def is_resident(
    images: ImageFiles | Tensor, device: torch.device, storage: str, world_size: int, what: str
) -> bool:
    """Whether images stay on the device: as asked, or if they take at most half of free memory."""
    size = images.nbytes if isinstance(images, Tensor) else math.prod(images.shape)
    needs = {device: size // world_size}
    if isinstance(images, ImageFiles):
        needs[torch.device("cpu")] = size  # decoded there, by all processes of this machine
    elif device.type == "cpu":
        needs = {}  # they are there already
    free = {place: free_memory(place) for place in needs}
    fits = all(2 * needs[place] <= free[place] for place in needs)
    resident = fits if storage == "auto" else storage == "resident"
    log.info(
        "%s images: %d of %s, %.3g GB, %s (data.storage=%s%s)",
        what,
        len(images),
        "×".join(map(str, images.shape[1:])),
        size / 1e9,
        f"resident on {device}" if resident else "streamed",
        storage,
        "".join(f"; free on {place}: {amount / 1e9:.1f} GB" for place, amount in free.items()),
    )
    return resident


def moved(images: Tensor, device: torch.device) -> Tensor:
    """The images on `device`.

    Raises:
        UserError: the device has no room for them.
    """
    try:
        return images.to(device)
    except torch.OutOfMemoryError:
        raise UserError(
            f"data.storage: no room on {device} for {len(images)} images of "
            f"{'×'.join(map(str, images.shape[1:]))}, {images.nbytes / 1e9:.3g} GB; "
            f"{free_memory(device) / 1e9:.3g} GB are free there. Use data.storage=stream or a smaller "
            "data.size, or end what else runs on this GPU (nvidia-smi shows it)"
        ) from None


def keep_resident(
    split: Split,
    device: torch.device | str,
    storage: str = "auto",
    on_error: str = "stop",
    what: str = "evaluation",
) -> Split:
    """Put a split that is read many times, as the test split, on the device if it fits there.

    Args:
        what: which images these are, for the log.

    Returns:
        The split with images (N,C,H,W) uint8 on the device and, with on_error="skip", without the
        unreadable ones, which `skipped` names; or the split as it is, to be decoded by
        `eval_batches` in every pass.
    """
    device = torch.device(device)
    if not is_resident(split.inputs, device, storage, 1, what):
        return split
    if split.embeddings is not None:
        return replace(split, embeddings=moved(split.embeddings, device))
    if isinstance(split.images, Tensor):
        return replace(split, images=moved(split.images, device))
    images, unreadable = split.images.load_all(on_error)
    note_skipped(split.skipped, unreadable.values())
    kept = replace(split, images=images)
    if unreadable:
        readable = np.setdiff1d(np.arange(len(images)), list(unreadable))
        kept = replace(kept.take(readable), skipped=split.skipped)
    assert isinstance(kept.images, Tensor)
    return replace(kept, images=moved(kept.images, device))
