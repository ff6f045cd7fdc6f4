"""The record of a run: results.json, and what a run remembers that no step of training needs."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from noisybsd import distributed
from noisybsd.config import Config
from noisybsd.runs.environment import describe_environment
from noisybsd.runs.records import RESULTS_SCHEMA


class RunRecord:
    """The run's id at W&B, the training images that it could not read, and when it was made longer; part of
    the checkpoint."""

    def __init__(self, state: Mapping[str, Any] | None = None):
        """Args: state: the checkpoint that the run goes on from; None: it begins."""
        self.wandb_id: str = secrets.token_hex(4) if state is None else state["wandb_id"]
        self._skipped_before: list[str] = [] if state is None else state["skipped"]
        # the epochs after which the run was made longer
        self.extended_after: list[int] = [] if state is None else state["extended_after"]

    def skipped(self, now: Iterable[str]) -> list[str]:
        """The images that any process could not read, each with the reason. All processes take part.

        Args:
            now: by this process, since it started.
        """
        mine = [*self._skipped_before, *now]
        return list(dict.fromkeys(itertools.chain(*distributed.each(mine))))

    def state(self, skipped_now: Iterable[str]) -> dict[str, Any]:
        """What a checkpoint holds of it. All processes take part."""
        return {
            "skipped": self.skipped(skipped_now),
            "wandb_id": self.wandb_id,
            "extended_after": self.extended_after,
        }


def data_notes(notes: Mapping[str, Any], skipped: Sequence[str]) -> dict[str, Any]:
    """What results.json says of the data: the dataset's notes, with the images skipped in training."""
    return {
        **notes,
        "skipped_images": notes.get("skipped_images", 0) + len(skipped),
        "skipped": [*notes.get("skipped", []), *skipped][:20],
    }


def run_results(
    config: Config,
    history: Sequence[Mapping[str, Any]],
    diagrams: Mapping[str, Any],
    about: Mapping[str, Any],
    device: torch.device,
    *,
    images_seen: int,
    network_passes: int,
    train_seconds: float,
    seconds: float,
) -> dict[str, Any]:
    """results.json. The headline is the last epoch; the best one peeks at the test set.

    Args:
        history: the rows of metrics.jsonl.
        diagrams: reliability diagrams, of the network under "", of the weight average under "_ema".
        about: what ran: precision, dataset, sizes of the splits, data_sha256, data (`data_notes`),
            extended_after.
        images_seen: image views apart, over all epochs.
        network_passes: of single images; an image forward counts 1, backward 2.
        train_seconds: of the steps alone, for images_per_second.
        seconds: training and evaluating, over all parts of the run.
    """
    last = history[-1]
    accuracies = [row["test_accuracy"] for row in history]
    return {
        "schema": RESULTS_SCHEMA,
        "recipe": config.recipe,
        "method": config.method,
        "seed": config.seed,
        "network": config.network.name,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "world_size": distributed.world_size(),
        **about,
        "noise_rate": last.get("noise_rate"),
        "test_accuracy_last": accuracies[-1],
        "test_accuracy_last10_mean": float(np.mean(accuracies[-10:])),
        "test_accuracy_best": max(accuracies),
        "test_accuracy_best_note": "an oracle: the epoch is chosen on the test set",
        "test_accuracy_ema_last": last.get("test_accuracy_ema"),
        "test_knn_accuracy_last": last.get("test_knn_accuracy"),
        "test_ece_last": last["test_ece"],
        "test_ece_ema_last": last.get("test_ece_ema"),
        "uncalibrated_ece_last": last.get("uncalibrated_ece"),
        "uncalibrated_ece_ema_last": last.get("uncalibrated_ece_ema"),
        "temperature": last.get("temperature"),
        "temperature_ema": last.get("temperature_ema"),
        "test_nll_last": last["test_nll"],
        "test_brier_last": last["test_brier"],
        "label_correction_accuracy": last.get("label_correction_accuracy"),
        "noise_detection_auroc": last.get("noise_detection_auroc"),
        "memorised_fraction": last.get("memorised_fraction"),
        "memorisation": last.get("memorisation"),
        "reliability": diagrams[""],
        "reliability_ema": diagrams.get("_ema"),
        "network_passes": network_passes / images_seen,  # per sample and epoch
        "images_per_second": images_seen / train_seconds,
        "seconds": seconds,
        **describe_environment(device),
    }
