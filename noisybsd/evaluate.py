"""Evaluate a run's networks on its test set: `python -m noisybsd.evaluate run=DIR`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from noisybsd.config import Config, build_config, parse_overrides, read_yaml
from noisybsd.data import load_dataset
from noisybsd.environment import describe_environment, pick_device
from noisybsd.errors import UserError, command
from noisybsd.rundir import load_run_state, write_json
from noisybsd.trainer import Trainer

USAGE = """\
usage: python -m noisybsd.evaluate run=DIR [key=value …]

Measure the networks of a run, finished or not, on its test set: accuracy, calibration error (ECE), negative
log-likelihood, Brier score and k-NN accuracy, of the raw weights and of their moving average. Prints a
table and writes DIR/evaluation.json.

keys that may differ from the run's own:
  data.root=PATH, data.download=true|false, data.workers=N, device=auto|cpu|cuda,
  precision=auto|fp32|bf16, neighbours.k=N
"""

MAY_DIFFER = ("data.root", "data.download", "data.workers", "device", "precision", "neighbours.k")


def load_run_config(directory: Path, overrides: list[str]) -> Config:
    """The configuration of the run in `directory`, with `key=value` overrides of where things are.

    Raises:
        UserError: not a run directory, or an override of something the run's result depends on.
    """
    record = directory / "config.yaml"
    if not record.is_file():
        raise UserError(f"run={directory}: not a run directory, it has no config.yaml")
    for override in overrides:
        key = override.split("=", 1)[0]
        if key not in MAY_DIFFER:
            raise UserError(f"{key}: cannot differ from the run's; valid: {', '.join(MAY_DIFFER)}")
    return build_config(read_yaml(record), parse_overrides(overrides))


def evaluate_run(directory: Path, overrides: list[str]) -> dict[str, Any]:
    """Measure the networks in the latest checkpoint of the run in `directory`.

    Returns:
        What evaluation.json holds: epoch, test_accuracy, test_ece, test_nll, test_brier, each with
        `_ema` too, test_knn_accuracy, and machine and versions.
    """
    config = load_run_config(directory, overrides)
    device = pick_device(config)
    trainer = Trainer(config, load_dataset(config.data, config.noise, config.seed), device)
    state = load_run_state(directory)
    if state is None:
        raise UserError(f"run={directory}: has no checkpoint yet")
    trainer.load_state(state)
    return {
        "run": str(directory),
        "epoch": trainer.epoch,
        **trainer.evaluate(),
        "data_sha256": trainer.dataset.sha256,
        **describe_environment(device),
    }


@command
def main(arguments: list[str]) -> int:
    if not arguments or {"-h", "--help", "help"} & set(arguments):
        print(USAGE, end="")
        return 0 if arguments else 2
    runs = [a.removeprefix("run=") for a in arguments if a.startswith("run=")]
    if len(runs) != 1:
        raise UserError(f"give one run=DIR, got {len(runs)}; --help says more")
    directory = Path(runs[0]).expanduser()
    found = evaluate_run(directory, [a for a in arguments if not a.startswith("run=")])
    write_json(directory / "evaluation.json", found)

    table = Table(title=f"{directory}, after epoch {found['epoch']}")
    for column in ("network", "accuracy", "ECE", "NLL", "Brier", "k-NN accuracy"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, suffix in (("weights", ""), ("their moving average", "_ema")):
        names = [f"test_{n}{suffix}" for n in ("accuracy", "ece", "nll", "brier", "knn_accuracy")]
        values = [found.get(n) for n in names]
        if values[0] is not None:
            table.add_row(name, *("" if v is None else f"{v:.4f}" for v in values))
    Console().print(table)
    print(f"written to {directory / 'evaluation.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
