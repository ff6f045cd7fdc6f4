"""What a GPU would wait for: the host's time in a step, an evaluation and a checkpoint, two ways each.

    python benchmarks/host.py --out results/host.csv
    python benchmarks/host.py --device cuda --network preact_resnet18 --width 64 --batch 256

A row is a part of the work and the way that it is done: `plain` is how torch, or Kornia, does it by
itself, `ours` how noisybsd does it. Small images in a small batch leave little but the host's own work;
on a GPU the clock stops before the device has finished (but for a checkpoint, which reads it). Ways
take turns in every round, so that a busy machine slows both alike.

Parts:
    seed                torch.manual_seed; the generator of the device alone
    views               weak and strong, one after the other by Kornia's own calls; together
    network             forward in training, batch norms that count batches; that do not
    weight average      found by walks through two state dictionaries; by lists made once
    step                all of these, in a whole step of `--method`
    evaluation          batches of 500 at most, the labels copied with each; on a GPU larger ones, one copy
    checkpoint          the bank of embeddings in float32; in half precision, as a run in bf16 has it
Columns:
    part, way           above
    ms_*                milliseconds of CPU time (on a GPU: by the host's clock); median and quartiles
    ours_over_plain_*   ratio of the two within a round
    megabytes           of the checkpoint
    n                   turns
    method, network, width, batch, size, samples, device, threads    what was trained, and where
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from common import Row, quartiles, take_turns, write_csv
from kornia.augmentation import AugmentationBase2D
from step import endless, random_dataset
from torch import Tensor, nn

from noisybsd.config import load_config
from noisybsd.data.augment import Operator
from noisybsd.engine import trainer as trainer_module
from noisybsd.engine.predict import predict
from noisybsd.engine.trainer import Trainer, seed_generators
from noisybsd.models.networks import UncountedBatchNorm
from noisybsd.models.optim import WeightEma
from noisybsd.runs.checkpoint import save_checkpoint
from noisybsd.runs.environment import pick_device

Work = Callable[[], object]


# --- the plain way ------------------------------------------------------------------------------------


def seed_all(seed: int, device: torch.device) -> None:
    torch.manual_seed(seed)


@torch.no_grad()
def average_by_state_dicts(ema: WeightEma, network: nn.Module, step: int) -> None:
    mine, theirs = (
        [t for t in each.state_dict(keep_vars=True).values() if t.is_floating_point()]
        for each in (ema.network, network)
    )
    torch._foreach_lerp_(mine, theirs, 1 - min(ema.decay, (1 + step) / (10 + step)))


def views_by_kornia(trainer: Trainer) -> Callable[..., Tensor]:
    def draw(images: Tensor, names: tuple[str, ...], mirror: Tensor | None) -> Tensor:
        with patch.object(Operator, "forward", AugmentationBase2D.forward):
            return torch.stack([getattr(trainer.views, name)(images) for name in names])

    return draw


@contextmanager
def counting(network: nn.Module) -> Iterator[None]:
    """Batch norms are torch's own, by the number of dimensions that each takes."""
    norms = [module for module in network.modules() if type(module) is UncountedBatchNorm]
    before = UncountedBatchNorm.forward

    def forward(norm: UncountedBatchNorm, images: Tensor) -> Tensor:
        if norm.training:
            norm.num_batches_tracked.add_(1)
        return before(norm, images)

    assert norms, "the network has no batch norm"
    with patch.object(UncountedBatchNorm, "forward", forward):
        yield


@contextmanager
def plainly(trainer: Trainer) -> Iterator[None]:
    """Within it, a step does all of these in the plain way."""
    ema = trainer.ema
    assert ema is not None
    update = SimpleNamespace(update=lambda step: average_by_state_dicts(ema, trainer.network, step))
    with (
        patch.object(trainer_module, "seed_generators", seed_all),
        patch.object(trainer, "ema", update),
        patch.object(trainer, "draw_views", views_by_kornia(trainer)),
        counting(trainer.network),
    ):
        yield


# --- what is timed --------------------------------------------------------------------------------------


