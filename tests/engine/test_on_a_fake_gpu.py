"""What a step and the end of an epoch would do on a GPU, of every method, found without one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.fake_gpu import GPU, Watch, fake_gpu, random_images
from torch import Tensor

from noisybsd.config import load_config
from noisybsd.data.views import Views
from noisybsd.engine.trainer import Trainer
from noisybsd.methods.presets import METHODS

# of a copy of a module, which fake tensors are in
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")

K, B = 4, 8
SETTINGS = (
    "recipe=digits_sym40",
    "augment.name=cifar",
    "data.storage=resident",
    f"batch_size={B}",
    "network.width=4",
    "network.embedding_dim=8",
    "neighbours.k=3",
)
# settings with arithmetic of their own, beside the methods'
VARIANTS = (
    "optimizer.name=adamw",
    "optimizer.clip_norm=1",
    "options.top_k=3",
    "neighbours.weight=1",
    "augment.name=digits",
    "augment.name=cifar_randaugment",
    "augment.flip=alternating",
    "precision=fp32",
    "data.balanced=6",
)


def trainer_on_a_gpu(*settings: str) -> Trainer:
    trainer = Trainer(load_config([*SETTINGS, *settings]), random_images(3 * B, K), GPU)
    start_epoch(trainer, 0)
    return trainer


def start_epoch(trainer: Trainer, epoch: int) -> None:
    trainer.network.train()
    trainer.loss.start_epoch(epoch)
    trainer.rule.start_epoch(epoch)


@pytest.mark.parametrize("setting", [*(f"method={name}" for name in METHODS), *VARIANTS])
def test_a_step_keeps_to_the_gpu(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first epoch and in the last one: no device is mixed up, nothing is read or copied."""
    with fake_gpu(monkeypatch):
        trainer = trainer_on_a_gpu(setting)
        first, second, _ = trainer.loader.epoch(0)
        with Watch():
            trainer.step(*first)
        start_epoch(trainer, trainer.config.epochs - 1)
        with Watch() as watch:
            trainer.step(*second)
        assert trainer.network.classifier.weight.grad is not None
    assert watch.kernels["convolution_backward"] == 3
    assert watch.kernels["_foreach_lerp_"] == 1  # the weight average
    launched = [name for name in watch.kernels if name.startswith("_fused")]
    assert launched == ["_fused_adamw_" if "adamw" in setting else "_fused_sgd_"]


@pytest.mark.parametrize("method", METHODS)
def test_beliefs_are_looked_at_on_the_gpu(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the end of an epoch asks of rule and monitor; metrics are read after it, all at once."""
    with fake_gpu(monkeypatch):
        trainer = trainer_on_a_gpu(f"method={method}")
        batch = next(trainer.loader.epoch(0))
        with Watch():
            trainer.step(*batch)
            suggested = trainer.suggested()
            trainer.monitor.record_belief(suggested, 0)
            of_given = trainer.rule.probability(trainer.labels)
            ballots = trainer.rule.ballots()
            if ballots is not None:
                trainer.rule.observe_neighbours(ballots)
        assert suggested.device == GPU and suggested.shape == (3 * B,)
        assert of_given is None or of_given.shape == (3 * B,)


def test_an_evaluation_copies_the_labels_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_gpu(monkeypatch):
        trainer = trainer_on_a_gpu("method=ce")
        monkeypatch.setattr("noisybsd.engine.trainer.evaluation_batch", lambda *_: 10)
        with Watch(copies=1) as watch:
            logits, z, labels = trainer.predict(trainer.network, trainer.test)
        assert {logits.device, z.device, labels.device} == {GPU}
        assert (logits.shape, labels.shape) == ((3 * B, K), (3 * B,))
    assert watch.copied == 1
    assert watch.kernels["convolution"] == 3 * 3  # in three batches


@pytest.mark.parametrize(("names", "most"), [(("weak",), 16), (("weak", "strong"), 140)])
def test_views_launch_few_kernels(
    names: tuple[str, ...], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each launch takes the host as long as the device takes for a batch of small images."""
    with fake_gpu(monkeypatch):
        views = Views("cifar", 8, mean=(0.5,) * 3, std=(0.25,) * 3).to(GPU)
        images = torch.zeros(B, 3, 8, 8, dtype=torch.uint8, device=GPU)
        with Watch() as watch:
            views(images, names)
    assert watch.kernels.total() <= most


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda x, host: x.sum().item(), "reads the GPU"),
        (lambda x, host: x[x > 0], "reads its mask"),
        (lambda x, host: x.nonzero(), "reads the GPU"),
        (lambda x, host: x.cpu(), "copies to the host"),
        (lambda x, host: host.to(GPU), "copies from the host"),
        (lambda x, host: x.copy_(host), "copies from the host"),
        (lambda x, host: torch.tensor([1.0, 2.0], device=GPU), "the host"),
        (lambda x, host: x[[0, 2]], "the host"),
        (lambda x, host: x + host, "(same|different) devices?"),
        (lambda x, host: host + 1, "is the host's work"),
    ],
)
def test_the_watch_sees_what_it_is_for(
    act: Callable[[Tensor, Tensor], object], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_gpu(monkeypatch):
        x, host = torch.ones(4, device=GPU), torch.ones(4)
        with pytest.raises((AssertionError, RuntimeError), match=says), Watch():
            act(x, host)


def test_the_watch_lets_a_gpu_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_gpu(monkeypatch):
        x = torch.ones(4, 4, device=GPU)
        with Watch() as watch:
            y = (x @ x).t()[x.argmax(1)] * 2 + torch.full((), 3.0, device=GPU)
        assert y.device == GPU
    assert sum(watch.kernels.values()) == 6
