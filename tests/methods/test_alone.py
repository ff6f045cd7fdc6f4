"""Every method by name, without a recipe."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.training import SOONER, TINY, NoTracker
from torch import nn
from torch.nn.functional import normalize

from noisybsd import methods
from noisybsd.config import load_config
from noisybsd.data.dataset import load_dataset
from noisybsd.engine.trainer import Trainer
from noisybsd.methods.parts import Batch
from noisybsd.methods.presets import METHODS
from noisybsd.methods.registry import LOSSES


@pytest.mark.parametrize("name", [name for name in METHODS if name != "bsd_plus_neighbours"])
def test_a_methods_step_is_the_trainers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [*TINY, f"method={name}", "data.limit=64", "epochs=2", "contrastive.temperature=0.5"]
    config = load_config([*settings, *SOONER.get(name, [])])
    dataset = load_dataset(config.data, config.noise, config.seed)
    torch.manual_seed(0)
    trainer = Trainer(config, dataset, torch.device("cpu"))
    changed = {k.removeprefix("options."): float(v) for k, v in _pairs(SOONER.get(name, []))}
    method = methods.build(
        name, dataset.train.labels, 10, epochs=2, embedding_dim=8, temperature=0.5, **changed
    )
    losses: list[tuple[float, float]] = []
    mine: list[Any] = []
    trained = trainer.loss.forward

    def spy(batch: Any) -> Any:
        method.loss.load_state_dict(
            trainer.loss.state_dict()
        )  # what a random start or SGD makes of it
        z = batch.z.detach() if len(batch.z) else None
        mine.append(method.step(batch.index, batch.logits.detach(), z, batch.mixup))
        return trained(batch)

    def add(step: int, loss: Any, *others: Any) -> None:
        losses.append((loss.item(), mine.pop().item()))

    monkeypatch.setattr(trainer.loss, "forward", spy)
    monkeypatch.setattr(trainer.sums, "add", add)
    for epoch in range(2):
        method.start_epoch(epoch)
        trainer.train_epoch(NoTracker(), type("Never", (), {"received": 0})())  # type: ignore[arg-type]
        trainer.history.append({})
    assert len(losses) == 4
    for theirs, mine in losses:
        assert mine == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("name", ["elr", "sop_plus", "ssr"])
def test_a_state_has_the_epoch_and_belongs_to_its_labels(name: str) -> None:
    method, again = (methods.build(name, [0, 1, 1], 2, epochs=4) for _ in range(2))
    method.start_epoch(3)
    again.load_state_dict(method.state_dict())
    assert again.epoch == 3
    with pytest.raises(ValueError, match="state_dict: belongs to other labels than these"):
        methods.build(name, [0, 1, 0], 2, epochs=4).load_state_dict(method.state_dict())


def _pairs(settings: list[str]) -> list[list[str]]:
    return [setting.split("=") for setting in settings]


@pytest.mark.parametrize("name", METHODS)
def test_a_plain_loop_trains_with_every_method(name: str) -> None:
    torch.manual_seed(0)
    labels = torch.arange(24) % 3
    images = torch.randn(24, 5) + 3 * nn.functional.one_hot(labels, 5)
    method = methods.build(name, labels, 3, epochs=3, embedding_dim=4)
    encoder, head, project = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 4)
    parameters = [p for part in (encoder, head, project, method) for p in part.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    for epoch in range(3):
        method.start_epoch(epoch)
        for index in torch.randperm(24).split(8):
            views = [images[index] + 0.1 * torch.randn(8, 5) for _ in range(method.views)]
            mixup = method.draw_mixup(8)
            if mixup is not None:
                mixed = [mixup(view) for view in views]
                views = [*views, *mixed] if method.loss.mixup == "beside" else mixed
            h = encoder(torch.cat(views))
            z = normalize(project(h), dim=1) if method.uses_embedding else None
            loss = method.step(index, head(h).unflatten(0, (len(views), 8)), z, mixup)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert loss.isfinite()
            targets = method.targets(index)
            assert targets.shape == (8, 3) and targets.isfinite().all()
    if (belief := method.mean()) is not None:
        assert torch.allclose(belief.sum(1), torch.ones(24), atol=1e-5)
        suggested = method.suggested()
        assert suggested is not None and suggested.shape == (24,)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_says_what_it_learns(loss: str) -> None:
    name = next(name for name, preset in METHODS.items() if preset["loss"] == loss)
    given, other = torch.arange(12) % 3, (torch.arange(12) + 1) % 3
    method = methods.build(name, given, 3, epochs=20, embedding_dim=4)
    method.start_epoch(1)  # in the first one temporal ensembling has no ensemble
    torch.manual_seed(0)
    views = method.views * (2 if method.loss.mixup == "beside" else 1)
    logits = torch.randn(views, 12, 3, requires_grad=True)
    z = normalize(torch.randn(views * 12, 4), dim=1)
    targets, mixup = torch.randn(12, 3).softmax(1), method.draw_mixup(12)

    def gradient(labels: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        step = Batch(torch.arange(12), labels, logits, z, learned, mixup)
        return torch.autograd.grad(copy.deepcopy(method.loss)(step), logits)[0]

    plain = gradient(given, targets)
    assert (not torch.equal(plain, gradient(other, targets))) == LOSSES[loss].learns_labels
    assert (not torch.equal(plain, gradient(given, targets.flip(1)))) == LOSSES[loss].learns_targets
    weights = 2.0 * (torch.arange(12) % 2)[:, None]  # of mean 1, by which SSR divides
    halves = gradient(given, weights * targets) + gradient(given, (2 - weights) * targets)
    linear = torch.allclose(halves, 2 * plain, atol=1e-6)
    linear = linear and not gradient(given, 0 * targets).any()
    assert linear == LOSSES[loss].takes_weights


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("elrr", {}, "name: got 'elrr', did you mean elr?"),
        (["elr"], {}, "name: got ['elr'], did you mean elr?"),
        ("elr", {"betta": 0.5}, "option of elr: got 'betta', did you mean beta?"),
        ("elr", {"beta": 2.0}, "beta: got 2.0; Input should be less than 1"),
        ("ce", {"beta": 0.5}, "option of ce: got 'beta'; valid: no options"),
        ("bsd_supcon", {"temperature": 0.0}, "temperature: got 0.0; valid"),
        ("bsd_supcon", {"temperature": "0.3"}, "temperature: got '0.3'; valid"),
        ("ctrr", {"embedding_dim": "8"}, "embedding_dim: got '8'; valid: a whole number from 1"),
    ],
)
def test_wrong_arguments_are_named(name: Any, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        methods.build(name, [0, 1], 2, epochs=2, **settings)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["elr", "selc", "temporal_ensembling"])
def test_what_is_not_a_number_does_not_spoil_the_memory(name: str) -> None:
    method = methods.build(name, [0, 1], 2, epochs=2)
    method.start_epoch(1)
    assert method.step(torch.arange(2), torch.full((2, 2), torch.nan)).isnan()
    assert method.step(torch.arange(2), torch.zeros(2, 2)).isfinite()


@pytest.mark.parametrize("name", ["bsd_plus", "bsd_plus_neighbours"])
def test_neighbours_are_evidence_where_the_method_says_so(name: str) -> None:
    method = methods.build(name, [0, 0], 2, epochs=2)
    votes = method.rule.ballots()
    assert votes is not None
    method.rule.observe_neighbours(votes.flip(1))
    method.step(torch.arange(2), torch.zeros(2, 2, 2), torch.eye(4))
    belief = method.mean()
    assert belief is not None
    assert (belief[0, 1] > 0.1) == (name == "bsd_plus_neighbours")


def test_a_step_says_what_is_missing() -> None:
    index, logits = torch.arange(2), torch.zeros(2, 2, 2)
    with pytest.raises(ValueError, match="z: got None; valid: \\(4, D\\)"):
        methods.build("bsd_plus", [0, 1], 2, epochs=2).step(index, logits)
    with pytest.raises(
        ValueError, match="z: got shape \\(4, 32\\); valid: \\(4, 128\\), or build the "
    ):
        methods.build("ctrr", [0, 1], 2, epochs=2).step(index, logits, torch.ones(4, 32))
    with pytest.raises(ValueError, match="z: got array"):
        methods.build("ctrr", [0, 1], 2, epochs=2).step(index, logits, torch.ones(4, 128).numpy())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="index: got one sample; valid: two or more, for ctrr has"):
        methods.build("ctrr", [0, 1], 2, epochs=2).step(
            index[:1], logits[:, :1], torch.ones(2, 128)
        )
    with pytest.raises(ValueError, match="epoch: got '1'; valid: a whole number from 0"):
        methods.build("ctrr", [0, 1], 2, epochs=2).start_epoch("1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="index: got list; valid: a tensor of integers"):
        methods.build("elr", [0, 1], 2, epochs=2).targets([0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="logits: got 2 views; valid: 1 for the method elr"):
        methods.build("elr", [0, 1], 2, epochs=2).step(index, logits)
    mixing = methods.build("mixup", [0, 1], 2, epochs=2)
    with pytest.raises(ValueError, match=r"mixup: mixes 3 images; valid: draw_mixup\(2\), as many"):
        mixing.step(index, logits[0], mixup=mixing.draw_mixup(3))
    with pytest.raises(ValueError, match="batch_size: got '2'; valid: a whole number from 1"):
        mixing.draw_mixup("2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mixup: got None; valid: what draw_mixup returns"):
        methods.build("mixup", [0, 1], 2, epochs=2).step(index, logits[0])