def parts_of_a_step(trainer: Trainer) -> Iterator[tuple[str, Work, Work]]:
    """Each part with the plain way, then ours."""
    batches, views, ema = endless(trainer), trainer.config.augment.views, trainer.ema
    assert ema is not None
    images = next(batches)[1]
    inputs = trainer.draw_views(images, views, None).flatten(0, 1)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    by_kornia = views_by_kornia(trainer)
    trainer.network.train()

    def forward() -> None:
        with (
            torch.no_grad(),
            torch.autocast(trainer.device.type, trainer.amp, trainer.amp is not None),
        ):
            trainer.network(inputs)

    def counted() -> None:
        with counting(trainer.network):
            forward()

    def plain_step() -> None:
        with plainly(trainer):
            trainer.step(*next(batches))

    yield "seed", lambda: seed_all(1, trainer.device), lambda: seed_generators(1, trainer.device)
    yield (
        "views",
        lambda: by_kornia(images, views, None),
        lambda: trainer.draw_views(images, views, None),
    )
    yield "network", counted, forward
    yield (
        "weight average",
        lambda: average_by_state_dicts(ema, trainer.network, 5),
        lambda: ema.update(5),
    )
    yield "step", plain_step, lambda: trainer.step(*next(batches))


def evaluations(trainer: Trainer) -> tuple[Work, Work]:
    test, labels = trainer.test, torch.from_numpy(trainer.test.labels)

    size = min(500, 4 * trainer.config.batch_size)

    def plain() -> None:
        for part in labels.split(size):  # `predict` copies them all at once
            part.to(trainer.device)
        predict(trainer.network, test, trainer.views, trainer.device, trainer.amp, batch_size=size)

    return plain, lambda: trainer.predict(trainer.network, test)


def checkpoints(trainer: Trainer, path: Path) -> tuple[Work, Work]:
    bank = trainer.bank
    assert bank is not None

    def save(dtype: torch.dtype) -> None:
        bank.features = bank.features.to(dtype)
        save_checkpoint(trainer.state(), path.with_stem(str(dtype)))

    return lambda: save(torch.float32), lambda: save(torch.float16)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="CSV to write; default: only print")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--method", default="sop_plus", help="of two views, without projection head"
    )
    parser.add_argument("--network", default="preact_resnet18")
    parser.add_argument("--width", type=int, default=8, help="of the network")
    parser.add_argument("--batch", type=int, default=8, help="images in a batch")
    parser.add_argument("--size", type=int, default=8, help="side of an image")
    parser.add_argument(
        "--samples", type=int, default=10_000, help="images, to train on and to test"
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20, help="of a turn")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(
        [
            *("recipe=cifar10n_worst", f"method={args.method}", f"device={args.device}"),
            *(f"network.name={args.network}", f"network.width={args.width}"),
            *(f"batch_size={args.batch}", "data.storage=resident", "epochs=1000000"),
        ]
    )
    device = pick_device(config)
    trainer = Trainer(config, random_dataset(args.samples, 10, args.size), device)
    on_gpu = device.type == "cuda"
    ready = torch.cuda.synchronize if on_gpu else lambda: None
    about: Row = {name: getattr(args, name) for name in ("method", "network", "width", "batch")}
    about |= {"size": args.size, "samples": args.samples, "device": args.device}
    about |= {"threads": torch.get_num_threads()}
    rows: list[Row] = []

    def measure(part: str, plain: Work, ours: Work, rounds: int, times: int) -> None:
        def turn(work: Work) -> Work:
            return lambda: [work() for _ in range(times)]

        ways = {"plain": turn(plain), "ours": turn(ours)}
        clock = time.perf_counter if on_gpu else time.process_time
        seconds = take_turns(ways, rounds, clock=clock, ready=ready)
        ratios = [o / p for o, p in zip(seconds["ours"], seconds["plain"], strict=True)]
        for way, each in seconds.items():
            row: Row = {"part": part, "way": way}
            row |= quartiles([1000 * time_ / times for time_ in each], "ms")
            row |= quartiles(ratios, "ours_over_plain") if way == "ours" else {}
            rows.append(row | {"n": rounds} | about)

    for part, plain, ours in parts_of_a_step(trainer):
        measure(part, plain, ours, args.rounds, args.steps)
    measure("evaluation", *evaluations(trainer), max(3, args.rounds // 4), 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        measure("checkpoint", *checkpoints(trainer, path), max(3, args.rounds // 4), 1)
        for row, dtype in zip(rows[-2:], (torch.float32, torch.float16), strict=True):
            row["megabytes"] = round(path.with_stem(str(dtype)).stat().st_size / 1e6, 1)
    write_csv(args.out, rows, device)


if __name__ == "__main__":
    main()
