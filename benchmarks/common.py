"""What the benchmarks share: turns, medians with quartiles, and CSVs that say what made them."""

from __future__ import annotations

import csv
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from noisybsd.runs.environment import describe_environment

Row = dict[str, Any]
ABOUT = ("hardware", "versions", "git_commit")  # the last columns: what made a table


def take_turns(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warmup: int = 2,
    clock: Callable[[], float] = time.process_time,
    ready: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each candidate, one a round; in a round each has its turn.

    A machine that is busy for a while slows all of them alike, so that the ratio of two candidates is
    taken within a round. The default clock counts CPU time, which other programs disturb less. `ready` is
    called before each turn, and not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    gc.collect()
    for turn in range(rounds + warmup):
        for name, run in candidates.items():
            ready()
            start = clock()
            run()
            if turn >= warmup:
                seconds[name].append(clock() - start)
    return seconds


def quartiles(values: Sequence[float], name: str, digits: int = 4) -> Row:
    """Columns NAME_median, NAME_quartile1 and NAME_quartile3, to so many significant digits."""
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else [*values] * 3
    columns = {"median": median, "quartile1": low, "quartile3": high}
    return {f"{name}_{key}": rounded(value, digits) for key, value in columns.items()}


def rounded(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def write_csv(path: Path | None, rows: Sequence[Row], device: torch.device | None = None) -> None:
    """Print the rows; with a path write them too, with hardware, versions and commit in each."""
    for row in rows:
        print_row(row)
    if path is not None:
        save_csv(path, rows, device)


def print_row(row: Row) -> None:
    text = "  ".join(f"{key}={value}" for key, value in row.items() if value is not None)
    print(text, flush=True)


def save_csv(path: Path, rows: Sequence[Row], device: torch.device | None = None) -> None:
    """Write rows, with hardware, versions and commit in each."""
    facts = describe_environment(device or torch.device("cpu"))
    about = {
        "hardware": facts["hardware"],
        "versions": " ".join(f"{name}={version}" for name, version in facts["versions"].items()),
        "git_commit": facts["git_commit"],
    }
    columns = list(dict.fromkeys(key for row in rows for key in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, *about], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **about} for row in rows)
