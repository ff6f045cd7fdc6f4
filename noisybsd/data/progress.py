"""How far a pass over many images is."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    track,
)

TOLD_EVERY = 30.0  # seconds, outside of a terminal

T = TypeVar("T")
PartT = TypeVar("PartT", bound=Sized)


def with_bar(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """Pass the items on, with a bar in a terminal, and with nothing elsewhere.

    Args:
        total: how many there are; None: nobody knows.
    """
    console = Console(stderr=True)
    return track(items, what, total=total, console=console, disable=not console.is_terminal)


def with_progress(parts: Iterable[PartT], total: int, what: str) -> Iterator[PartT]:
    """Pass the parts on, and show how far it is: a bar in a terminal, elsewhere a line now and then.

    Args:
        total: images in all parts together.
        what: is done with them.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        looks = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*looks, console=console, transient=True) as progress:
            task = progress.add_task(what, total=total)
            for part in parts:
                yield part
                progress.advance(task, len(part))
        return
    done, start = 0, time.monotonic()
    told = start
    for part in parts:
        yield part
        done += len(part)
        now = time.monotonic()
        if now - told >= TOLD_EVERY and done < total:
            minutes = (now - start) / done * (total - done) / 60
            print(f"{what}: {done:,} of {total:,} images, {minutes:.1f} min left", file=sys.stderr)
            told = now
