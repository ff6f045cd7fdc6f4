"""Training as a command: what a run writes, and that nothing which happens to it changes the result."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from helpers.benchmarks import benchmark
from helpers.compared import assert_same, modules, outcome, rows, strict
from helpers.disturbed import Crash, crash, enlarged, interrupt, send, with_dataset
from helpers.training import TINY, NoReadback
from torch import Tensor
from torch.overrides import TorchFunctionMode

from noisybsd import training
from noisybsd.config import load_config
from noisybsd.data.dataset import Dataset, load_dataset
from noisybsd.data.views import Views
from noisybsd.engine import trainer as trainer_module
from noisybsd.engine.trainer import Trainer, seed_generators
from noisybsd.methods.parts import Mixup
from noisybsd.methods.presets import METHODS
from noisybsd.runs.checkpoint import load_checkpoint, save_checkpoint
from noisybsd.train import main

Tiny = Callable[..., list[str]]

# settings with state or arithmetic of their own, beside the methods' (test_methods.py)
VARIANTS = (
    "method=bsd_plus",
    "method=ce",
    "neighbours.weight=0.5",
    "optimizer.name=adamw",
    "optimizer.clip_norm=1",
    "options.top_k=4",
    "precision=bf16",
    "ema.decay=0",
    "data.storage=stream",
    "run.checkpoint_seconds=1000",
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The directory of a run without interruption, made once for each setting."""
    runs: dict[tuple[str, ...], Path] = {}

    def get(*settings: str) -> Path:
        if settings not in runs:
            run = tmp_path_factory.mktemp("undisturbed") / "run"
            assert main([*TINY, *settings, f"run.dir={run}"]) == 0
            runs[settings] = run
        return runs[settings]

    return get


# --- what a run leaves ----------------------------------------------------------------------------


def test_results_json_has_what_scripts_rely_on(undisturbed: Callable[..., Path]) -> None:
    run = undisturbed()
    results = strict((run / "results.json").read_text("utf-8"))
    history = rows(run)
    accuracies = [row["test_accuracy"] for row in history]
    assert results["recipe"] == "digits_sym40" and results["seed"] == 0
    assert results["dataset"] == "digits" and results["network"] == "small_cnn"
    assert results["epochs"] == 3 and results["device"] == "cpu"
    assert results["test_accuracy_last"] == accuracies[-1]
    assert results["test_accuracy_best"] == max(accuracies)
    assert results["test_accuracy_last10_mean"] == pytest.approx(np.mean(accuracies))
    assert "oracle" in results["test_accuracy_best_note"]
    assert results["test_ece_last"] == history[-1]["test_ece"]
    assert re.fullmatch("[0-9a-f]{64}", results["data_sha256"])
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?", results["git_commit"] or "0" * 40)
    assert {"torch", "python", "noisybsd"} <= results["versions"].keys()
    fractions = [
        key for key in results if re.match("test_(knn_)?acc|test_ece|label|noise|mem", key)
    ]
    fractions.remove("test_accuracy_best_note")
    assert len(fractions) > 9
    assert all(0 <= results[key] <= 1 for key in fractions)
    assert 0.2 < results["noise_rate"] < 0.5  # 40 % asked for, of which some hit the true class
    assert results["images_per_second"] > 0 and results["seconds"] > 0


def test_metrics_jsonl_has_a_line_an_epoch(undisturbed: Callable[..., Path]) -> None:
    history = rows(undisturbed())
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert [row["step"] for row in history] == [4, 8, 12]
    assert all(row.keys() == history[0].keys() for row in history)
    assert all(math.isfinite(v) for row in history for v in row.values() if v is not None)


def test_log_txt_tells_the_run(undisturbed: Callable[..., Path]) -> None:
    log = (undisturbed() / "log.txt").read_text("utf-8")
    assert log.count("epoch 3/3") == 1 and "method bsd_plus, seed 0" in log


def test_plain_lines_where_there_is_no_terminal(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny("run.dir=run")) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\r" not in out
    lines = out.splitlines()
    assert sum(line.startswith("epoch ") for line in lines) == 3
    assert any(re.match(r"test accuracy, last epoch +\d+\.\d\d%$", line) for line in lines)
    assert lines[-1].split()[-1] == "run/results.json"


