"""A finished run as its files alone, for whatever reads finished runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from noisybsd.config import load_config, save_config

EPOCHS = 12


def make_run(
    directory: Path, *arguments: str, accuracy: float = 0.9, results: dict[str, Any] | None = None
) -> Path:
    """A finished run of `EPOCHS` epochs whose accuracy rises by 0.01 an epoch up to `accuracy`."""
    directory.mkdir(parents=True)
    config = load_config(["recipe=digits_sym40", "method=ce", f"epochs={EPOCHS}", *arguments])
    save_config(config, directory / "config.yaml", "made by a test")
    accuracies = [accuracy - 0.01 * (config.epochs - 1 - i) for i in range(config.epochs)]
    accuracies[2] = accuracy + 0.02  # the best epoch is not the last
    rows = [
        {
            "epoch": i + 1,
            "test_accuracy": value,
            "test_accuracy_ema": value + 0.005,
            "memorised_fraction": 0.02 * i,
        }
        for i, value in enumerate(accuracies)
    ]
    (directory / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found: dict[str, Any] = {
        "schema": 1,
        "test_accuracy_last": accuracies[-1],
        "test_accuracy_last10_mean": float(np.mean(accuracies[-10:])),
        "test_accuracy_best": max(accuracies),
        "test_accuracy_ema_last": accuracies[-1] + 0.005,
        "test_ece_last": 0.05 + (1 - accuracy) / 10,
        "test_ece_ema_last": 0.04,
        "label_correction_accuracy": accuracy - 0.1,
        "noise_detection_auroc": accuracy + 0.05,
        "memorised_fraction": 0.22,
        "reliability": {"confidence": [None, 0.8], "accuracy": [None, 0.7], "count": [0, 100]},
        "reliability_ema": {"confidence": [0.3, 0.9], "accuracy": [0.2, 0.9], "count": [50, 50]},
        "network_passes": 3.0,
        "seconds": 100.0 + config.seed,
        "noise_rate": 0.36 + 0.01 * config.seed,
        "data_sha256": f"{config.seed:x}" * 64,
        "data": {"pixels_verified": None},
        "hardware": "a machine, 2 cores",
        "versions": {"noisybsd": "0.1.0", "torch": "2.15.0"},
        "git_commit": "0123abc-dirty",
    }
    (directory / "results.json").write_text(json.dumps(found | (results or {})))
    return directory
