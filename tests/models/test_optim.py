import copy
import itertools

import pytest
import torch

from noisybsd.models.networks import build_network
from noisybsd.models.optim import WeightEma, build_optimizer, learning_rate, set_learning_rate
from noisybsd.settings import OptimizerConfig

CONFIG = OptimizerConfig(lr=0.4, min_lr=0.1)


def holding(parameter: torch.nn.Parameter) -> torch.nn.Module:
    module = torch.nn.Module()
    module.x = parameter
    return module


def test_schedule_warms_up_linearly_then_follows_a_cosine() -> None:
    rates = [learning_rate(step, 100, 3, CONFIG) for step in range(101)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rates[3 + 97 // 2] == pytest.approx(0.25, abs=0.01)  # half way down
    assert rates[100] == pytest.approx(0.1)
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_a_linear_schedule_falls_by_the_same_amount_at_every_step() -> None:
    config = OptimizerConfig(lr=0.4, min_lr=0.1, schedule="linear")
    rates = [learning_rate(step, 100, 4, config) for step in range(101)]
    falls = [before - after for before, after in itertools.pairwise(rates[4:])]
    assert falls == pytest.approx([0.3 / 96] * 96)
    assert rates[:5] == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.4]) and rates[
        100
    ] == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_batch_norm_biases_learn_faster_and_shrink_at_the_same_pace(name: str) -> None:
    network = build_network("fast_resnet", 10, width=4)  # with a batch norm in the projection head
    config = OptimizerConfig(name=name, lr=0.1, weight_decay=0.01, norm_bias_lr=64)
    optimizer = build_optimizer([network], config)
    set_learning_rate(optimizer, 0.05)
    rates, shrinking = {}, set()
    for group in optimizer.param_groups:
        rates |= {id(p): group["lr"] for p in group["params"]}
        shrinking.add(round(group["lr"] * group["weight_decay"], 9))
    norms = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 7
    biases = {id(m.bias) for m in norms}
    learned = {id(p) for p in network.parameters() if p.requires_grad}
    assert rates == {p: 0.05 * (64 if p in biases else 1) for p in learned}
    assert shrinking == {0.0005}


def test_schedule_without_warm_up_starts_at_the_peak() -> None:
    assert learning_rate(0, 10, 0, CONFIG) == pytest.approx(0.4)


def test_ema_is_the_weighted_mean_of_the_weights_it_saw() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    ema = WeightEma(network, decay=0.5)
    expected = network[0].weight.detach().clone()
    for step in range(20):
        with torch.no_grad():
            network[0].weight.normal_()
            network[1].running_mean.normal_()
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network[0].weight.detach()
    torch.testing.assert_close(ema.network[0].weight, expected)
    assert not torch.equal(ema.network[1].running_mean, network[1].running_mean)
    assert ema.network[1].running_mean.abs().sum() > 0  # batch statistics are averaged too
    assert not any(p.requires_grad for p in ema.parameters())


def walked(ema: WeightEma, network: torch.nn.Module, step: int) -> dict[str, torch.Tensor]:
    """What the average is after an update, from state dictionaries: the slow reference."""
    decay = min(ema.decay, (1 + step) / (10 + step))
    theirs = network.state_dict()
    return {
        name: mine.lerp(theirs[name], 1 - decay) if mine.is_floating_point() else mine.clone()
        for name, mine in ema.network.state_dict().items()
    }


def moved(network: torch.nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.add_(1)


@pytest.mark.parametrize("event", ["nothing", "to", "load_state_dict", "deepcopy", "compile"])
def test_ema_follows_the_network_whatever_happens_to_it(event: str) -> None:
    """The list of tensors is made once; what replaces a tensor must not leave the old one in it.

    Of many processes, test_distributed.py compares the averages.
    """
    network: torch.nn.Module = build_network("small_cnn", 4, 3, width=2, embedding_dim=4)
    ema = WeightEma(network, decay=0.5)
    ema.update(0)
    if event == "to":
        network, ema = network.double(), ema.double()
    elif event == "load_state_dict":
        for module in (network, ema):
            module.load_state_dict({k: v + 2 for k, v in module.state_dict().items()})
    elif event == "deepcopy":
        network, ema = copy.deepcopy((network, ema))
    elif event == "compile":
        torch.compile(network, backend="eager")(torch.rand(4, 3, 8, 8))
    for step in range(1, 4):
        moved(network)
        expected = walked(ema, network, step)
        ema.update(step)
        torch.testing.assert_close(dict(ema.network.state_dict()), expected)
    assert ema.state_dict().keys() == {f"network.{name}" for name in network.state_dict()}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizers_lower_a_quadratic(name: str) -> None:
    x = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    config = OptimizerConfig(name=name, lr=0.05, weight_decay=0.0)
    optimizer = build_optimizer([holding(x)], config)
    for _ in range(200):
        optimizer.zero_grad()
        (x**2).sum().backward()
        optimizer.step()
    assert x.abs().max() < 0.1


def test_sgd_without_momentum_is_plain() -> None:
    """Nesterov needs momentum; without it there is none to refuse."""
    x = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = build_optimizer(
        [holding(x)], OptimizerConfig(lr=0.1, momentum=0.0, weight_decay=0.0)
    )
    (2 * x).sum().backward()
    optimizer.step()
    assert x.item() == pytest.approx(0.8)
