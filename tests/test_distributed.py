"""Many processes train as one does: the same steps, the same state, the same numbers, whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranks import on_ranks, results
from test_methods import SOONER, NoTracker
from torch import Tensor

from noisybsd import distributed
from noisybsd.config import load_config
from noisybsd.data import load_dataset
from noisybsd.loader import epoch_order
from noisybsd.methods import METHODS
from noisybsd.parts import Mixup
from noisybsd.trainer import Trainer

N, BATCH = 97, 24  # 4 steps an epoch, and a sample that is left over
SMALL = (
    "recipe=digits_sym40",
    f"data.limit={N}",
    f"batch_size={BATCH}",
    "epochs=3",
    "network.width=4",
    "network.embedding_dim=8",
    "neighbours.start_epoch=1",
    "neighbours.engine=torch",
    "neighbours.k=5",
    "device=cpu",
    "tracking.wandb=disabled",
)


# --- the same as one process ------------------------------------------------------------------------


def build(settings: tuple[str, ...]) -> Trainer:
    """A trainer whose views are functions of the image alone."""
    config = load_config([*SMALL, *settings])
    trainer = Trainer(
        config, load_dataset(config.data, config.noise, config.seed), torch.device("cpu")
    )
    plain = trainer.views.plain
    views = SimpleNamespace(
        plain=plain, weak=plain, strong=lambda images: 0.8 * plain(images).roll(1, dims=3)
    )
    trainer.views = views  # type: ignore[assignment]
    return trainer


def train_epochs(trainer: Trainer, epochs: int = 2) -> dict[str, Any]:
    while trainer.epoch < epochs:
        trainer.train_epoch(NoTracker(), SimpleNamespace(received=0))  # type: ignore[arg-type]
        trainer.history.append(trainer.end_epoch())
    return trainer.state()


def train_on_rank(settings: tuple[str, ...]) -> tuple[dict[str, Any], list[Mixup]]:
    torch.set_num_threads(1)
    drawn, draw = [], Mixup.draw

    def remembered(*arguments: Any) -> Mixup:
        drawn.append(draw(*arguments))
        return drawn[-1]

    Mixup.draw = remembered  # type: ignore[method-assign, assignment]
    with distributed.process_group():
        return train_epochs(build(settings)), drawn


def train_alone(
    settings: tuple[str, ...], world_size: int, drawn: list[list[Mixup]], patch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The same joint batches, mixed alike, in a single process."""
    trainer = build(settings)
    share = BATCH // world_size
    labels, balanced = trainer.dataset.train.labels, trainer.config.data.balanced
    images = trainer.dataset.train.images
    assert isinstance(images, Tensor)

    def joint_batches(epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        shards = [
            epoch_order(
                N, 0, epoch, rank=r, world_size=world_size, labels=labels, balanced=balanced
            )
            for r in range(world_size)
        ]
        for step in range(start, trainer.loader.steps_per_epoch):
            index = torch.cat([shard[step * share : (step + 1) * share] for shard in shards])
            yield index, images[index]

    patch.setattr(trainer.loader, "epoch", joint_batches)

    def joint_mixup(*_: Any) -> Mixup:
        parts = [of_rank[trainer.step_number] for of_rank in drawn]
        partner = torch.cat([part.partner + r * share for r, part in enumerate(parts)])
        return Mixup(parts[0].weight, partner)

    patch.setattr(Mixup, "draw", joint_mixup)
    return train_epochs(trainer)


def assert_close(actual: Any, expected: Any, path: str = "") -> None:
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), path
        for key in expected:
            assert_close(actual[key], expected[key], f"{path}/{key}")
    elif isinstance(expected, list):
        assert len(actual) == len(expected), path
        for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_close(one, other, f"{path}/{i}")
    elif isinstance(expected, Tensor):
        assert actual.dtype == expected.dtype and actual.shape == expected.shape, path
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=2e-4, msg=f"{path} differs")
    else:
        assert actual == (
            pytest.approx(expected, rel=1e-3, abs=2e-4) if isinstance(expected, float) else expected
        ), path


@pytest.mark.parametrize(
    ("settings", "world_size"),
    [
        *(((f"method={method}",), 2) for method in METHODS),
        (("method=bsd_supcon",), 3),
        (("method=tcl",), 3),
        (("method=sop_plus", "optimizer.clip_norm=1"), 3),
        (("method=bsd_neighbours", "data.storage=stream"), 3),
        (("method=ce", "data.balanced=6"), 2),
    ],
)
def test_joint_steps_are_those_of_a_single_process(
    settings: tuple[str, ...],
    world_size: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights, weight average, optimiser, posterior, bank, mixture, metrics: after two epochs."""
    method = settings[0].removeprefix("method=")
    settings = (*settings, *SOONER.get(method, []))
    ended = results(on_ranks(world_size, train_on_rank, settings, folder=tmp_path))
    states = [state for state, _ in ended]
    alone = train_alone(settings, world_size, [drawn for _, drawn in ended], monkeypatch)
    for state in states:
        assert state.pop("world_size") == world_size
        for times in ("train_seconds", "wandb_id"):
            del state[times]
    for name in ("world_size", "train_seconds", "wandb_id"):
        del alone[name]
    assert_close(states[0], alone)
    for other in states[1:]:  # a rank differs from another in nothing
        assert_close(other, states[0])
