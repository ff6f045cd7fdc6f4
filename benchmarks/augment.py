"""What a batch of weak and strong CIFAR views costs: PIL, torchvision v2, Kornia's stock, ours.

    python benchmarks/augment.py --out results/cost/augment.csv

All make the same views: a padded crop and a flip (weak); a resized crop, a flip, colour jitter
and grey (strong); normalised float32 at the end. The libraries take turns, batch by batch, so that a
busy machine slows all of them alike, and CPU time is counted, which other programs disturb less than
time. The images are noise: the costs hardly depend on the pixels.

Columns:
    view, library               weak or strong; `kornia_resample` is Kornia without its loop over images
    ms_*                        CPU milliseconds a batch: median and quartiles of n batches
    noisybsd_times_faster_*     ratio to noisybsd's batch of the same round
    images_per_second           at the median
    n                           batches timed
    batch, size, threads        images in a batch, their side, threads of torch
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import kornia.augmentation as K
import PIL
import torch
import torchvision.transforms as v1
import torchvision.transforms.v2 as v2
from common import Row, quartiles, take_turns, write_csv
from PIL import Image
from torch import Tensor, nn

from noisybsd.data.views import Views

SIZE, MEAN, STD = 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
JITTER = (0.4, 0.4, 0.4, 0.1)

Render = Callable[[Tensor], Tensor]  # uint8 (B, 3, S, S) to float32 (B, 3, S, S)


def pil(strong: bool) -> Render:
    """torchvision's transforms on PIL images, one by one, as a data loader applies them."""
    moves = (
        [
            v1.RandomResizedCrop(SIZE, scale=(0.2, 1.0)),
            v1.RandomHorizontalFlip(),
            v1.RandomApply([v1.ColorJitter(*JITTER)], p=0.8),
            v1.RandomGrayscale(p=0.2),
        ]
        if strong
        else [v1.RandomCrop(SIZE, padding=4, padding_mode="reflect"), v1.RandomHorizontalFlip()]
    )
    transform = v1.Compose([*moves, v1.ToTensor(), v1.Normalize(MEAN, STD)])

    def render(images: Tensor) -> Tensor:
        arrays = images.permute(0, 2, 3, 1).numpy()  # a view: the copy is not counted
        return torch.stack([transform(Image.fromarray(array)) for array in arrays])

    return render


def torchvision_v2(strong: bool) -> Render:
    """torchvision's v2 transforms on uint8 tensors, one by one: on a batch all images get one draw."""
    moves = (
        [
            v2.RandomResizedCrop(SIZE, scale=(0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*JITTER)], p=0.8),
            v2.RandomGrayscale(p=0.2),
        ]
        if strong
        else [v2.RandomCrop(SIZE, padding=4, padding_mode="reflect"), v2.RandomHorizontalFlip()]
    )
    transform = v2.Compose([*moves, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    return lambda images: torch.stack([transform(image) for image in images])


def kornia(strong: bool, cropping_mode: str = "slice") -> Render:
    """Kornia's own operators on the batch, in its container, as they come."""
    moves: list[nn.Module] = (
        [
            K.RandomResizedCrop((SIZE, SIZE), scale=(0.2, 1.0), cropping_mode=cropping_mode),
            K.RandomHorizontalFlip(),
            K.ColorJitter(*JITTER, p=0.8),
            K.RandomGrayscale(p=0.2),
        ]
        if strong
        else [
            K.RandomCrop((SIZE, SIZE), padding=4, padding_mode="reflect"),
            K.RandomHorizontalFlip(),
        ]
    )
    transform = K.ImageSequential(*moves, K.Normalize(MEAN, STD))
    return lambda images: transform(images.float().div_(255))


def kornia_resample(strong: bool) -> Render:
    """As `kornia`, but the resized crop is in its mode without a loop over images."""
    return kornia(strong, cropping_mode="resample")


def noisybsd(strong: bool) -> Render:
    views = Views("cifar", SIZE, MEAN, STD)
    return views.strong if strong else views.weak


LIBRARIES = {
    "pil": pil,
    "torchvision_v2": torchvision_v2,
    "kornia": kornia,
    "kornia_resample": kornia_resample,
    "noisybsd": noisybsd,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="CSV to write; default: only print")
    parser.add_argument("--batch", type=int, default=256, help="images in a batch")
    parser.add_argument("--rounds", type=int, default=30, help="batches timed for each library")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randint(256, (args.batch, 3, SIZE, SIZE), dtype=torch.uint8)

    rows: list[Row] = []
    for view in ("weak", "strong"):
        renders = {name: build(view == "strong") for name, build in LIBRARIES.items()}
        seconds = take_turns(
            {name: partial(render, images) for name, render in renders.items()}, args.rounds
        )
        for name, times in seconds.items():
            ratios = [a / b for a, b in zip(times, seconds["noisybsd"], strict=True)]
            milliseconds = quartiles([1000 * time for time in times], "ms")
            rows.append(
                {
                    "view": view,
                    "library": name,
                    **milliseconds,
                    **quartiles(ratios, "noisybsd_times_faster"),
                    "images_per_second": round(1000 * args.batch / milliseconds["ms_median"]),
                    "n": len(times),
                    "batch": args.batch,
                    "size": SIZE,
                    "threads": torch.get_num_threads(),
                    "pillow": PIL.__version__,
                }
            )
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
