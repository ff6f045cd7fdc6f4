"""What happens to a run from outside: signals, crashes, other data."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from noisybsd import training
from noisybsd.data.dataset import Dataset
from noisybsd.engine.data import run_dataset
from noisybsd.engine.trainer import Trainer


def interrupt(monkeypatch: pytest.MonkeyPatch, at_step: int, act: Callable[[], Any]) -> None:
    """Call `act` once, at the end of the step of this number, counted from 1 from here on."""
    count, step = 0, Trainer.step

    def watched(self: Trainer, *batch: Tensor) -> None:
        nonlocal count
        step(self, *batch)
        count += 1
        if count == at_step:
            act()

    monkeypatch.setattr(Trainer, "step", watched)


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


class Crash(BaseException):
    """The process ends here, as far as a test within one process can have it."""


def crash() -> None:
    raise Crash


def enlarged(data: Dataset) -> Dataset:
    """Digits of 16 x 16 pixels: the fast network is not for 8 x 8."""
    train, test = (
        dataclasses.replace(
            split, images=split.images.repeat_interleave(2, -1).repeat_interleave(2, -2)
        )
        for split in (data.train, data.test)
    )
    return dataclasses.replace(data, train=train, test=test, size=16)


def with_dataset(monkeypatch: pytest.MonkeyPatch, change: Callable[[Dataset], Dataset]) -> None:
    monkeypatch.setattr(training, "run_dataset", lambda config: change(run_dataset(config)))
