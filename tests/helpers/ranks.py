"""Functions run on many processes at once, joined in a group over gloo, as torchrun would have it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

PATIENCE = 60  # seconds


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int  # negative: the signal that killed it
    result: Any
    out: str
    err: str


def on_ranks(
    world_size: int, function: Callable[..., Any], *arguments: Any, folder: Path, **env: str
) -> list[Ended]:
    """Call `function(*arguments)` in each process, and wait for all of them.

    They are forked from a server that has imported torch and noisybsd and done nothing with them.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "noisybsd.training"])
    folder.mkdir(parents=True, exist_ok=True)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    env |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    env |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    processes = []
    for rank in range(world_size):
        env |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = context.Process(
            target=_run, args=(folder / str(rank), dict(env), function, arguments)
        )
        process.start()
        processes.append(process)
    end = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    hanging = [rank for rank, process in enumerate(processes) if process.exitcode is None]
    for rank in hanging:
        processes[rank].kill()
        processes[rank].join()
    ended = [_collect(folder / str(rank), p.exitcode) for rank, p in enumerate(processes)]
    assert not hanging, (hanging, ended)
    return ended


def results(ended: list[Ended]) -> list[Any]:
    """What the function returned on each rank, if it did on all."""
    assert [each.code for each in ended] == [0] * len(ended), ended
    return [each.result for each in ended]


def _run(
    place: Path, env: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(env)
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        os.dup2(
            os.open(place.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            stream.fileno(),
        )
    code = 1
    try:
        result = function(*arguments)
        place.with_suffix(".result").write_bytes(pickle.dumps(result))
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _collect(place: Path, code: int | None) -> Ended:
    assert code is not None
    result = None
    with contextlib.suppress(FileNotFoundError):
        result = pickle.loads(place.with_suffix(".result").read_bytes())
    texts = [place.with_suffix(f".{name}").read_text("utf-8") for name in ("out", "err")]
    return Ended(code, result, *texts)
