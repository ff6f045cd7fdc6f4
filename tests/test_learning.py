"""Learning works: two thirds of the demo's run on digits with 40 % of the labels drawn at random.

The bounds leave room for another machine's arithmetic and none for a method that does not work: with
the given labels as targets the same run has an ECE of 0.34, though it is 5 points above cross-entropy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noisybsd.data.dataset import load_dataset
from noisybsd.data.noise import inject
from noisybsd.report.write import report
from noisybsd.settings import DataConfig, NoiseConfig
from noisybsd.train import main


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """results.json of a run of 40 epochs, by method."""
    folder = tmp_path_factory.mktemp("learning")
    found = {}
    for method in ("bsd_plus", "ce"):
        settings = ["recipe=digits_sym40", f"method={method}", "epochs=40", "seed=5", "device=cpu"]
        run = folder / method
        assert main([*settings, "tracking.wandb=disabled", f"run.dir={run}"]) == 0
        found[method] = json.loads((run / "results.json").read_text("utf-8"))
    return found


def test_our_method_learns_through_wrong_labels(results: dict[str, dict[str, Any]]) -> None:
    ours = results["bsd_plus"]
    assert ours["test_accuracy_last"] >= 0.95
    assert ours["test_ece_last"] <= 0.05
    assert ours["noise_detection_auroc"] >= 0.97
    assert ours["label_correction_accuracy"] >= 0.97  # 0.63 of the given labels are right


def test_our_method_is_ahead_of_cross_entropy(results: dict[str, dict[str, Any]]) -> None:
    ours, plain = (results[method]["test_accuracy_last"] for method in ("bsd_plus", "ce"))
    assert ours >= plain + 0.05
    assert plain >= 0.8  # the baseline learns too


def test_three_annotators_are_worth_more_than_one(tmp_path: Path) -> None:
    """40 % of each one's labels are drawn at random: 36 % are wrong of one annotator, and 21 % of the
    majority's. With other seeds the accuracies were 1 and 3 points apart."""
    clean = load_dataset(DataConfig(), NoiseConfig(), seed=0).train.labels
    votes = np.stack(
        [inject(clean, "symmetric", 0.4, 10, seed).labels for seed in (7, 8, 9)], axis=1
    )
    files = {"three": "label_1,label_2,label_3", "one": "label_1"}
    found = {}
    for name, header in files.items():
        labels = votes[:, : header.count("label")]
        np.savetxt(tmp_path / f"{name}.csv", labels, "%d", ",", header=header, comments="")
        settings = ["recipe=digits_sym40", "noise.name=none", "noise.rate=0", "epochs=5", "seed=2"]
        settings += [f"data.labels={tmp_path / name}.csv", "neighbours.k=0", "ema.decay=0"]
        run = tmp_path / name
        assert main([*settings, "device=cpu", "tracking.wandb=disabled", f"run.dir={run}"]) == 0
        found[name] = json.loads((run / "results.json").read_text("utf-8"))
    assert found["one"]["noise_rate"] - found["three"]["noise_rate"] > 0.1
    accuracy = {name: each["test_accuracy_last"] for name, each in found.items()}
    right = {name: each["label_correction_accuracy"] for name, each in found.items()}
    assert accuracy["three"] >= accuracy["one"] + 0.02
    assert right["three"] >= right["one"] + 0.1 and right["three"] >= 0.95
    assert right["one"] >= 0.75  # 64 % are given right: a belief moves within five epochs too
    agreement = report(tmp_path / "three", [])["estimates"]["agreement"]
    assert agreement["pairs"] == pytest.approx((votes == np.roll(votes, 1, axis=1)).mean())
