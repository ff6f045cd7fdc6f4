"""The record of a run, from plain values."""

import pytest
import torch

from noisybsd.config import load_config
from noisybsd.runs.results import RunRecord, data_notes, run_results


def test_a_record_goes_on_where_the_checkpoint_left_it() -> None:
    begun = RunRecord()
    assert begun.wandb_id != RunRecord().wandb_id
    state = begun.state(["a.png: damaged"])
    again = RunRecord(state)
    assert again.wandb_id == begun.wandb_id
    # named once, however often it was tried
    assert again.skipped(["b.png: missing", "a.png: damaged"]) == [
        "a.png: damaged",
        "b.png: missing",
    ]


def test_notes_count_the_images_skipped_in_training() -> None:
    notes = {"pixels_verified": True, "skipped_images": 2, "skipped": ["x", "y"]}
    found = data_notes(notes, [f"{i}.png" for i in range(30)])
    assert found["skipped_images"] == 32 and found["pixels_verified"] is True
    assert found["skipped"][:3] == ["x", "y", "0.png"] and len(found["skipped"]) == 20
    assert notes["skipped_images"] == 2


def test_the_headline_is_the_last_epoch() -> None:
    metrics = {"test_ece": 0.1, "test_nll": 1.0, "test_brier": 0.5}
    history = [{"test_accuracy": 0.01 * i, **metrics} for i in (*range(50, 62), 40)]
    found = run_results(
        load_config(["recipe=digits_sym40", "seed=3"]),
        history,
        {"": {"count": [1]}},
        {"dataset": "digits"},
        torch.device("cpu"),
        images_seen=100,
        network_passes=600,
        train_seconds=4.0,
        seconds=9.0,
    )
    assert found["test_accuracy_last"] == pytest.approx(0.4)
    assert found["test_accuracy_best"] == pytest.approx(0.61)
    assert found["test_accuracy_last10_mean"] == pytest.approx((sum(range(53, 62)) + 40) / 1000)
    assert (found["network_passes"], found["images_per_second"], found["seconds"]) == (6, 25, 9)
    assert found["reliability"] == {"count": [1]} and found["reliability_ema"] is None
    assert (found["schema"], found["method"], found["seed"]) == (1, "bsd_plus", 3)
    assert found["noise_rate"] is None and found["dataset"] == "digits" and found["device"] == "cpu"
