"""What training on frozen features costs: time and memory of `recipe=own_quick` on embeddings alone.

python benchmarks/frozen.py --out results/cost/frozen.csv
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import write_csv


def embeddings(folder: Path, count: int, width: int, classes: int) -> None:
    """Random clusters, four labels in ten wrong: e.npy (N,F) float16 and labels.csv."""
    random = np.random.default_rng(0)
    clean = random.integers(0, classes, count)
    given = np.where(random.random(count) < 0.4, random.integers(0, classes, count), clean)
    centres = random.normal(size=(classes, width)).astype(np.float16)
    array = np.lib.format.open_memmap(folder / "e.npy", "w+", np.float16, (count, width))
    for first in range(0, count, 1000):
        rows = slice(first, min(first + 1000, count))
        noise = random.normal(scale=3, size=(rows.stop - first, width))
        array[rows] = centres[clean[rows]] + noise.astype(np.float16)
    array.flush()
    lines = [
        f"{label},{'test' if i % 5 == 0 else 'train'}" for i, label in enumerate(given.tolist())
    ]
    (folder / "labels.csv").write_text("label,split\n" + "\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=62_500, help="four fifths are trained on")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        embeddings(Path(place), args.count, args.width, args.classes)
        run = [sys.executable, "-m", "noisybsd.train", "recipe=own_quick", f"run.dir={place}/run"]
        run += [
            f"data.embeddings={place}/e.npy",
            f"data.manifest={place}/labels.csv",
            f"epochs={args.epochs}",
        ]
        subprocess.run([*run, "device=cpu", "tracking.wandb=disabled"], check=True)
        results = json.loads(Path(place, "run", "results.json").read_text())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    row = {
        "samples": results["train_samples"],
        "width": args.width,
        "classes": args.classes,
        "epochs": args.epochs,
        "threads": torch.get_num_threads(),
        "seconds": round(results["seconds"], 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_gb": round(used.ru_maxrss / 2**20, 2),
    }
    write_csv(args.out, [row], torch.device("cpu"))


if __name__ == "__main__":
    main()