def test_metrics_without_clean_labels(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    forget = lambda labels: None  # noqa: E731
    with_clean_labels(monkeypatch, forget)
    assert main(tiny("run.dir=run")) == 0
    results = strict(Path("run/results.json").read_text())
    unknown = ("noise_rate", "label_correction_accuracy", "noise_detection_auroc")
    assert [results[key] for key in unknown] == [None, None, None]


# --- determinism ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ce", "bsd", "bsd_plus", "bsd_plus_neighbours"])
def test_the_same_seed_gives_the_same(
    method: str, tiny: Tiny, undisturbed: Callable[..., Path]
) -> None:
    assert main(tiny(f"method={method}", "run.dir=again")) == 0
    expected = outcome(undisturbed(f"method={method}"))
    assert_same(outcome(Path("again")), expected)


def test_another_seed_gives_another_run(tiny: Tiny, undisturbed: Callable[..., Path]) -> None:
    """Another network, other noise; with the noise's seed held, other weights still."""
    one = load_checkpoint(undisturbed() / "checkpoint.pt")
    for more in ((), ("noise.seed=0",)):
        assert main(tiny("seed=1", *more, f"run.dir=run{len(more)}")) == 0
        other = load_checkpoint(Path(f"run{len(more)}/checkpoint.pt"))
        assert (other["data_sha256"] == one["data_sha256"]) == bool(more)
        for name, weight in one["modules"]["network"].items():
            if weight.is_floating_point() and weight.ndim > 1:
                assert not torch.equal(weight, other["modules"]["network"][name])


def test_a_runs_own_record_is_a_recipe(tiny: Tiny, undisturbed: Callable[..., Path]) -> None:
    first = undisturbed()
    assert main([f"recipe={first / 'config.yaml'}", "run.dir=again"]) == 0
    assert_same(outcome(Path("again")), outcome(first))


def test_every_step_draws_anew(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    seed = trainer_module.seed_generators
    monkeypatch.setattr(
        trainer_module,
        "seed_generators",
        lambda number, device: [seeds.append(number), seed(number, device)][1],
    )
    assert main(tiny("run.dir=run")) == 0
    assert main(tiny("run.dir=other", "seed=1")) == 0
    assert len(seeds) == len(set(seeds)) == 2 * 12


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_a_seeded_step_draws_as_after_manual_seed(seed: int) -> None:
    """Of all that a step draws with: uniform, integers, normal, an order, Mixup's weight."""

    def drawn() -> list[Tensor]:
        x = torch.empty(64)
        mixup = Mixup.draw(64, 1.0, x.device)
        numbers = [x.uniform_(-1, 2).clone(), torch.randint(9, (64,)), torch.randn(64)]
        return [*numbers, torch.rand(64).argsort(), mixup.weight, mixup.partner]

    torch.manual_seed(seed)
    expected = drawn()
    seed_generators(seed, torch.device("cpu"))
    for actual, wanted in zip(drawn(), expected, strict=True):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize(
    ("device", "expected"), [("cpu", {}), ("cuda", {1: 7}), ("cuda:0", {0: 7})]
)
def test_a_step_seeds_the_generator_of_its_own_gpu(
    device: str, expected: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded: dict[int, int] = {}
    generators = [
        SimpleNamespace(manual_seed=lambda seed, number=number: seeded.update({number: seed}))
        for number in range(2)
    ]
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    seed_generators(7, torch.device(device))
    assert seeded == expected and torch.initial_seed() == 7


@pytest.mark.gpu
def test_a_seeded_step_draws_as_after_manual_seed_on_the_gpu() -> None:
    torch.manual_seed(7)
    expected = torch.rand(64, device="cuda"), torch.rand(64)
    seed_generators(7, torch.device("cuda"))
    assert torch.equal(torch.rand(64, device="cuda"), expected[0])
    assert torch.equal(torch.rand(64), expected[1])


# --- clean labels and test labels never reach training -----------------------------------------------


def test_alternating_flips_mirror_an_image_in_every_second_epoch(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weak view of a sample is mirrored in one of two epochs running, and half of them in the first."""
    epochs: list[dict[int, bool]] = []
    plain_step, plain_views = Trainer.step, Views.forward

    def step(self: Trainer, index: Tensor, images: Tensor) -> None:
        if self.step_number % self.loader.steps_per_epoch == 0:
            epochs.append({})
        indices.append(index.tolist())
        plain_step(self, index, images)

    def forward(
        self: Views, images: Tensor, names: Sequence[str], mirror: Tensor | None = None
    ) -> Tensor:
        assert mirror is not None and self.weak_view.flip == 0
        epochs[-1] |= dict(zip(indices[-1], mirror.tolist(), strict=True))
        (view,) = views = plain_views(self, images, names, mirror)
        plain = self.plain(images)  # of "imagenet": a crop as large as the image
        assert torch.equal(view, torch.where(mirror[:, None, None, None], plain.flip(-1), plain))
        return views

    indices: list[list[int]] = []
    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(Views, "forward", forward)
    settings = ("method=ce", "augment.name=imagenet", "augment.flip=alternating", "epochs=3")
    assert main(tiny(*settings)) == 0
    first, second, third = epochs
    assert len(first) > 20
    assert all(second[i] != mirrored for i, mirrored in first.items() if i in second)
    assert all(third[i] == mirrored for i, mirrored in first.items() if i in third)
    assert 0.3 < sum(first.values()) / len(first) < 0.7


def test_alternating_flips_need_views_that_mirror(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny("augment.name=digits", "augment.flip=alternating")) == 2
    assert "augment.flip=alternating: the views 'digits' never mirror" in capsys.readouterr().err


def test_the_fast_network_whitens_by_the_training_images_and_resumes_exactly(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("network.name=fast_resnet", "network.width=4", "augment.name=none", "epochs=2")
    settings = (*settings, "optimizer.norm_bias_lr=64", "optimizer.schedule=linear")
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    with_dataset(monkeypatch, enlarged)
    assert main(tiny(*settings, f"run.dir={whole}")) == 0
    with monkeypatch.context() as patch:
        interrupt(patch, 3, send(signal.SIGINT))
        assert main(tiny(*settings, f"run.dir={parted}")) == 130
    assert main(tiny(*settings, f"run.dir={parted}")) == 0
    assert_same(modules(parted), modules(whole))
    state = load_checkpoint(whole / "checkpoint.pt")["modules"]
    weight = state["network"]["encoder.0.weight"]
    torch.testing.assert_close(weight[:4], -weight[4:])  # set by images, and not learned since
    assert torch.equal(weight, state["ema"]["network.encoder.0.weight"])


def test_a_run_that_ends_within_its_warm_up_says_so(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny("epochs=1", "optimizer.warmup_epochs=0.5", "run.dir=long")) == 0
    assert "warmup_epochs" not in capsys.readouterr().out
    assert (
        main(tiny("epochs=1", "optimizer.warmup_epochs=3", "optimizer.lr=0.1", "run.dir=short"))
        == 0
    )
    out = capsys.readouterr().out
    assert "optimizer.warmup_epochs=3 is not below epochs=1" in out
    assert "reaches 0.0" in out and "of optimizer.lr=0.1" in out


def test_images_too_small_for_the_fast_network_are_refused(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny("network.name=fast_resnet")) == 2
    assert (
        "fast_resnet takes images of at least 16 x 16 pixels, got 8 x 8" in capsys.readouterr().err
    )


def with_clean_labels(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray], np.ndarray | None]
) -> None:
    def changed(data: Dataset) -> Dataset:
        assert data.train.clean_labels is not None
        train = dataclasses.replace(data.train, clean_labels=change(data.train.clean_labels))
        return dataclasses.replace(data, train=train)

    with_dataset(monkeypatch, changed)


@pytest.mark.parametrize("method", METHODS)
def test_clean_labels_and_test_labels_change_nothing_but_metrics(
    method: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backwards(data: Dataset) -> Dataset:
        clean, test = data.train.clean_labels, data.test.labels
        assert clean is not None
        return dataclasses.replace(
            data,
            train=dataclasses.replace(data.train, clean_labels=clean[::-1].copy()),
            test=dataclasses.replace(data.test, labels=test[::-1].copy()),
        )

    settings = tiny(f"method={method}", "epochs=2")
    assert main([*settings, "run.dir=one"]) == 0
    with_dataset(monkeypatch, backwards)
    assert main([*settings, "run.dir=two"]) == 0
    one, two = rows(Path("one"))[-1], rows(Path("two"))[-1]
    assert one["loss"] == two["loss"]
    assert one["test_nll"] != two["test_nll"]
    assert one["noise_rate"] != two["noise_rate"]
    assert_same(modules(Path("one")), modules(Path("two")))


# --- methods --------------------------------------------------------------------------------------


def rule(run: Path) -> dict[str, Tensor]:
    return load_checkpoint(run / "checkpoint.pt")["modules"]["rule"]


def test_ce_keeps_no_posterior(undisturbed: Callable[..., Path]) -> None:
    assert not rule(undisturbed("method=ce"))
    assert "posterior.alpha" in rule(undisturbed("method=bsd"))


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("bf16", "float16")])
def test_embeddings_are_kept_as_precisely_as_they_are_made(
    precision: str, dtype: str, undisturbed: Callable[..., Path]
) -> None:
    state = load_checkpoint(undisturbed(f"precision={precision}") / "checkpoint.pt")
    assert state["modules"]["bank"]["features"].dtype == getattr(torch, dtype)
    assert state["modules"]["bank"]["filled"].all()


def test_every_sample_is_observed_once_an_epoch(undisturbed: Callable[..., Path]) -> None:
    """S_t = gamma^t S_0 + (1 - gamma^t) / (1 - gamma), S_0 = c + 9 eps."""
    alpha, gamma = rule(undisturbed("method=bsd"))["posterior.alpha"], 0.8
    expected = gamma**3 * (8 + 9 * 1e-3) + (1 - gamma**3) / (1 - gamma)
    torch.testing.assert_close(alpha.sum(1), torch.full((128,), expected))


def test_neighbours_are_evidence_from_their_first_epoch_on(tiny: Tiny) -> None:
    def alpha(*settings: str) -> Tensor:
        run = "-".join(("run", *settings))
        assert main(tiny("method=bsd", *settings, f"run.dir={run}")) == 0
        return rule(Path(run))["posterior.alpha"]

    without = alpha("neighbours.weight=0")
    assert torch.equal(alpha("neighbours.weight=1", "neighbours.start_epoch=3"), without)
    # in two of three epochs, each row gains kappa = 1 more
    gained = alpha("neighbours.weight=1").sum(1) - without.sum(1)
    torch.testing.assert_close(gained, torch.full((128,), 0.8 + 1.0))


def test_a_run_that_ends_before_neighbours_say_anything_says_so(
    tiny: Tiny, capsys: pytest.CaptureFixture
) -> None:
    says = "neighbours.start_epoch={}: with epochs={} no step uses what neighbours say"
    near = ("method=bsd", "neighbours.weight=1")
    for start, epochs, told in ((3, 3, True), (0, 1, True), (2, 3, False)):
        settings = (f"neighbours.start_epoch={start}", f"epochs={epochs}")
        assert main(tiny(*near, *settings, f"run.dir={start}")) == 0
        assert (says.format(start, epochs) in capsys.readouterr().out) == told


class NoHostCopy(TorchFunctionMode):
    """Fails on what moves values between host and device, which on a CPU leaves no other trace."""

    READS = ("cpu", "item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__")
    WRITES = (torch.tensor, torch.as_tensor, torch.from_numpy)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        assert name not in self.READS, f"{name} reads the device"
        assert func not in self.WRITES, f"{name} copies to the device"
        return func(*args, **(kwargs or {}))


def test_the_guard_against_host_copies_guards() -> None:
    x = torch.rand(3)
    for act in (lambda: x.cpu(), lambda: float(x[0]), lambda: torch.tensor(1.0)):
        with pytest.raises(AssertionError, match="the device"), NoHostCopy():
            act()


def steps(*settings: str, device: str = "cpu") -> Iterator[Callable[[], None]]:
    """The steps of a tiny run, to be taken one after the other."""
    config = load_config([*TINY, *settings, f"device={device}"])
    dataset = load_dataset(config.data, config.noise, config.seed)
    trainer = Trainer(config, dataset, torch.device(device))
    for batch in trainer.loader.epoch(0):
        yield lambda batch=batch: trainer.step(*batch)


@pytest.mark.parametrize("setting", [*VARIANTS, *(f"method={name}" for name in METHODS)])
def test_a_step_does_not_wait_for_the_device(setting: str) -> None:
    if setting == "optimizer.name=adamw":
        pytest.skip("torch's AdamW is another one on CUDA, fused")
    first, second, *_ = steps(setting)
    first()
    with NoReadback(), NoHostCopy():
        second()


@pytest.mark.gpu
@pytest.mark.parametrize("setting", VARIANTS)
def test_a_step_on_the_gpu_does_not_wait_for_it(setting: str) -> None:
    first, second, *_ = steps(setting, device="cuda")
    first()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- interruptions --------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", VARIANTS)
def test_sigterm_within_an_epoch_then_the_command_it_prints(
    setting: str,
    tiny: Tiny,
    undisturbed: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 6, send(signal.SIGTERM))
        assert main(tiny(setting, "run.dir=a run")) == 143
    assert load_checkpoint(Path("a run/checkpoint.pt"))["step"] == 6
    *_, message, command = capsys.readouterr().out.splitlines()
    assert message == "stopped by SIGTERM, saved. To continue:"
    python, _, module, *arguments = shlex.split(command)
    assert (python, module) == ("python", "noisybsd.train")
    assert main(arguments) == 0
    assert_same(outcome(Path("a run")), outcome(undisturbed(setting)))


@pytest.mark.parametrize("at_step", [1, 4, 5, 12])
def test_ctrl_c_at_the_edges_of_an_epoch(
    at_step: int, tiny: Tiny, undisturbed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, at_step, send(signal.SIGINT))
        assert main(tiny("run.dir=run")) == 130
    assert not Path("run/results.json").exists()
    assert main(tiny("run.dir=run")) == 0
    assert_same(outcome(Path("run")), outcome(undisturbed()))


def test_a_signal_during_the_evaluation(
    tiny: Tiny, undisturbed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = Trainer.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", lambda self: [send(signal.SIGTERM)(), evaluate(self)][1])
        assert main(tiny("run.dir=run")) == 143
        assert len(rows(Path("run"))) == 1
        assert main(tiny("run.dir=run")) == 143
        assert main(tiny("run.dir=run")) == 0  # in the last one there is nothing left to stop
    assert_same(outcome(Path("run")), outcome(undisturbed()))


def test_interrupted_at_every_step(
    tiny: Tiny, undisturbed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 1, send(signal.SIGTERM))
        assert main(tiny("run.dir=run")) == 143
    for _ in range(11):
        with monkeypatch.context() as patch:
            interrupt(patch, 1, send(signal.SIGTERM))
            assert main(tiny("run.dir=run")) == 143
    assert main(tiny("run.dir=run")) == 0
    assert_same(outcome(Path("run")), outcome(undisturbed()))


def test_a_closed_terminal_saves(
    tiny: Tiny, undisturbed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 6, send(signal.SIGHUP))
        assert main(tiny("run.dir=run")) == 128 + signal.SIGHUP
    assert load_checkpoint(Path("run/checkpoint.pt"))["step"] == 6
    assert main(tiny("run.dir=run")) == 0
    assert_same(outcome(Path("run")), outcome(undisturbed()))


def test_nohup_trains_on(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interrupt(monkeypatch, 2, send(signal.SIGHUP))
        assert main(tiny("run.dir=run", "epochs=1")) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_directory_that_is_replaced_while_the_run_goes_on(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def replace() -> None:
        Path("run").rename("moved")
        Path("run").mkdir()

    interrupt(monkeypatch, 6, replace)
    assert main(tiny("run.dir=run")) == 2
    assert "error: run.dir=run: is another directory than when" in capsys.readouterr().err
    assert list(Path("run").iterdir()) == []
    assert load_checkpoint(Path("moved/checkpoint.pt"))["step"] == 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"step": 99}, "damaged: step 99 after 1 of 3 epochs of 4 steps"),
        ({"history": [], "step": 5}, "damaged: step 5 after 0 of 3 epochs of 4 steps"),
    ],
)
def test_a_checkpoint_whose_step_cannot_be(
    changes: dict[str, Any],
    says: str,
    tiny: Tiny,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 6, send(signal.SIGTERM))
        assert main(tiny("run.dir=run")) == 143
    file = Path("run/checkpoint.pt")
    state = load_checkpoint(file)
    save_checkpoint({**state, **changes}, file)
    assert main(tiny("run.dir=run")) == 2
    assert f"error: {file}: {says}" in capsys.readouterr().err


def test_memory_that_is_not_there_is_a_sentence(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        torch.empty(2**50)  # the allocator's own error

    monkeypatch.setattr(Trainer, "step", full)
    assert main(tiny("run.dir=run")) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: out of memory: ") and "batch_size (got 32)" in second


def test_signals_are_left_as_they_were(tiny: Tiny) -> None:
    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(s) for s in watched]
    assert main(tiny("run.dir=run", "epochs=1")) == 0
    assert [signal.getsignal(s) for s in watched] == before


@pytest.mark.parametrize("setting", ["run.checkpoint_seconds=0", "run.checkpoint_seconds=1000"])
def test_a_crash_within_an_epoch(
    setting: str, tiny: Tiny, undisturbed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 10, crash)
        with pytest.raises(Crash):
            main(tiny(setting, "run.dir=run"))
    # whoever follows the file sees every epoch, saved or not
    assert [row["epoch"] for row in rows(Path("run"))] == [1, 2]
    assert Path("run/checkpoint.pt").exists() == (setting == "run.checkpoint_seconds=0")
    assert "ended by Crash" in Path("run/log.txt").read_text()
    assert main(tiny(setting, "run.dir=run")) == 0
    assert_same(outcome(Path("run")), outcome(undisturbed()))
    labels = [
        pyarrow.parquet.read_table(run / "labels.parquet") for run in (Path("run"), undisturbed())
    ]
    assert labels[0].equals(labels[1])


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ((), [3, 6, 7]),  # every 60 seconds, and the last one
        (("run.checkpoint_seconds=25",), [1, 2, 3, 4, 5, 6, 7]),
        (("run.checkpoint_seconds=1000",), [7]),
    ],
)
def test_checkpoints_follow_the_clock(
    setting: tuple[str, ...], expected: list[int], tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs of 25 seconds each; writing takes none of the time until the next one."""
    seconds, saved, save = 0.0, [], training.save_checkpoint

    def saving(state: dict[str, Any], path: Path) -> None:
        nonlocal seconds
        seconds += 1000
        saved.append(len(state["history"]))
        save(state, path)

    def append(path: Path, row: dict[str, Any]) -> None:
        nonlocal seconds
        seconds += 25
        append_jsonl(path, row)

    append_jsonl = training.append_jsonl
    monkeypatch.setattr(
        training, "time", SimpleNamespace(monotonic=lambda: seconds, perf_counter=time.perf_counter)
    )
    monkeypatch.setattr(training, "save_checkpoint", saving)
    monkeypatch.setattr(training, "append_jsonl", append)
    settings = [each for each in tiny() if not each.startswith("run.checkpoint_seconds")]
    assert main([*settings, "epochs=7", *setting, "run.dir=run"]) == 0
    assert saved == expected


@pytest.mark.parametrize("where", ["save_checkpoint", "append_jsonl", "write_json"])
def test_a_crash_while_something_is_written(
    where: str, tiny: Tiny, undisturbed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first, and after the second time of it."""
    write, count = getattr(training, where), 0

    def crashing(*args: Any) -> None:
        nonlocal count
        count += 1
        if count == 1:
            raise Crash
        write(*args)
        if count == 3:
            raise Crash

    monkeypatch.setattr(training, where, crashing)
    crashes = 0
    while True:
        try:
            assert main(tiny("run.dir=run")) == 0
            break
        except Crash:
            crashes += 1
    assert crashes >= 1
    assert_same(outcome(Path("run")), outcome(undisturbed()))


def test_a_damaged_checkpoint_costs_an_epoch(
    tiny: Tiny,
    undisturbed: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 10, crash)
        with pytest.raises(Crash):
            main(tiny("run.dir=run"))
    os.truncate("run/checkpoint.pt", 1000)
    assert main(tiny("run.dir=run")) == 0
    assert "run/checkpoint.pt: truncated" in caplog.text
    assert "continuing after epoch 1, step 4" in Path("run/log.txt").read_text()
    assert_same(outcome(Path("run")), outcome(undisturbed()))


def test_a_full_disk_is_said_and_freeing_it_helps(
    tiny: Tiny,
    undisturbed: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fsync, count = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal count
        if Path(f"/proc/self/fd/{descriptor}").resolve().name.startswith(".checkpoint"):
            count += 1
            if count == 2:
                raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert main(tiny("run.dir=run")) == 2
    error = capsys.readouterr().err
    assert error == "error: run/checkpoint.pt: cannot be written: No space left on device\n"
    assert load_checkpoint(Path("run/checkpoint.pt"))["step"] == 4
    assert main(tiny("run.dir=run")) == 0
    assert_same(outcome(Path("run")), outcome(undisturbed()))


def test_other_data_is_refused(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 6, send(signal.SIGTERM))
        assert main(tiny("run.dir=run", "data.root=mine")) == 143
    before = Path("run/checkpoint.pt").read_bytes()
    with_dataset(monkeypatch, lambda data: dataclasses.replace(data, sha256="0" * 64))
    capsys.readouterr()
    assert main(tiny("run.dir=run", "data.root=theirs")) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: data.root=theirs: the images or labels are")
    assert told.endswith("; put those back, or train on these in another folder, run.dir=NEW\n")
    assert Path("run/checkpoint.pt").read_bytes() == before


def test_a_finished_run_is_left_alone(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(tiny("run.dir=run", "epochs=1")) == 0
    before = {p.name: p.read_bytes() for p in Path("run").iterdir()}
    capsys.readouterr()
    assert main(tiny("run.dir=run", "epochs=1")) == 0
    out = capsys.readouterr().out
    assert out.startswith("this run is finished: run/results.json\n") and "run.dir=" in out
    assert {p.name: p.read_bytes() for p in Path("run").iterdir()} == before
    Path("run/results.json").write_text('{"schema": 1, "test_acc')  # cut by somebody
    assert main(tiny("run.dir=run", "epochs=1")) == 2
    assert "run/results.json: damaged" in capsys.readouterr().err


# --- a loss that is not finite ------------------------------------------------------------------------


def assert_last_good(run: Path, step: int) -> None:
    """The checkpoint is of this step and finite, the metrics too."""
    state = load_checkpoint(run / "checkpoint.pt")
    assert state["step"] == step
    for values in state["modules"].values():
        for name, value in values.items():
            assert not value.is_floating_point() or value.isfinite().all(), name
    assert len(rows(run)) == step // 4


def poison(monkeypatch: pytest.MonkeyPatch, at_step: int) -> None:
    """From this step on, the weights are not numbers, and so the loss of the next step."""

    def spoil() -> None:
        with torch.no_grad():
            for parameter in trainers[-1].network.parameters():
                parameter.fill_(torch.nan)

    trainers: list[Trainer] = []
    create = Trainer.__init__
    monkeypatch.setattr(
        Trainer, "__init__", lambda self, *args: [create(self, *args), trainers.append(self)][0]
    )
    interrupt(monkeypatch, at_step, spoil)


@pytest.mark.parametrize(
    ("at_step", "says", "good"),
    [
        (9, "the loss is not finite at step 9 (epoch 3), learning rate ", 8),
        (8, "the weights are not finite after step 7 (epoch 2), learning rate ", 4),
    ],
)
def test_a_loss_that_is_not_finite_ends_the_run(
    at_step: int,
    says: str,
    good: int,
    tiny: Tiny,
    undisturbed: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        poison(patch, at_step)
        assert main(tiny("run.dir=run")) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {says}") and "optimizer.lr" in error
    assert error.endswith("last good checkpoint: run/checkpoint.pt\n")
    assert says in Path("run/log.txt").read_text()
    assert_last_good(Path("run"), good)
    # it is as good as it says
    assert main(tiny("run.dir=run")) == 0
    assert_same(outcome(Path("run")), outcome(undisturbed()))


def test_a_signal_does_not_save_what_is_not_finite(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 6)  # the losses so far were finite
    interrupt(monkeypatch, 6, send(signal.SIGTERM))
    assert main(tiny("run.dir=run")) == 1
    assert_last_good(Path("run"), 4)


def test_a_learning_rate_out_of_all_proportion(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny("method=ce", "run.dir=run", "optimizer.lr=1e9")) == 1
    error = capsys.readouterr().err
    assert re.search(r"at step \d+ \(epoch 1\), learning rate \d\.\d+e\+\d+\.", error)
    assert error.endswith("last good checkpoint: none yet\n")
    assert not Path("run/checkpoint.pt").exists() and rows(Path("run")) == []


# --- mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        ("recipe=digits_sym4", "did you mean digits_sym40?"),
        ("recipe=./nowhere.yaml", "recipe=./nowhere.yaml: there is no such file"),
        ("contrastve.weight=1", "did you mean contrastive.weight?"),
        ("options.discont=1", "did you mean options.discount?"),
        ("epochs=0", "epochs"),
        ("network.width=100000", "network.width"),
        ("network.embedding_dim=1000000000", "network.embedding_dim"),
        ("optimizer.lr=1e308", "optimizer.lr"),
        ("data.root=~nobody-of-this-name/x", "data.root: got '~nobody-of-this-name/x'"),
        ("run.dir=" + "x" * 300, "File name too long"),
        ("optimizer.lr=nan", "optimizer.lr"),
        ("--epochs=3", "key=value"),
        ("epochs", "key=value"),
        (
            "batch_size=129",
            "batch_size=129 is more than the 128 training images; use batch_size=128",
        ),
        ("neighbours.k=128", "neighbours.k=128"),
        ("data.name=digit", "did you mean digits?"),
        ("data.labels=worst", "data.labels"),
        ("data.name=cifar10", "data/cifar-10-batches-py"),
        ("noise.name=none", "noise.rate=0.4 needs noise.name"),
        ("network.pretrained=true", "network.pretrained"),
        ("network.name=small_cn", "did you mean small_cnn?"),
        ("run.dir=file", "run.dir=file: cannot be a run directory"),
        ("run.resume=nowhere", "run.resume=nowhere: no such file"),
        ("augment.views=[weak]", "augment.views"),
        pytest.param(
            "device=cuda",
            "device=cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="it is no mistake here"),
        ),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(
    mistake: str, says: str, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("")
    assert main(tiny("data.download=false", mistake)) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err
    assert all(line.startswith("error: ") for line in err.splitlines())
    assert not list(Path().rglob("config.yaml"))  # no directory of a run that never began


def test_a_mistake_in_a_directory_that_held_something_leaves_that_there(tiny: Tiny) -> None:
    assert main(tiny("run.dir=first", "epochs=1")) == 0
    for name, file in (("second", "config.yaml"), ("third", "console.txt")):
        Path(name).mkdir()
        Path(name, file).write_bytes(Path("first/config.yaml").read_bytes())
        assert main(tiny(f"run.dir={name}", "batch_size=129")) == 2
        assert Path(name, file).exists()
    assert main(tiny("run.dir=first", "batch_size=129")) == 2
    assert Path("first/results.json").exists()


def test_help_needs_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "digits_sym40" in capsys.readouterr().out
    assert main([]) == 2


# --- real processes -----------------------------------------------------------------------------------

# children are forked from a clean process that has imported everything: starting one takes no time
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["noisybsd.training", "test_train"])


def start(target: Callable[[list[str]], object], arguments: list[str]) -> Any:
    process = _SERVER.Process(target=target, args=(arguments,), daemon=True)
    process.start()
    return process


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_kill_9_at_random_moments(tmp_path: Path) -> None:
    """A few; benchmarks/kill.py takes the whole command through twenty."""
    settings = [*TINY, "epochs=6"]
    began = time.monotonic()
    whole = start(main, [*settings, f"run.dir={tmp_path / 'whole'}"])
    whole.join()
    seconds = time.monotonic() - began
    assert whole.exitcode == 0
    moments = random.Random(0)
    for _ in range(5):
        process = start(main, [*settings, f"run.dir={tmp_path / 'killed'}"])
        process.join(timeout=moments.uniform(0, seconds))
        process.kill()
        process.join()
    last = start(main, [*settings, f"run.dir={tmp_path / 'killed'}"])
    last.join()
    assert last.exitcode == 0
    assert_same(outcome(tmp_path / "killed"), outcome(tmp_path / "whole"))


def hang_in_step_6(arguments: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 6, lambda: [Path(arguments[-1]).touch(), time.sleep(600)])
        main(arguments[:-1])


def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path, undisturbed: Callable[..., Path]) -> None:
    settings = [*TINY, f"run.dir={tmp_path / 'run'}"]
    process = start(hang_in_step_6, [*settings, str(tmp_path / "hangs")])
    try:
        wait_for((tmp_path / "hangs").exists)
        for _ in range(2):  # as from a terminal and from `timeout`: one request
            os.kill(process.pid, signal.SIGINT)
        wait_for(lambda: "SIGINT: saving" in (tmp_path / "run" / "log.txt").read_text())
        process.join(timeout=1)
        assert process.is_alive()
        for _ in range(60):
            os.kill(process.pid, signal.SIGINT)
            process.join(timeout=0.5)
            if not process.is_alive():
                break
        assert process.exitcode == -signal.SIGINT
    finally:
        process.kill()
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 4
    assert main(settings) == 0
    assert_same(outcome(tmp_path / "run"), outcome(undisturbed()))


def command(arguments: list[str], where: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "noisybsd.train", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=where, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_the_command_stopped_by_sigterm_and_continued(tmp_path: Path) -> None:
    process = command([*TINY, "epochs=200"], tmp_path)
    wait_for(lambda: any(tmp_path.glob("runs/digits_sym40/*-0/checkpoint.pt")))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (143, "")
    (run,) = tmp_path.glob("runs/digits_sym40/*-0")
    saved = load_checkpoint(run / "checkpoint.pt")["step"]
    # its very words, but for the path of python; stopped too: 200 epochs are not for a test
    again = command(shlex.split(out.splitlines()[-1])[3:], tmp_path)
    wait_for(lambda: load_checkpoint(run / "checkpoint.pt")["step"] > saved)
    again.send_signal(signal.SIGTERM)
    out, err = again.communicate(timeout=300)
    assert err == "" and f"step {saved}\n" in out and "stopped by SIGTERM" in out


@pytest.mark.slow
def test_twenty_kills_of_the_command(tmp_path: Path) -> None:
    kills = benchmark("kill").run([*TINY, "epochs=200"], tmp_path, kills=20, seed=0)
    assert len(kills) == 20 and kills[-1]["identical"] == "yes"


# --- compiled -------------------------------------------------------------------------------------


def test_compile_without_a_compiler(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise RuntimeError("\n no g++ here\nand more")

    monkeypatch.setattr(torch, "compile", missing)
    assert main(tiny("compile=true", "run.dir=run")) == 2
    error = capsys.readouterr().err
    assert "compile=true: torch cannot compile for cpu" in error and "(no g++ here)" in error


@pytest.fixture
def nothing_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a new machine: what other tests have compiled is forgotten, and no cache on disk has it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("nothing_compiled")
def test_compile_without_triton(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch._inductor.exc import TritonMissing
    from torch._inductor.scheduler import Scheduler

    def missing(*_: object) -> None:
        raise TritonMissing(None)

    monkeypatch.setattr(Scheduler, "create_backend", missing)  # where torch looks for it
    assert main(tiny("compile=true", "run.dir=run")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Use compile=false" in error
    assert "Cannot find a working triton installation." in error


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("method", ["tcl", "ce"])
def test_network_and_views_are_one_graph_each_and_train_as_eager_ones(
    method: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two views, with mixed images too, and with one; in no epoch is anything compiled anew."""
    settings = (f"method={method}", "epochs=2", "augment.flip=alternating", "augment.name=imagenet")
    assert main(tiny(*settings, "run.dir=eager")) == 0
    compile_, graphs = torch.compile, []

    def in_one_graph(module: torch.nn.Module, dynamic: bool, options: Any = None) -> Any:
        graphs.append(type(module).__name__)
        return compile_(module, fullgraph=True, dynamic=dynamic, backend="eager")

    monkeypatch.setattr(training, "_check_compiler", lambda device: None)
    monkeypatch.setattr(torch, "compile", in_one_graph)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert main(tiny(*settings, "compile=true", "run.dir=compiled")) == 0
    assert graphs == ["Network", "Views"]
    assert [row["loss"] for row in rows(Path("compiled"))] == pytest.approx(
        [row["loss"] for row in rows(Path("eager"))], rel=1e-5
    )


@pytest.mark.slow
def test_a_compiled_network_trains_as_an_eager_one(tiny: Tiny) -> None:
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8))
    except Exception as error:
        pytest.skip(f"no compiler: {str(error).splitlines()[0]}")
    for compiled in (False, True):
        assert main(tiny("epochs=1", f"compile={compiled}", f"run.dir=run-{compiled}")) == 0
    eager, fast = (
        load_checkpoint(Path(f"run-{c}/checkpoint.pt"))["modules"] for c in (False, True)
    )
    assert eager.keys() == fast.keys()
    for part in eager:
        assert eager[part].keys() == fast[part].keys()  # no `_orig_mod.`
        for name, expected in eager[part].items():
            torch.testing.assert_close(
                fast[part][name], expected, rtol=1e-3, atol=1e-4, msg=f"{part}.{name}"
            )
