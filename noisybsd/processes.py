"""Processes that belong together: a child ends when its parent is gone, however the parent ended.

The parent holds the writing end of a pipe, and nobody else does. The system closes that end with the
parent, also after kill -9, and whoever waits at the reading end then knows.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import select
import signal
import stat
import threading
from collections.abc import Callable
from typing import Any

_VARIABLE = "NOISYBSD_PARENT"  # the number of the reading end, in a child's environment


@functools.cache
def _pipe() -> tuple[int, int]:
    """Reading and writing end of this process's pipe, for all of its children."""
    return os.pipe()


def bound_to_me() -> dict[str, Any]:
    """What `subprocess.Popen` is to be given, `env` among it, so that the child can follow this process."""
    reading, _ = _pipe()
    return {"env": {**os.environ, _VARIABLE: str(reading)}, "pass_fds": (reading,)}


def follow_parent() -> None:
    """End as by SIGTERM, saving what is to be saved, once the process that started this one is gone.

    Does nothing where that process did not ask for it by `bound_to_me`.
    """
    number = os.environ.pop(_VARIABLE, "")
    try:
        reading = int(number)
        if not stat.S_ISFIFO(os.fstat(reading).st_mode):
            return
        os.set_inheritable(reading, False)
    except (ValueError, OverflowError, OSError):  # not set, or not by a parent
        return
    if select.select([reading], [], [], 0)[0]:  # gone before this process came so far
        os.kill(os.getpid(), signal.SIGTERM)
    _watch(lambda: os.read(reading, 1), lambda: os.kill(os.getpid(), signal.SIGTERM))


def end_with_main_process() -> None:
    """End at once when the main process is gone, in a process that multiprocessing started.

    torch's own watch fails here: workers come from a fork server, which lives as long as they do.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        _watch(parent.join, lambda: os._exit(1))


def _watch(wait: Callable[[], object], act: Callable[[], object]) -> None:
    def run() -> None:
        wait()
        act()

    threading.Thread(target=run, name="noisybsd-parent", daemon=True).start()
