"""Checkpoints that survive a crash: written whole or not at all, checked before they are used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from noisybsd.errors import UserError
from noisybsd.files import write_atomically

SCHEMA = 1
_MARK = "noisybsd-checkpoint"


class CheckpointError(UserError):
    """A file that is not a whole checkpoint of this version; the text names it."""


def previous(path: Path) -> Path:
    """Where the checkpoint before `path` is kept."""
    return path.with_suffix(".previous.pt")


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write `state` (tensors and plain values) to `path`; the one before it stays as `previous(path)`.

    The file is torch's format with a SHA-256 behind it: torch.load itself compares no checksums.

    Raises:
        UserError: it cannot be written; the checkpoint at `path` is still there.
    """

    def write(file: BinaryIO) -> None:
        torch.save({"mark": _MARK, "schema": SCHEMA, **state}, file)
        file.write(_digest(file, file.tell()))

    write_atomically(path, write, keep=previous(path))


def _digest(file: BinaryIO, size: int) -> bytes:
    """SHA-256 of the first `size` bytes of an open file, 32 bytes."""
    digest = hashlib.sha256()
    file.seek(0)
    while part := file.read(min(size, 2**20)):
        digest.update(part)
        size -= len(part)
    return digest.digest()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. No code in the file is run.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, foreign or of another schema.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        with path.open("rb") as file:
            size = max(0, path.stat().st_size - hashlib.sha256().digest_size)
            if _digest(file, size) != file.read():
                raise CheckpointError(
                    f"{path}: truncated, damaged or not a checkpoint of noisybsd (wrong checksum)"
                )
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch raises errors of all kinds on foreign bytes
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise CheckpointError(f"{path}: not readable as a checkpoint ({reason})") from None
    if not isinstance(content, dict) or content.get("mark") != _MARK:
        raise CheckpointError(f"{path}: not a checkpoint of noisybsd")
    if content["schema"] != SCHEMA:
        raise CheckpointError(
            f"{path}: has schema version {content['schema']}, this version of noisybsd reads {SCHEMA}"
        )
    return content


def load_latest(path: Path, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint at `path`, or, if that cannot be used, the one before it.

    Args:
        warn: is told the name and the fault of each file that was passed over.

    Returns:
        which file it is, and its content; None if there is no usable one.
    """
    for candidate in (path, previous(path)):
        if candidate.exists():
            try:
                return candidate, load_checkpoint(candidate)
            except CheckpointError as error:
                warn(str(error))
    return None
