"""Every method by name, in tiny runs: it trains, keeps its state, waits for nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import ROOT
from helpers.posterior import reference_targets
from helpers.training import SOONER, NoReadback, NoTracker
from torch import Tensor

from noisybsd.config import build_config, load_config
from noisybsd.data.dataset import load_dataset
from noisybsd.engine.trainer import Trainer
from noisybsd.errors import UserError
from noisybsd.methods import parts, registry
from noisybsd.methods.bsd import PosteriorTargets
from noisybsd.methods.presets import METHODS
from noisybsd.methods.registry import LOSSES, TARGET_RULES, options
from noisybsd.runs.signals import Stopped

NAMES = (
    "ce label_smoothing mixup ce_ema gce sce elr sop sop_plus selc temporal_ensembling ps_kd ctrr "
    "simclr_ce tcl ssr ssr_plus ill bsd bsd_simclr bsd_supcon bsd_plus bsd_plus_one_view bsd_plus_neighbours"
)
SMALL = (
    "recipe=digits_sym40",
    "epochs=2",
    "batch_size=64",
    "data.limit=200",
    "network.width=4",
    "network.embedding_dim=8",
    "neighbours.k=10",
    "neighbours.start_epoch=1",
    "device=cpu",
)


class StopAfter:
    """A signal that arrives before the step of this number."""

    def __init__(self, steps: float):
        self.steps = steps

    @property
    def received(self) -> int:
        self.steps -= 1
        return int(self.steps < 0)


def trainer(method: str, *settings: str) -> Trainer:
    config = load_config([*SMALL, f"method={method}", *SOONER.get(method, []), *settings])
    dataset = load_dataset(config.data, config.noise, config.seed)
    return Trainer(config, dataset, torch.device("cpu"))


def train(run: Trainer, epochs: int, stop: Any = None) -> None:
    while run.epoch < epochs:
        run.train_epoch(NoTracker(), stop or StopAfter(torch.inf))  # type: ignore[arg-type]
        run.history.append(run.end_epoch())


def tensors(run: Trainer) -> Iterator[tuple[str, Tensor]]:
    for name, module in run.modules().items():
        for key, value in module.state_dict().items():
            yield f"{name}.{key}", value.clone()


def test_the_methods_are_those_promised() -> None:
    assert set(METHODS) == set(NAMES.split())


@pytest.mark.parametrize("method", METHODS)
def test_a_preset_leaves_nothing_of_another_method(method: str) -> None:
    """Over a recipe of any other method it gives what it gives alone."""
    alone = build_config({"recipe": "test", "method": method})
    for other in METHODS:
        both = build_config({"recipe": "test", "method": other}, {"method": method})
        # the width of the search is no part of a method
        neighbours = both.neighbours.model_copy(update={"k": alone.neighbours.k})
        assert both.model_copy(update={"neighbours": neighbours}) == alone


@pytest.mark.parametrize("method", METHODS)
def test_a_preset_names_every_option(method: str) -> None:
    """config.yaml then records the published numbers, whatever the defaults become."""
    preset = METHODS[method]
    taken = options(TARGET_RULES[preset["targets"]]) | options(LOSSES[preset["loss"]])
    assert taken.keys() == preset.get("options", {}).keys()


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_and_an_interrupted_run_ends_the_same(method: str) -> None:
    whole = trainer(method)
    before = dict(tensors(whole))
    train(whole, 2)
    expected = dict(tensors(whole))
    assert all(value.isfinite().all() for value in expected.values() if value.is_floating_point())
    assert all(0 <= row["test_accuracy"] <= 1 for row in whole.history)
    # whatever the network, the rule and the loss hold has moved
    still = [name for name in before if torch.equal(before[name], expected[name])]
    still = [name for name in still if not name.endswith("num_batches_tracked")]  # not counted
    assert not [name for name in still if name.startswith(("network", "rule", "loss"))]

    first = trainer(method)
    train(first, 1)
    with pytest.raises(Stopped):
        train(first, 2, StopAfter(1))  # in the second epoch
    assert first.step_number % first.loader.steps_per_epoch
    second = trainer(method)
    second.load_state(first.state())
    train(second, 2)
    for name, value in tensors(second):
        assert torch.equal(value, expected[name]), name
    assert second.history[-1]["loss"] == whole.history[-1]["loss"]


def test_a_run_is_as_sharp_as_its_epoch_also_when_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    targets = PosteriorTargets.targets

    def noting(rule: PosteriorTargets, index: Tensor) -> Tensor:
        seen.append(rule.target_temperature)
        return targets(rule, index)

    monkeypatch.setattr(PosteriorTargets, "targets", noting)
    monkeypatch.setattr(PosteriorTargets, "SOFTENS", (0.3, 0.9))
    first = trainer("bsd_plus", "epochs=5")
    steps = first.loader.steps_per_epoch
    with pytest.raises(Stopped):
        train(first, 5, StopAfter(2 * steps + 1))  # in the third epoch
    second = trainer("bsd_plus", "epochs=5")
    second.load_state(first.state())
    train(second, 5)
    # epochs begin at 0, 0.2, 0.4, 0.6, 0.8 of the run; from 0.3 to 0.9 it is 0.25^1 to 0.25^0
    expected = [0.25, 0.25, 0.25 ** (5 / 6), 0.25 ** (3 / 6), 0.25 ** (1 / 6)]
    assert seen == pytest.approx([each for each in expected for _ in range(steps)])


@pytest.mark.parametrize("method", ["bsd", "bsd_simclr", "bsd_supcon"])
def test_the_papers_methods_are_its_recursion(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets of training are those of the equations, in plain Python, from the run's predictions."""
    predictions: dict[int, list[list[float]]] = {}
    targets: dict[int, list[list[float]]] = {}
    observe, target = PosteriorTargets.observe, PosteriorTargets.targets

    def seen(rule: PosteriorTargets, index: Tensor, probs: Tensor) -> None:
        for i, p in zip(index.tolist(), probs[0].tolist(), strict=True):  # the weak view
            predictions.setdefault(i, []).append(p)
        observe(rule, index, probs)

    def learned(rule: PosteriorTargets, index: Tensor) -> Tensor:
        found = target(rule, index)
        for i, y in zip(index.tolist(), found.tolist(), strict=True):
            targets.setdefault(i, []).append(y)
        return found

    monkeypatch.setattr(PosteriorTargets, "observe", seen)
    monkeypatch.setattr(PosteriorTargets, "targets", learned)
    run = trainer(method, "epochs=4")
    train(run, 4)
    labels = run.labels.tolist()
    assert (
        sum(map(len, targets.values())) == 4 * 192
    )  # the last, smaller batch of an epoch is left out
    for i, found in targets.items():
        expected = reference_targets(
            labels[i], predictions[i], prior_strength=8.0, prior_floor=1e-3, discount=0.8
        )
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))
    assert (run.contrastive is not None) == (method != "bsd")


