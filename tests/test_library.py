"""`import noisybsd` for scripts of one's own: what it changes, and data and runs in Python."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import noisybsd
from noisybsd.data.noise import NOISE_MODELS, inject

CHECK = """
import json, logging, os, signal, sys, warnings
loggers = lambda: (logging.root.handlers[:], logging.root.level, logging.raiseExceptions, logging.lastResort)
state = lambda: (dict(os.environ), warnings.filters[:], loggers(), sys.excepthook, signal.getsignal(2))
before = state()
import noisybsd
heavy = [name for name in ("torch", "numpy", "pyarrow", "pydantic") if name in sys.modules]
assert state() == before, "import noisybsd"
import torch
flags = lambda: (
    torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark, torch.get_num_threads(),
    torch.are_deterministic_algorithms_enabled(),
    torch.get_default_dtype(), torch.initial_seed(), torch.is_grad_enabled(),
)
before, torch_before = state(), flags()
for name in noisybsd.__all__:
    getattr(noisybsd, name)
others = state()
print(json.dumps({
    "heavy": heavy,
    "environment": sorted(set(others[0].items()) ^ set(before[0].items())),
    "logging": others[2] == before[2], "hooks": others[3:] == before[3:],
    "flags": flags() == torch_before,
    "dir": set(noisybsd.__all__) <= set(dir(noisybsd)),
}))
"""


def test_importing_changes_nothing_and_imports_nothing_else() -> None:
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "heavy": [],
        "environment": [],
        "logging": True,
        "hooks": True,
        "flags": True,
        "dir": True,
    }


def test_the_names_are_those_promised_and_typed() -> None:
    assert noisybsd.__all__ == sorted(noisybsd.__all__)
    for name in noisybsd.__all__:
        assert (getattr(noisybsd, name).__doc__ or "").strip(), name
    assert (Path(noisybsd.__file__).parent / "py.typed").is_file()
    with pytest.raises(AttributeError, match="has no attribute 'bsd'"):
        noisybsd.bsd  # noqa: B018


def test_noise_is_that_of_the_command() -> None:
    labels = np.arange(300) % 10
    noisy = noisybsd.inject_noise(labels.tolist(), "symmetric", 0.4, seed=3)
    assert (
        noisy.tolist() == inject(labels, "symmetric", 0.4, num_classes=10, seed=3).labels.tolist()
    )
    mapped = noisybsd.inject_noise(labels, "asymmetric", 1.0, class_map={0: 1})
    assert mapped.tolist() == np.where(labels == 0, 1, labels).tolist()
    random = noisybsd.inject_noise(labels, "instance", 0.3, features=np.eye(10)[labels])
    assert 0.1 < (random != labels).mean() < 0.5
    tensor = torch.eye(10, dtype=torch.float64)[torch.from_numpy(labels)]
    for features in (tensor, tensor.tolist(), tensor.bfloat16()):
        again = noisybsd.inject_noise(labels, "instance", 0.3, features=features)
        assert again.tolist() == random.tolist()
    for kind in NOISE_MODELS:
        assert kind in (noisybsd.inject_noise.__doc__ or "")


MASKED = np.ma.masked_equal([0, 1], 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"kind": "symetric"}, "kind: got 'symetric', did you mean symmetric?"),
        ({"rate": 1.5}, "rate: got 1.5, valid: 0 to 1"),
        ({"rate": "0.4"}, "rate: got '0.4', valid: 0 to 1"),
        ({"kind": ["symmetric"]}, "kind: got ['symmetric'], did you mean symmetric?"),
        ({"seed": -1}, "seed: got -1; valid: a whole number from 0"),
        ({"seed": None}, "seed: got None; valid: a whole number from 0"),
        ({"seed": 1.5}, "seed: got 1.5; valid: a whole number from 0"),
        ({"seed": 2**64}, "seed: got 18446744073709551616, valid: 0 to 2**64 - 1"),
        ({"num_classes": "3"}, "num_classes: got '3'; valid: a whole number from 2"),
        ({"labels": [0, -1]}, "labels: index 1: label -1 is out of range"),
        ({"labels": [0, -1, 1]}, "labels: index 1: label -1 is out of range"),
        ({"labels": [0.5]}, "labels: got float"),
        ({"labels": [0, 3], "num_classes": 2}, "label 3 is out of range, valid: 0 to 1"),
        ({"labels": [0, 0]}, "got 1 class, valid: 2 classes or more"),
        ({"kind": "asymmetric"}, "class_map: got None, but kind='asymmetric' needs class_map"),
        (
            {"kind": "asymmetric", "class_map": [1, 0]},
            "class_map: got [1, 0]; valid: {true class: ",
        ),
        (
            {"kind": "asymmetric", "class_map": {"0": 1}},
            "class_map: got '0'; valid: a whole number",
        ),
        ({"kind": "asymmetric", "class_map": {0: 7}}, "class_map: got 0: 7, valid: 0 to 1"),
        (
            {"kind": "superclass_next", "superclasses": ["a", "b"]},
            "superclasses: got shape (2,) of <U1",
        ),
        (
            {"kind": "instance", "features": [["a"], ["b"]]},
            "features: got [['a'], ['b']], which is",
        ),
        ({"kind": "matrix", "rate": 0}, "matrix: got None, but kind='matrix' needs matrix"),
        ({"kind": "matrix", "matrix": np.eye(2)}, "rate: kind=matrix has its rates in matrix"),
        ({"kind": "matrix", "rate": 0, "matrix": np.ones((2, 2))}, "matrix: row 0"),
        (
            {"kind": "matrix", "rate": 0, "matrix": "m.csv"},
            "matrix: got 'm.csv', which is no array",
        ),
        ({"class_map": {0: 1}}, "class_map: goes with kind=asymmetric only, got kind=symmetric"),
        ({"features": np.eye(2)}, "features: goes with kind=instance only, got kind=symmetric"),
        ({"superclasses": [0, 0]}, "goes with kind=superclass_next or superclass_random only"),
        (
            {"kind": "symetric", "class_map": {0: 1}},
            "kind: got 'symetric', did you mean symmetric?",
        ),
        ({"rate": True}, "rate: got True, valid: 0 to 1"),
        (
            {"labels": MASKED},
            "labels: got a masked array, in which 1 values are hidden; valid: an ",
        ),
    ],
)
def test_wrong_noise_is_answered_in_python(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        noisybsd.inject_noise(**{"labels": [0, 1], "kind": "symmetric", "rate": 0.5, **arguments})
    assert says in str(caught.value)
    assert "noise." not in str(caught.value)


def test_a_dataset_by_name() -> None:
    found = noisybsd.load_dataset("digits", limit=50)
    assert found.train.images.shape == (50, 1, 8, 8) and len(found.class_names) == 10


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("digit", {}, "name: got 'digit'"),
        ("digits", {"limits": 5}, "limits: unknown key (got 5); did you mean limit?"),
        ("digits", {"limit": 0}, "got 0 (valid: int or null ≥ 1"),
        ("cifar10", {"download": False, "root": "nowhere"}, "nowhere"),
        (
            "cifar10",
            {"download": False, "root": "old/data.2020"},
            "old/data.2020/cifar-10-batches-py",
        ),
        ("digits", {"labels": "metadata.csv"}, "labels: got 'metadata.csv'"),
    ],
)
def test_wrong_data_are_answered_in_python(name: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        noisybsd.load_dataset(name, **settings)
    assert says in str(caught.value)


def test_a_run_from_python(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "device": "cpu",
        "epochs": 2,
        "batch_size": 32,
        "data": {"limit": 64, "root": tmp_path},
        "network.width": 4,
        "network.embedding_dim": 8,
        "neighbours": {"k": 3, "engine": "torch"},
        "tracking.wandb": "disabled",
        "run.dir": tmp_path / "run",
    }
    run = noisybsd.train("digits_sym40", **settings)
    assert run.path == tmp_path / "run" and run.results["epochs"] == 2
    assert run.labels.num_rows == 64
    assert run.corrected().tolist() == run.labels["suggested"].to_pylist()
    assert run.report(top=5).read_text("utf-8").startswith("<!DOCTYPE html>")
    with pytest.raises(ValueError, match="top: got 0; valid: a whole number from 1"):
        run.report(top=0)
    again = noisybsd.train("digits_sym40", **settings)  # finished: found, not trained again
    assert again.results == run.results and repr(again) == f"Run({str(run.path)!r})"
    settings |= {"epochs": 3, "run.resume": settings.pop("run.dir")}
    longer = noisybsd.train("digits_sym40", **settings)
    assert longer.path == run.path and longer.results["epochs"] == 3
    (run.path / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results\.json: damaged"):
        _ = run.results


def test_wrong_settings_of_a_run_are_listed_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        noisybsd.train("digits_sym40", epochs=0, **{"optimizer.lrr": 1.0})
    assert "epochs: " in str(caught.value) and "optimizer.lrr: unknown key" in str(caught.value)
    with pytest.raises(ValueError, match="recipe: got 'digit'"):
        noisybsd.train("digit")
    with pytest.raises(ValueError, match="holds no finished run"):
        noisybsd.Run(tmp_path)


def test_a_run_has_a_classifier(tmp_path: Path) -> None:
    run = noisybsd.train(
        "digits_sym40", epochs=1, **{"data.limit": 64, "batch_size": 32, "run.dir": tmp_path / "r"}
    )
    image = (
        noisybsd.load_dataset("digits")
        .test.images[:1]
        .expand(-1, 3, -1, -1)[0]
        .permute(1, 2, 0)
        .numpy()
    )
    assert run.classifier.predict(image).classes[0] in list("0123456789")
