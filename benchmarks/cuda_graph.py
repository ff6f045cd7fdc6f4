"""An experiment for a GPU: the device's part of a training step as one CUDA graph.

    python benchmarks/cuda_graph.py --out results/gpu/cuda_graph.csv

On an H100 a step keeps the GPU busy for half of its time, and with the fast network for a fifth, because
one host thread launches some hundred kernels (results/gpu.md). A graph launches them all at once. It
is captured anew in each epoch, since what an epoch sets on the host, such as the temperatures of the target
rule, is part of it; what every step sets, learning rate, decay of the weight average and seed, is read from
the device.

Three trainers take the same steps from the same start: two as they are, one by the graph, all within an
epoch: that a second capture works is not tried here.

Columns:
    recipe          with its own network, batch size and method bsd_plus; `settings` beside it
    eager_ms        a step as it is: median of the turns
    graph_ms        a step by the graph, without the capture
    capture_ms      the capture, once an epoch
    between_eager   largest difference of a weight between the two as they are after `--compared` steps, for
                    kernels that add in any order give no two equal runs
    to_graph        the same between one of them and the graph's
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common import Row, print_row, rounded, save_csv
from step import endless, random_dataset
from torch import Tensor

from noisybsd import distributed
from noisybsd.config import load_config
from noisybsd.engine.monitor import EpochSums
from noisybsd.engine.trainer import Trainer, seed_generators, step_seed
from noisybsd.models.optim import WeightEma
from noisybsd.runs.environment import pick_device

EAGER_STEPS = 3  # before the first capture: libraries choose and load their kernels


class DeviceEma(WeightEma):
    """A weight average whose decay is on the device."""

    weight: Tensor  # of the new weights

    def set(self, step: int) -> None:
        self.weight.fill_(1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def update(self, step: int) -> None:
        mine, theirs = ([held[name] for held, name in each] for each in (self._mine, self._theirs))
        towards = torch._foreach_sub(theirs, mine)
        torch._foreach_mul_(towards, self.weight)
        torch._foreach_add_(mine, towards)


class DeviceSums(EpochSums):
    """Sums that read the number of the step from the device."""

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.step = torch.zeros((), dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, step: int, *values: Tensor) -> None:
        super().add(self.step, *values)  # type: ignore[arg-type]


class GraphTrainer(Trainer):
    """A trainer whose steps are replays of a graph, except for the first of the run."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.ema = DeviceEma(self.network, self.config.ema.decay)
        self.ema.weight = torch.zeros((), device=self.device)
        self.sums = DeviceSums(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = torch.zeros((), device=self.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.captured_epoch, self.capture_seconds = -1, 0.0

    def step(self, index: Tensor, images: Tensor) -> None:
        step = self.step_number
        seed_generators(step_seed(self.config.seed, distributed.rank(), step), self.device)
        for group in self.optimizer.param_groups:
            group["lr"].fill_(self.lr(step) * group["scale"])
        assert isinstance(self.ema, DeviceEma) and isinstance(self.sums, DeviceSums)
        self.ema.set(step)
        self.sums.step.fill_(step)
        if step < EAGER_STEPS:
            self.learn(index, images, step)
        else:
            if self.captured_epoch != self.epoch:
                self.capture(index, images)
            self.index.copy_(index)
            self.images.copy_(images)
            assert self.graph is not None
            self.graph.replay()
        self.step_number += 1
        self.images_seen += len(index)

    def capture(self, index: Tensor, images: Tensor) -> None:
        begin = time.perf_counter()
        self.index, self.images = index.clone(), images.clone()
        pool = None if self.graph is None else self.graph.pool()
        self.optimizer.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.learn(self.index, self.images, 0)
        self.captured_epoch = self.epoch
        torch.cuda.synchronize()
        self.capture_seconds = time.perf_counter() - begin


def weights(trainer: Trainer) -> list[Tensor]:
    return [t.float() for t in trainer.network.state_dict().values() if t.is_floating_point()]


def difference(first: Trainer, second: Trainer) -> float:
    pairs = zip(weights(first), weights(second), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="CSV to write")
    parser.add_argument("--recipes", default="cifar10n_worst_fast,cifar10n_worst")
    parser.add_argument("--compared", type=int, default=20, help="steps")
    parser.add_argument("--steps", type=int, default=50, help="a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    args = parser.parse_args()
    rows = []
    for recipe in args.recipes.split(","):
        fixed = [f"recipe={recipe}", "device=cuda", "data.storage=resident", "epochs=100000"]
        config = load_config([*fixed, *args.settings])
        device = pick_device(config)
        dataset = random_dataset(50_000, 10, 32)
        trainers = [kind(config, dataset, device) for kind in (Trainer, Trainer, GraphTrainer)]
        eager, second, graph = trainers
        batches = [endless(trainer) for trainer in trainers]
        for trainer in trainers:
            trainer.network.train()
            trainer.prepare()
        for _ in range(args.compared):
            for trainer, stream in zip(trainers, batches, strict=True):
                trainer.step(*next(stream))
        between, to_graph = difference(eager, second), difference(eager, graph)
        seconds: dict[str, list[float]] = {"eager": [], "graph": []}
        for _ in range(args.rounds):
            for name, place in (("eager", 0), ("graph", 2)):
                torch.cuda.synchronize()
                begin = time.perf_counter()
                for _ in range(args.steps):
                    trainers[place].step(*next(batches[place]))
                torch.cuda.synchronize()
                seconds[name].append((time.perf_counter() - begin) / args.steps)
        assert isinstance(graph, GraphTrainer)
        row: Row = {"recipe": recipe}
        row |= {f"{k}_ms": rounded(1000 * statistics.median(v)) for k, v in seconds.items()}
        row |= {
            "capture_ms": rounded(1000 * graph.capture_seconds),
            "between_eager": rounded(between),
            "to_graph": rounded(to_graph),
            "compared": args.compared,
            "settings": " ".join(args.settings),
        }
        rows.append(row)
        print_row(row)
        if args.out is not None:
            save_csv(args.out, rows, device)


if __name__ == "__main__":
    main()
