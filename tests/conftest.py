"""What the tests share: one thread, no network, and a tiny run that takes a fraction of a second."""

from __future__ import annotations

import os

# before torch is imported here or in a child: on a shared machine, threads wait for each other
os.environ["OMP_NUM_THREADS"] = "1"
# whatever key this machine holds
os.environ.pop("WANDB_API_KEY", None)
os.environ["NETRC"] = os.devnull

import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.training import TINY

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def quiet_logger() -> Iterator[None]:
    """Leave the package's logger as it was: a test that fails in a run must not add to the next."""
    log = logging.getLogger("noisybsd")
    level, handlers = log.level, list(log.handlers)
    yield
    log.setLevel(level)
    log.handlers[:] = handlers


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Arguments of a run of half a second; later ones win. The working directory is `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    return lambda *more: [*TINY, *more]


@pytest.fixture(autouse=True)
def hangups_are_heard() -> Iterator[None]:
    """As in a terminal, also when pytest itself was started with nohup, whose children ignore SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
