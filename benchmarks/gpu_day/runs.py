"""Runs for one GPU in order of value, a few side by side, stopped by a deadline.

    python benchmarks/gpu_day/runs.py LIST STATE SECONDS [--workers 3] [key=value ...]

LIST holds a run a line, the most valuable first: `recipe method seed [key=value ...]`. The settings given
here go to all runs, and win. A run lives in STATE/runs/NAME. SECONDS after the start, those that still train
get SIGINT, upon which they save and end; whoever has not ended `--grace` seconds later gets SIGKILL. The
same command again skips what is finished, and goes on with the rest from the checkpoints.

STATE/out/ holds what to keep, written anew every few seconds:

    status.csv       a line a run: finished, partial, failed or waiting, and its last epoch's metrics
    records.tar.gz   settings, metrics, results and console output of each run, and labels.parquet of the
                     first run of the list that is finished

With `--strict` every run must finish: the first that fails ends all others. The exit code is 1 if a run
failed, or with `--strict`, if one is not finished.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

import yaml

from noisybsd.errors import UserError, command

TRAIN = [sys.executable, "-m", "noisybsd.train"]
RECORDS = ("config.yaml", "metrics.jsonl", "results.json", "console.txt")  # small ones
METRICS = (
    "test_accuracy",
    "test_accuracy_ema",
    "test_ece",
    "test_ece_ema",
    "label_correction_accuracy",
    "images_per_second",
    "seconds",
)
# exit codes of a run that was asked to stop
STOPPED = (128 + signal.SIGINT, -signal.SIGINT, -signal.SIGKILL)
EVERY = 15.0  # seconds from one writing of the records to the next


def read_list(file: Path) -> dict[str, list[str]]:
    """The training command's arguments by the name of the run, in the order of the file.

    Raises:
        UserError: a line is no run, or is there twice.
    """
    runs: dict[str, list[str]] = {}
    for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        place = f"{file}, line {number}: got {line.strip()!r}"
        if len(words) < 3 or not words[2].isdigit() or not all("=" in word for word in words[3:]):
            raise UserError(f"{place}; expected: recipe method seed [key=value ...]")
        recipe, method, seed, *settings = words
        name = re.sub(r"[^\w.=-]", "-", "-".join([recipe, method, f"s{seed}", *settings]))
        if name in runs:
            raise UserError(f"{place}, which is there twice; leave one of them out")
        runs[name] = [f"recipe={recipe}", f"method={method}", f"seed={seed}", *settings]
    return runs


class Queue:
    """The runs of a list, and what became of them."""

    def __init__(self, runs: dict[str, list[str]], state: Path, settings: list[str]):
        self.runs, self.state, self.settings = runs, state, settings
        self.waiting = [name for name in runs if not self.is_finished(name)]
        self.training: dict[str, subprocess.Popen[bytes]] = {}
        self.failed: set[str] = set()

    def path(self, name: str) -> Path:
        return self.state / "runs" / name

    def is_finished(self, name: str) -> bool:
        return (self.path(name) / "results.json").exists()

    def work(self, deadline: float, workers: int, strict: bool) -> None:
        """Train until all is done, the deadline (of time.monotonic), or with `strict`, a failure."""
        written = 0.0
        while (self.waiting or self.training) and time.monotonic() < deadline:
            while self.waiting and len(self.training) < workers:
                self.start(self.waiting.pop(0))
            self.notice_ends()
            if strict and self.failed:
                return
            if time.monotonic() - written > EVERY:
                self.write_records()
                written = time.monotonic()
            time.sleep(0.1)

    def start(self, name: str) -> None:
        path = self.path(name)
        path.mkdir(parents=True, exist_ok=True)
        arguments = [*self.runs[name], *self.settings, f"run.dir={path}"]
        with (path / "console.txt").open("ab") as console:
            # in a session of its own: its worker processes can be killed with it
            self.training[name] = subprocess.Popen(
                [*TRAIN, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        say(f"{name}: started")

    def notice_ends(self) -> None:
        for name, process in list(self.training.items()):
            if process.poll() is not None:
                self.note_end(name)

    def stop(self, grace: float) -> None:
        """Let the runs that still train save and end; kill those that do not within `grace` seconds."""
        self.notice_ends()
        for process in self.training.values():
            process.send_signal(signal.SIGINT)
        end = time.monotonic() + grace
        for name, process in list(self.training.items()):
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self.note_end(name, asked_to=True)

    def note_end(self, name: str, asked_to: bool = False) -> None:
        code = self.training.pop(name).returncode
        if self.is_finished(name):
            say(f"{name}: finished")
        elif asked_to and code in STOPPED:
            say(f"{name}: stopped, exit code {code}")
        else:
            self.failed.add(name)
            console = (self.path(name) / "console.txt").read_text("utf-8", errors="replace")
            say(f"{name}: failed, exit code {code}; its last lines:")
            print("\n".join(f"    {line}" for line in console.splitlines()[-15:]), flush=True)

    def status(self, name: str) -> dict[str, Any]:
        """What became of a run: a row of status.csv."""
        path, last = self.path(name), None
        if (metrics := path / "metrics.jsonl").exists():
            whole_lines = metrics.read_text("utf-8").rpartition("\n")[0].splitlines()
            last = json.loads(whole_lines[-1]) if whole_lines else None
        if self.is_finished(name):
            state = "finished"
        elif name in self.failed:
            state = "failed"
        else:
            state = "partial" if last else "waiting"
        row = {"run": name, "state": state}
        if (config := path / "config.yaml").exists():
            row |= {
                "epoch": last["epoch"] if last else 0,
                "epochs": yaml.safe_load(config.read_text("utf-8"))["epochs"],
            }
        return row | {key: last[key] for key in METRICS if last and last.get(key) is not None}

    def write_records(self) -> list[dict[str, Any]]:
        """Write STATE/out anew, each file whole or not at all, and return the rows of status.csv."""
        out = self.state / "out"
        out.mkdir(exist_ok=True)
        rows = [self.status(name) for name in self.runs]
        with (temporary := self.state / "status.tmp").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["run", "state", "epoch", "epochs", *METRICS])
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(out / "status.csv")

        kept = [self.path(name) / record for name in self.runs for record in RECORDS]
        first = next((name for name in self.runs if self.is_finished(name)), None)
        if first is not None:
            kept.append(self.path(first) / "labels.parquet")
        with tarfile.open(temporary := self.state / "records.tmp", "w:gz") as archive:
            for file in filter(Path.exists, kept):
                archive.add(file, file.relative_to(self.state))
        temporary.replace(out / "records.tar.gz")
        return rows


def say(text: str) -> None:
    print(f"{time.strftime('%T')} {text}", flush=True)


def lock(state: Path) -> TextIO:
    """Lock the folder until the process ends; second.sh waits for the lock's end."""
    state.mkdir(parents=True, exist_ok=True)
    file = (state / "lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{state}: another queue works there; wait for its end") from None
    return file


@command
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("list", type=Path)
    parser.add_argument("state", type=Path)
    parser.add_argument("seconds", type=float, help="until the deadline")
    parser.add_argument("--workers", type=int, default=3, help="runs at a time")
    parser.add_argument("--grace", type=float, default=25, help="seconds to save in")
    parser.add_argument("--strict", action="store_true", help="all must finish")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="for every run")
    args = parser.parse_intermixed_args(arguments)
    deadline = time.monotonic() + args.seconds

    runs, state = read_list(args.list), args.state.resolve()
    with lock(state):
        queue = Queue(runs, state, args.settings)
        say(f"{len(runs)} runs, {len(queue.waiting)} to do; {args.seconds:g} s until the deadline")
        try:
            queue.work(deadline, args.workers, args.strict)
        finally:
            queue.stop(args.grace)
            rows = queue.write_records()
    counts = Counter(row["state"] for row in rows)
    say(", ".join(f"{count} {state}" for state, count in counts.items()))
    return int(counts["failed"] > 0 or (args.strict and counts["finished"] < len(rows)))


if __name__ == "__main__":
    # a shell ignores SIGINT in what it starts in the background, and runs would inherit that
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    sys.exit(main())
