"""How a signal stops a run: at the end of a step, saved."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from types import FrameType


class Stopped(Exception):
    """A signal asked the run to stop, and it is saved."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def stop_signals() -> list[signal.Signals]:
    """The signals that ask a process to stop: not SIGHUP where `nohup` has it ignored."""
    hangup = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


class StopSignal(contextlib.AbstractContextManager["StopSignal"]):
    """Notes SIGINT, SIGTERM and SIGHUP, for the loop to stop at a good moment; a second one ends the process.

    SIGHUP comes when a terminal is closed; under `nohup`, which ignores it, it stays ignored.

    One Ctrl-C can come twice: from the terminal, and from a launcher that passes it on. So a signal within
    half a second of the first counts as the same request.

    Args:
        announce: is told the name of the first signal.
    """

    received: int = 0

    def __init__(self, announce: Callable[[str], None]):
        self._announce = announce

    def __enter__(self) -> StopSignal:
        self._before = {s: signal.signal(s, self._note) for s in stop_signals()}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._from_now_on(lambda *_: None)
        self._announce(signal.Signals(number).name)
        time.sleep(0.5)
        self._from_now_on(signal.SIG_DFL)  # the kernel ends the process, even if Python is busy

    def _from_now_on(self, action: signal.Handlers | Callable[..., None]) -> None:
        for each in self._before:
            signal.signal(each, action)
