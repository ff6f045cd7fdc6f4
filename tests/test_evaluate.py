"""Evaluating a run: the numbers of its last epoch again, or a sentence on why not."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compared import rows, strict

from noisybsd.checkpoint import previous
from noisybsd.config import load_config
from noisybsd.data import load_dataset
from noisybsd.evaluate import evaluate_run, main
from noisybsd.predict import predict
from noisybsd.train import main as train
from noisybsd.trainer import Trainer

Tiny = Callable[..., list[str]]


def files(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}


def stop_in_epoch_1(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    """Train until a signal ends the run after its first epoch."""
    evaluate = Trainer.evaluate

    def stopping(self: Trainer) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", stopping)
        assert train(arguments) == 143


@pytest.mark.parametrize("settings", [(), ("ema.decay=0", "neighbours.k=0"), ("method=ce",)])
def test_a_finished_runs_numbers_are_those_of_its_last_epoch(
    settings: tuple[str, ...], tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny("run.dir=run", "epochs=2", *settings)) == 0
    before = files(Path("run"))
    capsys.readouterr()
    assert main(["run=run"]) == 0
    last = rows(Path("run"))[-1]
    found = strict(Path("run/evaluation.json").read_text())
    tested = {key: value for key, value in found.items() if key.startswith("test_")}
    assert tested == {key: value for key, value in last.items() if key.startswith("test_")}
    assert len(tested) == (4 if "ema.decay=0" in settings else 9)
    assert found["epoch"] == 2 and found["device"] == "cpu" and "torch" in found["versions"]
    # it shows them, and leaves the run alone
    out = capsys.readouterr().out
    assert f"{last['test_accuracy']:.4f}" in out and "evaluation.json" in out
    assert {k: v for k, v in files(Path("run")).items() if k != "evaluation.json"} == before


def test_predictions_depend_on_nothing_but_image_and_network(tiny: Tiny) -> None:
    config = load_config(tiny())
    dataset = load_dataset(config.data, config.noise, config.seed)
    trainer = Trainer(config, dataset, torch.device("cpu"))
    network, before = trainer.network.train(), copy.deepcopy(trainer.network.state_dict())
    parts = trainer.views, trainer.device, None
    together = predict(network, dataset.test, *parts)
    apart = predict(network, dataset.test, *parts, batch_size=7)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other)
    assert together[2].tolist() == dataset.test.labels.tolist()
    assert network.training  # and goes on as it was
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_run_under_way(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_in_epoch_1(monkeypatch, tiny("run.dir=run"))
    found = evaluate_run(Path("run"), [])
    assert found["epoch"] == 1
    assert found["test_accuracy"] == rows(Path("run"))[0]["test_accuracy"]


def test_a_damaged_checkpoint_is_passed_over_and_left_there(
    tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    assert train(tiny("run.dir=run", "epochs=2")) == 0
    os.truncate("run/checkpoint.pt", 100)
    before = files(Path("run"))
    found = evaluate_run(Path("run"), [])
    assert found["epoch"] == 1 and "run/checkpoint.pt: truncated" in caplog.text
    assert files(Path("run")) == before
    previous(Path("run/checkpoint.pt")).unlink()
    assert main(["run=run"]) == 2


def test_where_things_are_may_differ(tiny: Tiny) -> None:
    assert train(tiny("run.dir=run", "epochs=1")) == 0
    plain = evaluate_run(Path("run"), [])
    moved = evaluate_run(Path("run"), ["data.root=elsewhere", "data.workers=0", "device=auto"])
    assert moved["test_accuracy"] == plain["test_accuracy"]
    fewer = evaluate_run(Path("run"), ["neighbours.k=1"])
    assert fewer["test_knn_accuracy"] != plain["test_knn_accuracy"]
    assert fewer["test_nll"] == plain["test_nll"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "usage: "),
        (["device=cpu"], "give one run=DIR, got 0"),
        (["run=run", "run=run"], "give one run=DIR, got 2"),
        (["run=nowhere"], "run=nowhere: not a run directory, it has no config.yaml"),
        (["run=run", "seed=1"], "seed: cannot differ from the run's; valid: data.root, "),
        (["run=run", "batch_size=8"], "batch_size: cannot differ"),
        (["run=run", "device=gpu"], "device: "),
        (["run=run", "neighbours.k=500"], "neighbours.k: got 500; valid: 1 to 128"),
        (["run=run", "seed"], "seed"),
        (["run=young"], "run=young: has no checkpoint yet"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(
    arguments: list[str], says: str, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny("run.dir=run", "epochs=1")) == 0
    Path("young").mkdir()
    Path("young/config.yaml").write_bytes(Path("run/config.yaml").read_bytes())
    capsys.readouterr()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert says in out + err and "Traceback" not in err
    assert not Path("run/evaluation.json").exists()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "data.root=PATH" in capsys.readouterr().out
