"""Checkpoints that survive a crash: written whole or not at all, checked before they are used."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from noisybsd.errors import UserError

SCHEMA = 1
_MARK = "noisybsd-checkpoint"


class CheckpointError(UserError):
    """A file that is not a whole checkpoint of this version; the text names it."""


def previous(path: Path) -> Path:
    """Where the checkpoint before `path` is kept."""
    return path.with_suffix(".previous.pt")


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place: whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself
    finally:
        os.close(directory)


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write `state` (tensors and plain values) to `path`; the one before it stays as `previous(path)`."""
    content = {"mark": _MARK, "schema": SCHEMA, **state}

    def write(temporary: Path) -> None:
        torch.save(content, temporary)
        if path.exists():
            # a second name for the old file, so that `path` exists at every moment
            link = path.with_name(f".{path.name}.{os.getpid()}.link")
            link.unlink(missing_ok=True)
            os.link(path, link)
            link.replace(previous(path))

    write_atomically(path, write)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, foreign or of another schema.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise CheckpointError(f"{path}: truncated, or not a checkpoint ({error})") from None
    if damaged:
        raise CheckpointError(f"{path}: damaged, checksum of its part {damaged} is wrong")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict) or content.get("mark") != _MARK:
        raise CheckpointError(f"{path}: not a checkpoint of noisybsd")
    if content["schema"] != SCHEMA:
        raise CheckpointError(
            f"{path}: has schema version {content['schema']}, this version of noisybsd reads {SCHEMA}"
        )
    return content


def load_latest(path: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The checkpoint at `path`, or the one before it where `path` cannot be used; None if neither is.

    `warn` is told the name and the fault of each file that was passed over.
    """
    for candidate in (path, previous(path)):
        if candidate.exists():
            try:
                return load_checkpoint(candidate)
            except CheckpointError as error:
                warn(str(error))
    return None