@pytest.mark.parametrize("method", METHODS)
def test_a_step_does_not_wait_for_the_device(method: str) -> None:
    run = trainer(method)
    train(run, 1)
    run.network.train()
    run.rule.start_epoch(1)
    run.loss.start_epoch(1)
    (index, images), *_ = run.loader.epoch(1)
    with NoReadback():
        run.step(index, images)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_cuda_steps_do_not_wait(method: str) -> None:
    config = load_config([*SMALL, f"method={method}", *SOONER.get(method, []), "device=cuda"])
    dataset = load_dataset(config.data, config.noise, config.seed)
    run = Trainer(config, dataset, torch.device("cuda"))
    train(run, 1)
    run.network.train()
    run.rule.start_epoch(1)
    run.loss.start_epoch(1)
    for index, images in run.loader.epoch(1):
        torch.cuda.set_sync_debug_mode("error")
        try:
            run.step(index, images)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    run.check_finite()
    run.history.append(run.end_epoch())


def batch_of_a_step(run: Trainer, monkeypatch: pytest.MonkeyPatch) -> parts.Batch:
    """What the loss is given in the first step."""
    seen = []
    forward = run.loss.forward

    def record(batch: parts.Batch) -> Tensor:
        seen.append(batch)
        return forward(batch)

    monkeypatch.setattr(run.loss, "forward", record)
    index, images = next(iter(run.loader.epoch(0)))
    run.network.train()
    run.step(index, images)
    return seen[0]


