"""What runs have written is checked when it is read: file and field are named."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import states

from noisybsd.errors import UserError
from noisybsd.runs.checkpoint import CheckpointError, State, load_checkpoint, save_checkpoint
from noisybsd.runs.records import Epoch, Results, mistakes, read_history, read_json

# values of every kind but the right one
OTHERS: tuple[Any, ...] = (None, "x", [1], {"a": 1}, True, -1, math.nan, math.inf)
# of a checkpoint's fields, those of OTHERS that they may be
FITS: dict[str, tuple[Any, ...]] = {
    "config": ({"a": 1},),
    "data_sha256": ("x",),
    "wandb_id": ("x",),
    "extended_after": ([1],),
}


INPUT = {
    "class_names": ["a", "caf\udce9"],
    "channels": 1,
    "stored_size": 9,
    "size": 8,
    "mean": [0.5],
    "std": [0.5],
}


def test_a_whole_state_is_whole() -> None:
    assert list(mistakes(State, states.state(input=INPUT))) == []
    assert list(mistakes(State, states.state())) == []
    history = [states.epoch(1), states.epoch(2, memorised_fraction=None)]
    assert list(mistakes(State, states.state(history=history, step=9, precision="bf16"))) == []
    assert list(mistakes(State, states.state(skipped=["caf\udce9.png: damaged"]))) == []


@pytest.mark.parametrize("field", states.state())
def test_a_field_of_a_checkpoint_that_is_missing_or_wrong_is_named(
    field: str, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    without = states.state()
    del without[field]
    save_checkpoint(without, path)
    with pytest.raises(CheckpointError, match=rf"^{path}: damaged: it has no {field}$"):
        load_checkpoint(path)
    for value in OTHERS:
        if not any(value is fit or value == fit for fit in FITS.get(field, ())):
            save_checkpoint(states.state(**{field: value}), path)
            with pytest.raises(CheckpointError, match=rf"^{path}: damaged: (it has no )?{field}"):
                load_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"history": [states.epoch(2)], "step": 8}, "its epochs are not 1, 2, 3"),
        ({"history": [states.epoch(1)], "step": 3}, "step is 3, before the last one of history"),
        ({"history": [states.epoch(1, test_ece=None)], "step": 4}, "history.0.test_ece is None"),
        ({"history": [states.epoch(1, loss="low")], "step": 4}, "history.0.loss is 'low'"),
        ({"train_seconds": 0.0}, "step is 1, but images_seen or train_seconds is 0"),
        ({"modules": {"network": {"w": [1.0]}}}, r"modules.network.w is \[1.0\]"),
        ({"modules": {"ema": {"w": torch.tensor([1, math.nan])}}}, "modules.ema.w holds numbers"),
        ({"modules": {"network": {"w": torch.tensor([math.inf])}}}, "modules.network.w holds"),
        (
            {"optimizer": {"state": {0: {"m": torch.tensor(math.nan)}}, "param_groups": []}},
            "optimizer.state.0.m holds numbers that are not finite",
        ),
        ({"precision": "fp16"}, "precision is 'fp16'"),
        ({"world_size": 0}, "world_size is 0"),
        ({"wandb_id": "../x"}, r"wandb_id is '\.\./x'"),
        ({"input": INPUT | {"class_names": []}}, r"input.class_names is \[\]"),
        ({"input": INPUT | {"channels": 2}}, "input.channels is 2"),
        ({"input": INPUT | {"stored_size": 7}}, "input is {"),
        ({"input": INPUT | {"mean": [0.5, 0.5]}}, "input is {"),
        ({"input": INPUT | {"std": [0.0]}}, "input.std.0 is 0.0"),
    ],
)
def test_a_state_that_cannot_be_is_named(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(states.state(**changes), path)
    with pytest.raises(CheckpointError, match=rf"^{path}: damaged: .*{says}"):
        load_checkpoint(path)


RESULTS = {
    "test_accuracy_last": 0.9,
    "test_accuracy_last10_mean": 0.9,
    "test_accuracy_best": 1,
    "test_ece_last": 0.0,
    "network_passes": 3.0,
    "seconds": 1,
    "data_sha256": "0",
}


@pytest.mark.parametrize("field", RESULTS)
def test_a_field_of_the_results_that_is_missing_or_wrong_is_named(field: str) -> None:
    assert list(mistakes(Results, RESULTS)) == []
    assert list(mistakes(Results, {k: v for k, v in RESULTS.items() if k != field})) == [
        f"it has no {field}"
    ]
    for value in (None, [1], True, -1, "1" if field != "data_sha256" else 1):
        (mistake,) = mistakes(Results, {**RESULTS, field: value})
        assert mistake.startswith(f"{field} is {value!r}: ")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"noise_rate": "0.4"}, "noise_rate is '0.4'"),
        ({"noise_detection_auroc": 1.1}, "noise_detection_auroc is 1.1"),
        ({"reliability": {"confidence": [0.5], "accuracy": [], "count": [1]}}, "reliability is "),
        ({"reliability": {"confidence": [0.5], "accuracy": [0.5]}}, "it has no reliability.count"),
        (
            {"reliability": {"confidence": ["a"], "accuracy": [0.5], "count": [1]}},
            "reliability.confidence.0 is 'a'",
        ),
        ({"versions": ["torch"]}, "versions is ['torch']"),
        ({"data": {"pixels_verified": "yes"}}, "data.pixels_verified is 'yes'"),
    ],
)
def test_results_that_cannot_be_are_named(changes: dict[str, Any], says: str) -> None:
    (mistake,) = mistakes(Results, {**RESULTS, **changes})
    assert mistake.startswith(says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "damaged: "),
        (b"[]", "damaged: it holds no JSON object"),
        (b"null", "damaged: it holds no JSON object"),
        (b'{"a": NaN}', "damaged: NaN is not JSON"),
        (b"[" * 10**6, "damaged: "),
        (b'{"a": ' + b"9" * 5000 + b"}", "damaged: "),
        (b"\xff", "is no text in UTF-8"),
    ],
)
def test_json_that_is_none(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: {says}")


def test_a_history_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [states.epoch(1), states.epoch(2, memorised_fraction=None)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert read_history(path) == rows
    path.write_text("")
    assert read_history(path) == []


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ("{", "Expecting property name"),
        ("3", "it is 3: "),
        ('{"epoch": 2}', "it has no test_accuracy"),
        ('{"epoch": 3, "test_accuracy": 0.5}', "epoch is 3, expected 2"),
        ('{"epoch": "2", "test_accuracy": 0.5}', "epoch is '2'"),
        ('{"epoch": 2, "test_accuracy": 0.5, "loss": [1]}', "loss is [1]"),
        ('{"epoch": 2, "test_accuracy": 1.5}', "test_accuracy is 1.5"),
        ("", "Expecting value"),
    ],
)
def test_a_damaged_line_is_named(second: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{json.dumps(states.epoch(1))}\n{second}\n")
    with pytest.raises(UserError) as caught:
        read_history(path)
    assert str(caught.value).startswith(f"{path}: damaged: line 2: {says}")
    assert "Training writes it anew" in str(caught.value)


def test_numbers_are_numbers() -> None:
    assert list(mistakes(Epoch, {"epoch": 1, "test_accuracy": 1, "loss": 3})) == []
    for value in (True, "1", [1], math.nan):
        assert list(mistakes(Epoch, {"epoch": 1, "test_accuracy": 1, "loss": value}))
