"""A list of runs whose `epochs=fit` becomes the number of epochs that there is time for.

    python benchmarks/gpu_day/fit.py LIST SECONDS STEP.csv COMPILED.csv

Prints the list. STEP.csv and COMPILED.csv are tables of benchmarks/step.py, without and with compile=true,
for the batch size of that run. The run is compiled if that makes a step at least a tenth faster. A table
that is missing, or has no row of the run's method, was not measured; if neither was, the run takes `UNKNOWN`
epochs.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

MOST = 300  # epochs of the recipes
UNKNOWN = 100
SLOWER = 1.1  # an epoch in a run, over the measured steps of one
EVALUATION = 0.5  # seconds an epoch
RESERVE = 60.0  # seconds: the start, the end, and the GPU tests beside the first epochs
COMPILING = 60.0  # seconds more for a compiled run


def seconds_of(table: Path, method: str) -> float | None:
    """Of an epoch's training steps."""
    if not table.exists():
        return None
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == method]
    return float(rows[0]["seconds_per_epoch"]) if rows else None


def fitted(line: str, seconds: float, plain: Path, compiled: Path) -> str:
    """The line of a list with a number of epochs for `epochs=fit`, and perhaps with compile=true."""
    run = line.split("#")[0].split()
    if "epochs=fit" not in run:
        return line
    as_is, faster = (seconds_of(table, run[1]) for table in (plain, compiled))
    compiles = faster is not None and (as_is is None or faster <= 0.9 * as_is)
    epoch = faster if compiles else as_is
    epochs = UNKNOWN
    if epoch is not None:
        left = seconds - RESERVE - COMPILING * compiles
        fit = left / (SLOWER * epoch + EVALUATION)
        epochs = max(1, min(MOST, int(fit)))
    return line.replace("epochs=fit", f"epochs={epochs}" + " compile=true" * compiles)


def main(arguments: list[str]) -> None:
    listed, seconds, plain, compiled = arguments
    for line in Path(listed).read_text("utf-8").splitlines():
        print(fitted(line, float(seconds), Path(plain), Path(compiled)))


if __name__ == "__main__":
    main(sys.argv[1:])
