"""Write the results of a GPU day from the files that it brought back.

    python benchmarks/gpu_day/write_up.py FOLDER results/gpu.md

FOLDER holds status.csv and records.tar.gz, and step.csv and gpu_tests.txt if the day came so far. The runs
are compared by `python -m noisybsd.compare`; a run that was cut off is called partial and is not compared.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
Row = dict[str, str]


def read_csv(file: Path) -> list[Row]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def percent(value: str) -> str:
    return f"{100 * float(value):.2f}" if value else ""


def number(value: str, digits: int = 0) -> str:
    return f"{float(value):,.{digits}f}" if value else ""


def speed(file: Path) -> Iterator[str]:
    """Of whole training steps, from step.csv."""
    yield "## Speed of a training step"
    yield ""
    if not file.exists():
        yield "Not measured."
        return
    rows = read_csv(file)
    yield from table(
        (
            "method",
            "ms",
            "image-views/s",
            "s an epoch",
            "TFLOP/s",
            "share of peak %",
            "peak memory MB",
        ),
        [
            (
                row["method"],
                number(row["ms_median"], 2),
                number(row["views_per_second"]),
                number(row["seconds_per_epoch"], 2),
                number(row["tflops"]),
                percent(row["share_of_peak"]),
                row["peak_memory_mb"],
            )
            for row in rows
        ],
    )
    yield ""
    yield f"{rows[0]['hardware']}; {rows[0]['versions']}; commit {rows[0]['git_commit']}"
    yield ""
    yield (
        "Aimed at: 65,000 image-views/s on an H200. Published speeds: docs/performance.md. Two views of "
        "each image; an epoch of 50,000 images, without evaluation; the peak: benchmarks/step.py --help."
    )


def tests(file: Path) -> Iterator[str]:
    """What pytest said of the GPU tests."""
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    yield "## GPU tests"
    yield ""
    yield f"`{lines[-1].strip('= ')}`" if lines else "Not measured."
    yield from (f"- `{line}`" for line in lines if line.startswith(("FAILED", "ERROR")))


def state(row: Row) -> str:
    """How far a run came, in words."""
    if row["state"] == "finished":
        return f"finished, {row['epochs']} epochs"
    if row["state"] == "waiting":
        return "not trained"
    return f"{row['state']}, epoch {row['epoch'] or 0} of {row['epochs'] or '?'}"


def runs(rows: list[Row]) -> Iterator[str]:
    """Every run of the list, from status.csv."""
    yield "## Runs"
    yield ""
    yield from table(
        ("run", "state", "test %", "weight average %", "ECE", "labels right %", "images/s", "s"),
        [
            (
                f"`{row['run']}`",
                state(row),
                percent(row["test_accuracy"]),
                percent(row["test_accuracy_ema"]),
                number(row["test_ece"], 4),
                percent(row["label_correction_accuracy"]),
                number(row["images_per_second"]),
                number(row["seconds"]),
            )
            for row in rows
        ],
    )
    yield ""
    yield (
        "Of the last epoch that was trained. A partial run was cut off before its learning rate came down: "
        "its numbers are not a result of the recipe. Images/s and s are those with other runs beside it."
    )


def comparison(records: Path) -> Iterator[str]:
    """The finished runs, compared."""
    yield "# Finished runs, compared"
    yield ""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(records) as archive:
            archive.extractall(folder, filter="data")
        if not list(Path(folder).glob("runs/*/results.json")):
            yield "No run has finished."
            return
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        subprocess.run(
            [sys.executable, "-m", "noisybsd.compare", "runs", "out=table.md"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        yield from Path(folder, "table.md").read_text("utf-8").splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    parts = [
        speed(args.folder / "step.csv"),
        tests(args.folder / "gpu_tests.txt"),
        runs(read_csv(args.folder / "status.csv")),
        comparison(args.folder / "records.tar.gz"),
    ]
    lines = ["# One GPU, a quarter of an hour", ""]
    for part in parts:
        lines += [*part, ""]
    args.out.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
