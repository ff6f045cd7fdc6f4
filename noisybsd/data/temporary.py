"""Folders in which something is made that appears whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def temporary_folder(parent: Path, what: str) -> Iterator[Path]:
    """A new folder in `parent` that is gone afterwards; those of killed processes are removed before.

    A folder belongs to a living process as long as that holds its lock.

    Raises:
        OSError: it cannot be made.
    """
    prefix = f".noisybsd-{what}-"
    for left in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError), _lock(left):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # a file system without locks
            stack.enter_context(_lock(folder))
        yield folder


@contextlib.contextmanager
def new_folder(folder: Path, what: str) -> Iterator[Path]:
    """A temporary folder beside `folder`, which takes its name at the end, if all went well until then.

    Raises:
        OSError: it cannot be made, or something is there already.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder.parent, what) as temporary:
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(folder)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; OSError where another process holds it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
