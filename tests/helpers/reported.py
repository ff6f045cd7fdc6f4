"""Runs and findings for the tests of the label report."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from noisybsd.data.splits import Split
from noisybsd.engine.saved import load_run_config, load_trainer
from noisybsd.engine.trainer import Trainer
from noisybsd.report.findings import FORMAT, Findings, label_table, pooled
from noisybsd.train import main as train

DIGITS = (
    "recipe=digits_sym40",
    "device=cpu",
    "data.limit=300",
    "epochs=3",
    "batch_size=32",
    "network.width=4",
    "network.embedding_dim=8",
    "neighbours.k=7",
    "tracking.wandb=disabled",
)

# as hostile as a class or file name can be
NASTY_CLASSES = (
    '<b onclick="alert(1)">&amp;',
    "</script><script>alert(2)</script>",
    "$x_1$ 猫 \u2028 'quoted',",
)
NASTY_FILE = "<i>näme 猫 &lt; 'it',\u2028 {{ data }}"


def hide_cleanlab(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where cleanlab is not installed: its import takes seconds."""
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)


def run(directory: Path, *settings: str) -> Path:
    """A finished run in `directory`; with the default method, whose beliefs move within few epochs."""
    if not any(setting.startswith("method=") for setting in settings):
        settings = ("options.prior_strength=1", *settings)
    assert train([*DIGITS, *settings, f"run.dir={directory}"]) == 0
    return directory


def trainer_of(directory: Path) -> Trainer:
    """The trainer of a run, as its checkpoint has it."""
    trainer = load_trainer(directory, load_run_config(directory, []))
    assert trainer is not None
    return trainer


def own_images(root: Path, count: int = 90) -> list[str]:
    """Image files of three nasty classes, told apart by their colour, and a manifest; settings to train.

    Every tenth label is wrong, and nobody says so.
    """
    random = np.random.default_rng(0)
    folder = root / "images"
    folder.mkdir(parents=True)
    with (root / "list.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label"))
        for i in range(count):
            true = i % 3
            given = (true + 1) % 3 if i % 10 == 0 else true
            pixels = random.integers(0, 60, (20, 24, 3))
            pixels[..., true] += 150
            name = f"images/{i:03d} {NASTY_FILE}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(root / name)
            writer.writerow((name, NASTY_CLASSES[given]))
    return [
        "recipe=own",
        f"data.root={root}",
        "data.manifest=list.csv",
        "data.size=16",
        "device=cpu",
        "epochs=3",
        "batch_size=16",
        "network.name=small_cnn",
        "network.pretrained=false",
        "network.width=4",
        "augment.name=cifar",
        "optimizer.warmup_epochs=0",
        "neighbours.k=5",
        "tracking.wandb=disabled",
    ]


def findings(
    belief: Any,
    labels: Sequence[int],
    *,
    clean: Sequence[int] | None = None,
    votes: Any = None,
    network: Any = None,
    margin: Any = None,
    network_prob: Any = None,
    visits: Any = None,
    test: Any = None,
    test_labels: Sequence[int] | None = None,
    test_kind: str = "clean",
    class_names: Sequence[str] | None = None,
    neighbours: list[list[int]] | None = None,
    paths: list[str] | None = None,
) -> Findings:
    """Findings of no run, from a belief (N,K) and labels (N,); the rest says nothing in particular."""
    belief = np.asarray(belief, np.float32)
    given = np.asarray(labels, np.int64)
    n, classes = belief.shape
    names = tuple(class_names or map(str, range(classes)))
    rows = np.arange(n)
    votes = np.zeros_like(belief) if votes is None else np.asarray(votes, np.float32)
    network = belief if network is None else np.asarray(network, np.float32)
    right = None if clean is None else np.asarray(clean, np.int64)
    train = Split(torch.zeros(n, 1, 8, 8, dtype=torch.uint8), given, right, paths)
    table = label_table(
        train,
        names,
        pooled(belief, network),
        network,
        votes,
        neighbours or [[] for _ in rows],
        network_prob=np.asarray(network[rows, given] if network_prob is None else network_prob),
        margin=np.zeros(n, np.float32) if margin is None else np.asarray(margin, np.float32),
        visits=np.ones(n) if visits is None else np.asarray(visits, np.float64),
        left_epoch=np.full(n, -1),
        strength=None,
    )
    test = np.eye(classes)[:1] if test is None else test
    arrays = {
        "belief": belief,
        "network": network,
        "neighbours": votes,
        "labels": given,
        "test": np.asarray(test, np.float32),
        "thumbnails": np.full((n, 64), np.nan, np.float16),
        "test_labels": np.asarray([0] if test_labels is None else test_labels, np.int64),
    }
    about = {
        "format": FORMAT,
        "run": "runs/none",
        "dataset": "none",
        "class_names": list(names),
        "data_sha256": "0" * 64,
        "epoch": 1,
        "method": "none",
        "test_labels": test_kind,
        "noisybsd": "0",
        "holds_belief": True,
    }
    return Findings(table, arrays, about)
