"""What a training step costs beyond the network's passes over two views with cross-entropy.

    python benchmarks/step.py --width 8 --out results/cost/step.csv
    python benchmarks/step.py --device cuda --out results/cost/step_cuda.csv --profile step.txt

Whole steps of `Trainer.step`, the loader included, of `--methods`, all with a weak and a strong view
of random images. `bare` is a step of what none can do without: two views, the network without a
projection head, cross-entropy to the given labels, optimiser, weight average; no belief, contrastive
term, feature bank or monitor. The candidates take turns, `--steps` steps each, and ratios are taken
between turns of the same round. On the CPU the clock counts CPU time of one thread, on a GPU it is
the wall clock and waits for the device.

Columns:
    method              "bare", or a method of noisybsd
    ms_*                milliseconds a step: median and quartiles over the rounds
    over_bare_*         ratio to `bare` of the same round
    over_ce_*           ratio to `ce` with two views, in the same trainer
    n                   rounds
    images_per_second   images, each with two views, at the median
    views_per_second    images that pass the network
    seconds_per_epoch   of 50,000 images
    gflop_per_view      forward and backward, multiplications and additions, counted in the network
    tflops              of the network, at the median
    share_of_peak       of `--peak` (an H200 does about 790 TFLOP/s in large bf16 matrix products)
    peak_memory_mb      of the device's memory, the other candidates' networks and states included
    network … samples   what was run; width: empty for the network's own
    device … threads    on what
    settings            others than the recipe's, of cifar10n_worst

`--profile FILE` writes where the time of a step of the last method goes: its parts, then torch's own
table of operations.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Row, quartiles, rounded, take_turns, write_csv
from torch import Tensor
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from noisybsd.config import load_config
from noisybsd.data.dataset import Dataset
from noisybsd.data.splits import Split
from noisybsd.engine.trainer import Trainer
from noisybsd.methods.parts import cross_entropy, one_hot
from noisybsd.models.networks import Network
from noisybsd.runs.environment import pick_device

EPOCH = 50_000  # images of CIFAR

# parts of a step by name: (attribute of the trainer, its method)
PARTS = {
    "views: weak": ("views.weak_view", "forward"),
    "views: strong": ("views.strong_view", "forward"),
    "belief: observe": ("rule", "observe"),
    "belief: targets": ("rule", "targets"),
    "loss": ("loss", "forward"),
    "optimiser": ("optimizer", "step"),
    "weight average": ("ema", "update"),
    "bank": ("bank", "write"),
    "monitor": ("monitor", "record"),
    "sums": ("sums", "add"),
}
PROFILED = ["whole step", "network: forward", "backward", "contrastive term", *PARTS]


def random_dataset(samples: int, classes: int, size: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    shape = (samples, 3, size, size)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    labels = np.random.default_rng(0).integers(classes, size=samples)
    split = Split(images, labels, None)
    names = tuple(map(str, range(classes)))
    statistics = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    return Dataset("random", names, split, split, size, 3, **statistics, sha256="", notes={})


def build_trainer(
    method: str, dataset: Dataset, args: argparse.Namespace, device: torch.device
) -> Trainer:
    settings = {
        "recipe": "cifar10n_worst",
        "method": method,
        "augment.views": "[weak,strong]",
        "batch_size": args.batch,
        "device": device.type,
        "network.name": args.network,
        "data.storage": "resident",
        "epochs": 10**6,  # the learning rate hardly moves
    }
    if args.width:
        settings["network.width"] = args.width
    arguments = [f"{key}={value}" for key, value in settings.items()]
    return Trainer(load_config([*arguments, *args.settings]), dataset, device)


def endless(trainer: Trainer) -> Iterator[tuple[Tensor, Tensor]]:
    epoch = 0
    while True:
        yield from trainer.loader.epoch(epoch)
        epoch += 1


def whole_step(trainer: Trainer) -> Callable[[], None]:
    trainer.network.train()
    batches = endless(trainer)
    return lambda: trainer.step(*next(batches))


def bare_step(trainer: Trainer) -> Callable[[], None]:
    """A step of what no method can do without, with the parts of `trainer`, whose method is ce."""
    trainer.network.train()
    batches, device, amp = endless(trainer), trainer.device, trainer.amp
    number = 0

    def step() -> None:
        nonlocal number
        index, images = next(batches)
        views = trainer.draw_views(images, ("weak", "strong"), None)
        inputs = views.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, amp, enabled=amp is not None):
            logits, _ = trainer.forward(inputs)
        targets = one_hot(trainer.labels[index], trainer.num_classes)
        loss = cross_entropy(logits.float().view(2, len(index), -1), targets)
        trainer.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trainer.optimizer.step()
        if trainer.ema is not None:
            trainer.ema.update(number)
        number += 1

    return step


def flops_per_view(network: Network, size: int, device: torch.device) -> int:
    """Of a forward and a backward pass of one image."""
    batch = 4
    counter = FlopCounterMode(display=False)
    with counter:
        logits, z = network(torch.rand(batch, 3, size, size, device=device))
        (logits.sum() + z.sum()).backward()
    network.zero_grad(set_to_none=True)
    return counter.get_total_flops() // batch


@contextmanager
def labelled(trainer: Trainer) -> Iterator[None]:
    """The parts of the trainer's step appear by name in a profile."""

    def mark(owner: Any, method: str, name: str) -> None:
        original = getattr(owner, method)

        def call(*args: Any, **kwargs: Any) -> Any:
            with record_function(name):
                return original(*args, **kwargs)

        setattr(owner, method, call)

    for name, (attribute, method) in PARTS.items():
        if (owner := attrgetter(attribute)(trainer)) is not None:
            mark(owner, method, name)
    mark(trainer, "forward", "network: forward")
    if trainer.contrastive is not None:
        mark(trainer, "contrastive", "contrastive term")
    backward = Tensor.backward
    mark(Tensor, "backward", "backward")
    try:
        yield
    finally:
        Tensor.backward = backward  # type: ignore[method-assign]


