"""Kill a training run with SIGKILL again and again: does it end as if nothing had happened?

    python benchmarks/kill.py --out results/cost/kill.csv

Trains a recipe once without interruption. Then starts it anew with the same command and kills the process
at a random moment of its training, `--kills` times in the same run directory, wherever it happens to be: in
a step, evaluating, writing. The same command once more lets it end. Compared bit by bit are weights,
optimiser, moving average, posterior, bank, monitor, metrics.jsonl and results.json, all but the times. One
row a kill; `identical` stands in all of them.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import write_csv

from noisybsd.runs.checkpoint import load_checkpoint

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from helpers.compared import assert_same, outcome


def start(settings: list[str], run: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "noisybsd.train", *settings, f"run.dir={run}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)


def wait_for_training(process: subprocess.Popen[bytes], run: Path, times: int) -> None:
    """Return when training in `run` has begun so many times, or the process has ended."""
    log = run / "log.txt"
    while process.poll() is None and not (
        log.exists() and log.read_text("utf-8").count("run directory") >= times
    ):
        time.sleep(0.01)


def finish(settings: list[str], run: Path) -> float:
    """Train to the end; the seconds of training."""
    process = start(settings, run)
    wait_for_training(process, run, times=1)
    began = time.monotonic()
    if process.wait() != 0:
        raise SystemExit(f"{run} ended with {process.returncode}")
    return time.monotonic() - began


def run(settings: list[str], where: Path, kills: int, seed: int) -> list[dict[str, Any]]:
    """One row a kill, of training with `settings` in new directories in `where`."""
    undisturbed, killed = where / "undisturbed", where / "killed"
    training = finish(settings, undisturbed)
    moments = random.Random(seed)
    rows = []
    for kill in range(1, kills + 1):
        process = start(settings, killed)
        wait_for_training(process, killed, times=kill)
        # 0.7 of the run on average, so that no kill comes too late on a machine that others use too
        seconds = moments.uniform(0, 1.4 * training / kills)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        rows.append({"kill": kill, "seconds": round(seconds, 2), **progress(killed)})
        print(*rows[-1].values(), sep="\t", flush=True)
    finish(settings, killed)
    try:
        assert_same(outcome(killed), outcome(undisturbed))
        identical = "yes"
    except AssertionError as difference:
        identical = f"no: {difference}"
    return [row | {"identical": identical} for row in rows]


def progress(directory: Path) -> dict[str, Any]:
    """How far a killed run had come: epochs told, step saved, whether it was writing, whether done."""
    metrics, checkpoint = directory / "metrics.jsonl", directory / "checkpoint.pt"
    return {
        "epoch": len(metrics.read_text().splitlines()) if metrics.exists() else 0,
        "step_saved": load_checkpoint(checkpoint)["step"] if checkpoint.exists() else 0,
        "while_writing": "yes" if any(directory.glob(".*.tmp")) else "no",
        "finished": "yes" if (directory / "results.json").exists() else "no",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("settings", nargs="*", default=["recipe=digits_sym40"], metavar="key=value")
    options = parser.parse_args()
    settings = [
        *("run.checkpoint_seconds=0", *options.settings),
        *("device=cpu", "tracking.wandb=disabled"),
    ]
    with tempfile.TemporaryDirectory() as where:
        rows = run(settings, Path(where), options.kills, options.seed)
    about = {"settings": " ".join(settings), "threads": 1}
    write_csv(options.out, [row | about for row in rows])
    print("identical:", rows[-1]["identical"])


if __name__ == "__main__":
    main()
