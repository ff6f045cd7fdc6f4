"""Write the results of a GPU day from the files that it brought back.

    python benchmarks/gpu_day/write_up.py FOLDER results/gpu.md

FOLDER holds status.csv and records.tar.gz, and step.csv, step_compiled.csv, fast_network.csv and
gpu_tests.txt if the day came so far. The runs are compared by `python -m noisybsd.compare`; a run that was
cut off is called partial and is not compared.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

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


def speed(files: Sequence[Path]) -> Iterator[str]:
    """Of whole training steps, from the tables of step.py."""
    yield "## Speed of a training step"
    yield ""
    rows = [row for file in files if file.exists() for row in read_csv(file)]
    if not rows:
        yield "Not measured."
        return
    yield from table(
        (
            "network",
            "method",
            "batch",
            "settings",
            "ms",
            "image-views/s",
            "s an epoch",
            "TFLOP/s",
            "share of peak %",
            "peak memory MB",
        ),
        [
            (
                row["network"],
                row["method"],
                row["batch"],
                row["settings"],
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
    yield about(rows[0])
    yield ""
    yield (
        "Aimed at: 65,000 image-views/s on an H200. Published speeds: docs/performance.md. Two views of "
        "each image; an epoch of 50,000 images, without evaluation; the peak: benchmarks/step.py --help."
    )


def about(row: Row) -> str:
    return f"{row['hardware']}; {row['versions']}; commit {row['git_commit']}"


def network(file: Path) -> Iterator[str]:
    """Whether the fast network learns as its source says, from fast_network.csv."""
    yield "## The fast network on clean labels"
    yield ""
    if not file.exists():
        yield "Not measured."
        return
    rows = read_csv(file)
    keys = ("accuracy", "mirrored", "shifted", "train_accuracy")
    variants = dict.fromkeys(row["variant"] for row in rows)

    def mean(variant: str, key: str) -> str:
        return f"{statistics.mean(float(r[key]) for r in rows if r['variant'] == variant):.2f}"

    yield from table(
        ("training", "n", "test %", "with mirror images", "and with shifts", "last batches %"),
        [
            (
                variant,
                str(sum(row["variant"] == variant for row in rows)),
                *(mean(variant, key) for key in keys),
            )
            for variant in variants
        ],
    )
    yield ""
    yield about(rows[0])
    yield ""
    yield (
        f"{rows[0]['epochs']} epochs of {rows[0]['n_train']} images, width {rows[0]['width']}, mean over "
        "seeds. The names say what differs from the source's training; benchmarks/fast_network.py --help."
    )


def tests(file: Path) -> Iterator[str]:
    """What pytest said of the GPU tests."""
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    yield "## GPU tests"
    yield ""
    yield f"`{lines[-1].strip('= ')}`" if lines else "Not measured."
    yield from (f"- `{line}`" for line in lines if line.startswith(("FAILED", "ERROR")))


def state(row: Row) -> str:
    """How far a run that was started came, in words."""
    if row["state"] == "finished":
        return f"finished, {row['epochs']} epochs"
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
            if row["state"] != "waiting"
        ],
    )
    yield ""
    if waiting := [f"`{row['run']}`" for row in rows if row["state"] == "waiting"]:
        yield f"Not trained: {', '.join(waiting)}."
        yield ""
    yield (
        "Of the last epoch that was trained. A partial run was cut off before its learning rate came down: "
        "its numbers are not a result of the recipe. Images/s and s are those with other runs beside it."
    )


def comparison(records: Path) -> Iterator[str]:
    """The finished runs, compared where they trained on the same for as long."""
    yield "# Finished runs, compared"
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(records) as archive:
            archive.extractall(folder, filter="data")
        groups: dict[str, list[str]] = {}
        for results in sorted(Path(folder).glob("runs/*/results.json")):
            run = results.parent
            config = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
            data, noise = config["data"], config["noise"]
            name = f"{config['recipe']}: {data['name']}, labels {data['labels']}, "
            name += "" if noise["name"] == "none" else f"{noise['name']} noise {noise['rate']}, "
            groups.setdefault(f"{name}{config['epochs']} epochs", []).append(f"runs/{run.name}")
        if not groups:
            yield ""
            yield "No run has finished."
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        for name, members in groups.items():
            compare = [*("-m", "noisybsd.compare"), *members, "out=table.md", "published=false"]
            subprocess.run(
                [sys.executable, *compare],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": path},
                stdout=subprocess.DEVNULL,
                check=True,
            )
            yield from ("", f"## {name}", "")
            lines = Path(folder, "table.md").read_text("utf-8").splitlines()
            # the notes on hardware, versions and columns are alike in all groups
            yield from (line for line in lines if not line.startswith(("#", "- ")))
        if groups:
            yield from (line for line in lines if line.startswith("- ") and "made by:" not in line)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    parts = [
        speed([args.folder / "step.csv", args.folder / "step_compiled.csv"]),
        tests(args.folder / "gpu_tests.txt"),
        runs(read_csv(args.folder / "status.csv")),
        network(args.folder / "fast_network.csv"),
        comparison(args.folder / "records.tar.gz"),
    ]
    lines = ["# One GPU, a quarter of an hour", ""]
    for part in parts:
        lines += [*part, ""]
    args.out.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