def profile_step(trainer: Trainer, steps: int) -> str:
    """Where the time of a step goes. Leaves its marks on `trainer`."""
    step, device = whole_step(trainer), trainer.device
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with labelled(trainer):
        for _ in range(3):
            step()
        torch.cuda.synchronize() if on_gpu else None
        with profile(activities=activities, acc_events=True) as seen:
            for _ in range(steps):
                with record_function("whole step"):
                    step()
            torch.cuda.synchronize() if on_gpu else None

    host, on_device = dict.fromkeys(PROFILED, 0.0), dict.fromkeys(PROFILED, 0.0)  # microseconds
    for event in seen.events():
        if event.device_type == DeviceType.CPU and event.name in host:
            host[event.name] += event.cpu_time_total
            on_device[event.name] += device_microseconds(event)
    on_device["whole step"] = sum(
        event.self_device_time_total
        for event in seen.key_averages()
        if event.device_type != DeviceType.CPU and not event.is_user_annotation
    )
    # On a GPU autograd launches the backward kernels from a thread of its own: they are in the rest.
    for time_of in (host, on_device):
        time_of["the rest"] = 2 * time_of["whole step"] - sum(time_of.values())

    def columns(microseconds: float, whole: float) -> str:
        return f"{microseconds / steps / 1000:>11.3f}{microseconds / (whole or 1):>8.1%}"

    lines = [f"{'part':<20}{'host ms':>11}{'share':>8}{'device ms':>11}{'share':>8}"]
    for name in host:
        lines.append(
            f"{name:<20}{columns(host[name], host['whole step'])}"
            f"{columns(on_device[name], on_device['whole step'])}"
        )
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    operations = seen.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=60)
    return "\n".join([f"{trainer.config.method}, mean of {steps} steps", *lines, "", operations])


def device_microseconds(event: FunctionEvent) -> float:
    """Of the kernels that a host event and those within it launched."""
    # a region's own kernel would be its shadow on the device's time line
    own = 0.0 if event.is_user_annotation else sum(kernel.duration for kernel in event.kernels)
    return own + sum(map(device_microseconds, event.cpu_children))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="CSV to write; default: only print")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--methods", default="ce,bsd,bsd_plus", help="with commas, ce first")
    parser.add_argument("--network", default="preact_resnet18")
    parser.add_argument("--width", type=int, help="of the network; default: its own")
    parser.add_argument("--batch", type=int, default=256, help="images in a batch")
    parser.add_argument("--size", type=int, default=32, help="side of an image")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--samples", type=int, default=EPOCH, help="images to train on")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, help="a turn; default: 1 on the CPU, 50 on a GPU")
    parser.add_argument("--peak", type=float, default=790, help="TFLOP/s of the GPU in bf16")
    parser.add_argument("--profile", type=Path, help="file for where the time goes")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="e.g. compile=true")
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    args.steps = args.steps or (50 if on_gpu else 1)
    methods = args.methods.split(",")
    if methods[0] != "ce":
        parser.error(f"--methods: got {args.methods}; expected ce first, with which others compare")
    torch.set_num_threads(1)
    config = load_config(["recipe=cifar10n_worst", f"device={args.device}"])
    device = pick_device(config)

    dataset = random_dataset(args.samples, args.classes, args.size)
    trainers = {method: build_trainer(method, dataset, args, device) for method in methods}
    bare = build_trainer("ce", dataset, args, device)
    steps = {"bare": bare_step(bare), **{name: whole_step(t) for name, t in trainers.items()}}

    peaks: dict[str, int] = {}

    def turn(name: str, step: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            for _ in range(args.steps):
                step()
            if on_gpu:
                torch.cuda.synchronize()
                peaks[name] = torch.cuda.max_memory_allocated() // 2**20

        return run

    seconds = take_turns(
        {name: turn(name, step) for name, step in steps.items()},
        args.rounds,
        clock=time.perf_counter if on_gpu else time.process_time,
    )
    rows: list[Row] = []
    for name, times in seconds.items():
        trainer = trainers.get(name, bare)
        each = [time / args.steps for time in times]
        row: Row = {"method": name, **quartiles([1000 * time for time in each], "ms")}
        for against in ("bare", "ce"):
            ratios = [a / b for a, b in zip(times, seconds[against], strict=True)]
            row |= quartiles(ratios, f"over_{against}")
        median = row["ms_median"] / 1000
        flops = flops_per_view(trainer.network, args.size, device)
        tflops = 2 * args.batch * flops / median / 1e12
        row |= {
            "n": len(times),
            "images_per_second": round(args.batch / median),
            "views_per_second": round(2 * args.batch / median),
            "seconds_per_epoch": rounded(EPOCH / args.batch * median),
            "gflop_per_view": rounded(flops / 1e9),
            "tflops": rounded(tflops),
            "share_of_peak": rounded(tflops / args.peak) if on_gpu else None,
            "peak_memory_mb": peaks.get(name),
            "network": args.network,
            "width": args.width,
            "batch": args.batch,
            "size": args.size,
            "classes": args.classes,
            "samples": args.samples,
            "device": args.device,
            "precision": str(trainer.amp or torch.float32).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "settings": " ".join(args.settings),
        }
        rows.append(row)
    write_csv(args.out, rows, device)
    if args.profile:
        text = profile_step(trainers[methods[-1]], steps=20 if on_gpu else 3)
        args.profile.write_text(text, encoding="utf-8")
        print(text[: text.index("\n\n")])


if __name__ == "__main__":
    main()
