"""Checkpoints of no run, whole enough to be read."""

from __future__ import annotations

from typing import Any

import torch


def state(**changes: Any) -> dict[str, Any]:
    """What a checkpoint of a run that was interrupted in its first epoch holds, with `changes`."""
    return {
        "config": {"recipe": "test", "method": "ce", "seed": 0, "epochs": 3},
        "data_sha256": "0" * 64,
        "modules": {"network": {"w": torch.zeros(3)}},
        "optimizer": {"state": {}, "param_groups": []},
        "step": 1,
        "seconds": 1.0,
        "images_seen": 32,
        "network_passes": 96,
        "train_seconds": 1.0,
        "skipped": [],
        "history": [],
        "wandb_id": "0a1b",
        "world_size": 1,
        "precision": "fp32",
        "extended_after": [],
        "input": {
            "class_names": ["cat", "dog"],
            "channels": 3,
            "stored_size": 8,
            "size": 8,
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
        },
    } | changes


def epoch(number: int, **changes: Any) -> dict[str, Any]:
    """A row of the history, of epochs of four steps."""
    return {
        "epoch": number,
        "step": 4 * number,
        "test_accuracy": 0.5,
        "test_ece": 0.1,
        "test_nll": 1.0,
        "test_brier": 0.5,
    } | changes
