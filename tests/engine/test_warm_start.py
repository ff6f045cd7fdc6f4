"""A run that starts from another's weights and beliefs, and a run that is made longer."""

from __future__ import annotations

import dataclasses
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compared import assert_same, outcome, rows, strict
from helpers.disturbed import Crash, crash, enlarged, interrupt, send, with_dataset
from torch import Tensor

from noisybsd.engine.evaluation import evaluate_run
from noisybsd.engine.trainer import Trainer
from noisybsd.runs.checkpoint import load_checkpoint, save_checkpoint
from noisybsd.train import main

Tiny = Callable[..., list[str]]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def first(tiny: Tiny) -> Path:
    """A finished run of three epochs."""
    assert main(tiny("run.dir=first")) == 0
    return Path("first")


def started(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> dict[str, dict[str, Tensor]]:
    """What a run has before its first step."""
    states: list[Any] = []
    step = Trainer.step

    def watched(self: Trainer, *batch: Tensor) -> None:
        if not states:
            parts = self.modules().items()
            states.append({n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in parts})
        step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", watched)
        assert main(arguments) == 0
    return states[0]


def parts(network: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {key: value for key, value in network.items() if key.startswith(names)}


# --- run.init -------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["first", "first/checkpoint.pt"])
def test_weights_and_beliefs_of_the_same_data(
    named: str, first: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    settings = tiny("run.dir=second", f"run.init={named}", "epochs=1", "optimizer.lr=0.001")
    begun, before = started(monkeypatch, settings), load_checkpoint(first / "checkpoint.pt")
    assert_same_tensors(begun["network"], before["modules"]["network"])
    ema = {k.removeprefix("network."): v for k, v in begun["ema"].items()}
    assert_same_tensors(ema, begun["network"])
    assert_same_tensors(begun["rule"], before["modules"]["rule"])
    assert not begun["monitor"]["visits"].any()
    out = capsys.readouterr().out
    assert "weights of first/checkpoint.pt, after epoch 3: encoder, classifier, projection" in out
    assert "beliefs: those of that run, whose images and labels are the same" in out
    assert [row["step"] for row in rows(Path("second"))] == [4]


def assert_same_tensors(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert not [name for name in actual if not torch.equal(actual[name], expected[name])]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("noise.seed=1", "its images or labels are others"),
        ("data.limit=120", "its images or labels are others"),
        ("method=elr", "its targets=posterior have another state than targets=elr here"),
        (
            "options.top_k=3",
            "its targets=posterior have another state; options.top_k: None there, 3 here",
        ),
    ],
)
def test_beliefs_start_anew_and_the_log_says_why(
    change: str,
    reason: str,
    first: Path,
    tiny: Tiny,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    settings = ("epochs=1", change)
    begun = started(monkeypatch, tiny("run.dir=warm", f"run.init={first}", *settings))
    plain = started(monkeypatch, tiny("run.dir=plain", *settings))
    assert_same_tensors(begun["rule"], plain["rule"])
    before = load_checkpoint(first / "checkpoint.pt")["modules"]["network"]
    assert_same_tensors(parts(begun["network"], "encoder"), parts(before, "encoder"))
    assert f"beliefs start from the given labels: {reason}" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["sop", "tcl", "ill", "ctrr", "ce"])
def test_what_a_loss_has_learned_starts_anew_and_the_log_says_so(
    method: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    assert main(tiny("run.dir=first", f"method={method}")) == 0
    settings = ("epochs=1", f"method={method}")
    begun = started(monkeypatch, tiny("run.dir=warm", "run.init=first", *settings))
    assert_same_tensors(
        begun["loss"], started(monkeypatch, tiny("run.dir=plain", *settings))["loss"]
    )
    told = "what loss=" in capsys.readouterr().out
    assert told == (method != "ce") == bool(begun["loss"])


def test_another_head_starts_anew(
    first: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    settings = tiny("run.dir=second", f"run.init={first}", "epochs=1", "network.embedding_dim=6")
    begun = started(monkeypatch, settings)
    before = load_checkpoint(first / "checkpoint.pt")["modules"]["network"]
    names = ("encoder", "classifier")
    assert_same_tensors(parts(begun["network"], *names), parts(before, *names))
    assert "the projection starts anew: it has another shape there" in capsys.readouterr().out


def test_the_classifier_of_other_classes_starts_anew(
    first: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """Of other names; of another number, its shape says so too."""
    state = load_checkpoint(first / "checkpoint.pt")
    known = {"channels": 1, "size": 8, "stored_size": 8, "mean": [0.5], "std": [0.5]}
    names = {"class_names": [*"abcdefghij"]}
    state["input"] = {**known, **state.get("input", {}), **names}
    save_checkpoint(state, Path("other.pt"))
    begun = started(monkeypatch, tiny("run.dir=second", "run.init=other.pt", "epochs=1"))
    plain = started(monkeypatch, tiny("run.dir=plain", "epochs=1"))
    assert_same_tensors(
        parts(begun["network"], "classifier"), parts(plain["network"], "classifier")
    )
    assert_same_tensors(
        parts(begun["network"], "encoder"), parts(state["modules"]["network"], "encoder")
    )
    assert "the classifier starts anew: its classes are others" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ("network.width=5", ("small_cnn of width 4", "small_cnn of width 5")),
        ("network.name=resnet18 network.width=null", ("small_cnn of width 4", "resnet18")),
    ],
)
def test_another_architecture_is_refused(
    change: str, names: tuple[str, str], first: Path, tiny: Tiny, capsys: Captured
) -> None:
    assert main(tiny("run.dir=second", f"run.init={first}", *change.split())) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: run.init={first}/checkpoint.pt: its network is {names[0]},")
    assert f"this run's is {names[1]}: " in error and "network.*" in error
    assert not Path("second").exists()


def test_what_is_no_checkpoint_is_refused(tiny: Tiny, capsys: Captured) -> None:
    Path("empty").mkdir()
    Path("bad.pt").write_bytes(b"no checkpoint")
    for named, message in (
        ("nowhere", "run.init=nowhere: no such file or directory"),
        ("empty", "run.init=empty: has no checkpoint"),
        ("bad.pt", "bad.pt: truncated, damaged or not a checkpoint"),
    ):
        assert main(tiny(f"run.dir=run-{named}", f"run.init={named}")) == 2
        assert capsys.readouterr().err.startswith(f"error: {message}")
        assert not Path(f"run-{named}").exists()


def test_an_interrupted_warm_start_goes_on_without_its_source(
    first: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (f"run.init={first}", "epochs=2", "seed=1")
    assert main(tiny(*settings, "run.dir=whole")) == 0
    with monkeypatch.context() as patch:
        interrupt(patch, 6, send(signal.SIGTERM))
        assert main(tiny(*settings, "run.dir=parted")) == 128 + signal.SIGTERM
    shutil.rmtree(first)
    assert main(["recipe=parted/config.yaml", "run.resume=parted"]) == 0
    assert_same(outcome(Path("parted")), outcome(Path("whole")))


def test_auto_does_not_continue_a_run_from_another_source(
    first: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 2, send(signal.SIGTERM))
        assert main(tiny(f"run.init={first}")) == 128 + signal.SIGTERM
    assert main(tiny("run.dir=plain", "epochs=1")) == 0
    assert main(tiny("run.init=plain")) == 0
    assert len(list(Path("runs/digits_sym40").iterdir())) == 2


def test_the_fast_network_keeps_the_whitening_it_learned_with(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_dataset(monkeypatch, enlarged)
    settings = ("network.name=fast_resnet", "augment.name=none", "epochs=1")
    assert main(tiny(*settings, "run.dir=first")) == 0
    begun = started(
        monkeypatch, tiny(*settings, "data.limit=64", "run.init=first", "run.dir=second")
    )
    before = modules_of(Path("first"))["network"]
    assert torch.equal(begun["network"]["encoder.0.weight"], before["encoder.0.weight"])


def modules_of(run: Path) -> dict[str, dict[str, Tensor]]:
    return load_checkpoint(run / "checkpoint.pt")["modules"]


# --- a longer run ---------------------------------------------------------------------------------


def longer(run: str, *more: str) -> list[str]:
    return [f"recipe={run}/config.yaml", f"run.resume={run}", *more]


def test_a_finished_run_is_made_longer(first: Path, tiny: Tiny, capsys: Captured) -> None:
    before, history = modules_of(first), rows(first)
    capsys.readouterr()
    assert main(tiny("run.dir=first")) == 0
    told = "recipe=first/config.yaml run.resume=first epochs=MORE trains it longer"
    assert told in capsys.readouterr().out
    assert main(longer("first", "epochs=5")) == 0
    out = capsys.readouterr().out
    assert "made longer: 5 epochs in place of 3." in out and "continuing after epoch 3" in out
    after = rows(first)
    assert [row["step"] for row in after] == [4, 8, 12, 16, 20]
    assert_same(after[:3], history)
    assert main(tiny("run.dir=whole", "epochs=5")) == 0
    rates = [row["lr"] for row in rows(Path("whole"))]
    assert [row["lr"] for row in after[3:]] == rates[3:] and after[2]["lr"] != rates[2]
    results = strict((first / "results.json").read_text())
    assert results["epochs"] == 5 and results["extended_after"] == [3]
    assert results["test_accuracy_best"] == max(row["test_accuracy"] for row in after)
    assert not torch.equal(
        modules_of(first)["rule"]["posterior.alpha"], before["rule"]["posterior.alpha"]
    )
    # the record is the longer run's
    assert main(longer("first")) == 0
    assert capsys.readouterr().out.endswith("trains it longer\n")
    assert main(longer("first", "epochs=6")) == 0
    results = strict((first / "results.json").read_text())
    assert results["extended_after"] == [3, 5]


@pytest.mark.parametrize("seconds", [0, 1000])
@pytest.mark.parametrize("at_step", [1, 4, 6])
def test_an_interrupted_extension_ends_the_same(
    at_step: int, seconds: int, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(first, "whole")
    assert main(longer("whole", "epochs=5")) == 0
    every = f"run.checkpoint_seconds={seconds}"
    with monkeypatch.context() as patch:
        interrupt(patch, at_step, send(signal.SIGTERM))
        assert main(longer("first", "epochs=5", every)) == 128 + signal.SIGTERM
    assert main(longer("first")) == 0
    assert_same(outcome(first), outcome(Path("whole")))


def test_an_extension_that_was_killed_before_it_saved(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record is the longer run's already, its checkpoint not yet; other commands can read both."""
    shutil.copytree(first, "whole")
    assert main(longer("whole", "epochs=5")) == 0
    with monkeypatch.context() as patch:
        interrupt(patch, 2, crash)
        with pytest.raises(Crash):
            main(longer("first", "epochs=5"))
    assert not (first / "results.json").exists()
    assert evaluate_run(first, [])["epoch"] == 3
    assert main(longer("first")) == 0
    assert_same(outcome(first), outcome(Path("whole")))


def test_an_unfinished_run_is_made_longer_too(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 6, send(signal.SIGTERM))
        assert main(tiny("run.dir=run")) == 128 + signal.SIGTERM
    assert main(longer("run", "epochs=4")) == 0
    results = strict(Path("run/results.json").read_text())
    assert results["extended_after"] == [1] and len(rows(Path("run"))) == 4


def test_what_cannot_be_made_longer(
    first: Path, tiny: Tiny, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in first.iterdir()}

    before = files()
    for arguments, message in (
        (longer("first", "epochs=2"), "epochs: 3 there, 2 here"),
        (longer("first", "epochs=5", "optimizer.lr=0.5"), "optimizer.lr: "),
        (tiny("run.dir=first", "epochs=5"), "epochs: 3 there, 5 here"),
    ):
        capsys.readouterr()
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
        assert files() == before
    # a mistake that shows later leaves the finished run as it is
    with monkeypatch.context() as patch:
        with_dataset(patch, lambda data: dataclasses.replace(data, sha256="0" * 64))
        assert main(longer("first", "epochs=5")) == 2
    assert files() == before
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (first / name).unlink()
    assert main(longer("first", "epochs=5")) == 2
    assert "run.resume=first: has no checkpoint to go on from" in capsys.readouterr().err
