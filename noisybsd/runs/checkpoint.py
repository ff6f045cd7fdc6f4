"""Checkpoints that survive a crash: written whole or not at all, checked before they are used."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor

from noisybsd.errors import UserError
from noisybsd.files import kind_of, open_file, write_atomically
from noisybsd.runs.records import Epoch, Input, Record, Seconds, Text, mistakes

SCHEMA = 1
_MARK = "noisybsd-checkpoint"


class _TrainedEpoch(Epoch):
    """A row of the history that training continues."""

    step: int = Field(ge=0)
    test_ece: float
    test_nll: float
    test_brier: float


class _Optimizer(Record):
    state: dict[int, dict[str, Any]]
    param_groups: list[dict[str, Any]]


class State(Record):
    """What a checkpoint holds beside its mark and version; Trainer.state makes it."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    config: dict[str, Any]
    data_sha256: str
    modules: dict[str, dict[str, Tensor]]
    optimizer: _Optimizer
    step: int = Field(ge=0)
    seconds: Seconds
    images_seen: int = Field(ge=0)
    network_passes: int = Field(ge=0)
    train_seconds: Seconds
    skipped: list[Text]
    history: list[_TrainedEpoch]
    wandb_id: str = Field(pattern=r"^[\w-]+$")
    world_size: int = Field(ge=1)
    precision: Literal["fp32", "bf16"]
    input: Input
    extended_after: list[Annotated[int, Field(ge=0)]]

    @model_validator(mode="after")
    def _consistent(self) -> State:
        if [row.epoch for row in self.history] != list(range(1, len(self.history) + 1)):
            raise ValueError("history: its epochs are not 1, 2, 3, …")
        if self.history and self.step < self.history[-1].step:
            raise ValueError(f"step is {self.step}, before the last one of history")
        if self.step and not (self.images_seen and self.train_seconds):
            raise ValueError(f"step is {self.step}, but images_seen or train_seconds is 0")
        return self


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
        CheckpointError: the file is missing, truncated, damaged, foreign or of another schema, or a field
            is not what `State` says, or a number in it is not finite.
    """
    try:
        with open_file(path, "rb") as file:
            size = max(0, os.fstat(file.fileno()).st_size - hashlib.sha256().digest_size)
            if _digest(file, size) != file.read():
                raise CheckpointError(
                    f"{path}: truncated, damaged or not a checkpoint of noisybsd (wrong checksum)"
                )
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such checkpoint") from None
    except Exception as error:  # torch raises errors of all kinds on foreign bytes
        reason = getattr(error, "strerror", None) or str(error).split("\n", 1)[0]
        reason = reason or type(error).__name__
        raise CheckpointError(f"{path}: not readable as a checkpoint ({reason})") from None
    if not isinstance(content, dict) or content.get("mark") != _MARK:
        raise CheckpointError(f"{path}: not a checkpoint of noisybsd")
    if content.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path}: has schema version {content.get('schema')}, this version of noisybsd reads {SCHEMA}"
        )
    mistake = next(itertools.chain(mistakes(State, content), _not_finite(content)), None)
    if mistake is not None:
        raise CheckpointError(f"{path}: damaged: {mistake}")
    return content


def _not_finite(content: dict[str, Any]) -> Iterator[str]:
    """One line for each part that holds NaN or infinity: training saves none."""
    tensors = {
        f"modules.{name}.{key}": tensor
        for name, module in content["modules"].items()
        for key, tensor in module.items()
    }
    for number, state in content["optimizer"]["state"].items():
        tensors |= {f"optimizer.state.{number}.{key}": value for key, value in state.items()}
    for key, tensor in tensors.items():
        numbers = isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel()
        if numbers and not torch.linalg.vector_norm(tensor, torch.inf).isfinite():
            yield f"{key} holds numbers that are not finite"


def load_latest(path: Path, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint at `path`, or, if that cannot be used, the one before it.

    Args:
        warn: is told the name and the fault of each file that was passed over.

    Returns:
        which file it is, and its content; None if there is no usable one.
    """
    for candidate in (path, previous(path)):
        if kind_of(candidate, str(candidate)) is not None:
            try:
                return candidate, load_checkpoint(candidate)
            except CheckpointError as error:
                warn(str(error))
    return None
