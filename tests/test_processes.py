"""Children end when their parent is gone, however it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import ROOT

PARENT = """
    import subprocess, sys, time
    from noisybsd.processes import bound_to_me
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], **bound_to_me())
    print(child.pid, flush=True)
    time.sleep(120)
"""
CHILD = """
    import pathlib, signal, sys, time
    from noisybsd.processes import follow_parent
    {before}
    def stop(number, frame):
        pathlib.Path("saved").write_text(signal.Signals(number).name)
        sys.exit(128 + number)
    signal.signal(signal.SIGTERM, stop)
    follow_parent()
    pathlib.Path("started").touch()
    time.sleep(120)
"""


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], int]]]:
    """Start a parent and its child in `tmp_path`; both are gone after the test."""
    started: list[int] = []

    def run(child: str) -> tuple[subprocess.Popen[str], int]:
        words = [sys.executable, "-c", textwrap.dedent(PARENT), textwrap.dedent(child)]
        parent = subprocess.Popen(
            words,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert parent.stdout is not None
        started.extend([parent.pid, pid := int(parent.stdout.readline())])
        return parent, pid

    yield run
    for pid in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_a_child_is_told_to_save_when_its_parent_is_killed(
    number: signal.Signals,
    start: Callable[..., tuple[subprocess.Popen[str], int]],
    tmp_path: Path,
) -> None:
    parent, child = start(CHILD.format(before=""))
    wait_for((tmp_path / "started").exists)
    time.sleep(0.2)
    assert alive(child) and not (tmp_path / "saved").exists()
    parent.send_signal(number)
    parent.wait()
    wait_for(lambda: not alive(child))
    assert (tmp_path / "saved").read_text() == "SIGTERM"


def test_a_child_whose_parent_is_gone_before_it_asks(
    start: Callable[..., tuple[subprocess.Popen[str], int]], tmp_path: Path
) -> None:
    before = "while not pathlib.Path('gone').exists(): time.sleep(0.02)"
    parent, child = start(CHILD.format(before=before))
    parent.kill()
    parent.wait()
    (tmp_path / "gone").touch()
    wait_for(lambda: not alive(child))
    assert (tmp_path / "saved").exists() and not (tmp_path / "started").exists()


@pytest.mark.parametrize("value", ["", "x", "-1", "99999", "9" * 30, "2"])
def test_a_variable_that_no_parent_has_set(value: str, tmp_path: Path) -> None:
    program = (
        "import os, threading\nfrom noisybsd.processes import follow_parent\nfollow_parent()\n"
        "assert threading.active_count() == 1 and 'NOISYBSD_PARENT' not in os.environ"
    )
    environment = {**os.environ, "NOISYBSD_PARENT": value, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "err").open("w") as err:  # number 2 is open, and no pipe
        done = subprocess.run([sys.executable, "-c", program], env=environment, stderr=err)
    assert done.returncode == 0