def test_mixup_mixes_the_images_and_the_labels_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs: list[Tensor] = []
    run = trainer("mixup")
    run.network.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    batch = batch_of_a_step(run, monkeypatch)
    plain = trainer("ce")
    plain.network.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    batch_of_a_step(plain, monkeypatch)
    mixup = batch.mixup
    assert mixup is not None and batch.logits.shape[0] == 1
    labels = torch.nn.functional.one_hot(run.labels, 10).float()
    partners = batch.index[mixup.partner]
    weight = float(mixup.weight)
    expected = weight * labels[batch.index] + (1 - weight) * labels[partners]
    torch.testing.assert_close(batch.targets, expected)
    mixed = weight * inputs[1] + (1 - weight) * inputs[1][mixup.partner]
    torch.testing.assert_close(inputs[0], mixed)


def test_tcl_gets_mixed_images_beside_the_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs: list[Tensor] = []
    run = trainer("tcl")
    run.network.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    batch = batch_of_a_step(run, monkeypatch)
    weak, strong, *mixed = inputs[0].split(64)
    assert batch.mixup is not None and batch.logits.shape[0] == 4 and len(batch.z) == 4 * 64
    torch.testing.assert_close(mixed[0], batch.mixup(weak))
    torch.testing.assert_close(mixed[1], batch.mixup(strong))
    assert batch.targets.max(dim=1).values.eq(1).all()  # the labels, not mixed
    # what is recorded of a sample is of its plain weak view
    torch.testing.assert_close(run.bank.features[batch.index], batch.z[:64])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["method=bsd", "augment.mixup=1"], "augment.mixup=1.0 does not go with targets=posterior"),
        (["method=sop", "augment.mixup=1"], "targets=labels and a loss of cross_entropy"),
        (["method=tcl", "augment.mixup=0"], "loss=tcl needs mixed images: use augment.mixup=1"),
        (["method=ctrr", "augment.views=[weak]"], "loss=ctrr needs two views"),
        (["method=ce", "neighbours.weight=1"], "method=ce takes none: use method="),
        (["method=ssr", "neighbours.weight=0"], "targets=ssr selects by the votes of neighbours"),
        (["method=ssr_plus", "augment.views=[weak]"], "loss=ssr_plus needs two views"),
        (["method=elr", "augment.mixup=-1"], "augment.mixup"),
        (["method=eler"], "did you mean elr?"),
    ],
)
def test_parts_that_do_not_go_together(settings: list[str], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        load_config(["recipe=digits_sym40", *settings])


def test_the_docs_example_of_a_new_method_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The snippet of docs/extending.md runs unchanged, and its method trains and takes its option."""
    text = (ROOT / "docs" / "extending.md").read_text("utf-8")
    (snippet,) = re.findall(r"```python\n(.*?class FocalLoss.*?)```", text, re.DOTALL)
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 15
    monkeypatch.setitem(LOSSES, "focal", LOSSES["cross_entropy"])  # taken out again afterwards
    monkeypatch.setitem(METHODS, "focal", METHODS["ce"])
    names = {**vars(registry), **vars(parts), "METHODS": METHODS, "Tensor": Tensor}
    exec(compile(snippet, "docs/extending.md", "exec"), names)

    run = trainer("focal", "options.gamma=3")
    assert type(run.loss).__name__ == "FocalLoss" and run.loss.gamma == 3
    train(run, 1)
    assert run.history[0]["loss"] < trainer_loss("ce")  # (1 - p)^gamma < 1


def trainer_loss(method: str) -> float:
    run = trainer(method)
    train(run, 1)
    return float(run.history[0]["loss"])
