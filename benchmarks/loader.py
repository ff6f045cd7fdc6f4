"""What streaming costs: noisybsd's loader against torchvision's ImageFolder with PIL transforms.

    python benchmarks/loader.py --out results/cost/loader.csv

Each loader is measured flat out (images per second, and per second of CPU time of all its processes,
which other jobs on the machine disturb less) and feeding a consumer that would take `--demand` images
per second (stall fraction: the share of time it waits). A sleep stands for the device's step.
`ImageFolder, augmented` crops, flips and normalises in the workers, as is usual; noisybsd does that on
the device, which is not counted here. `ImageFolder, decoded` does what noisybsd's workers do and no
more. Rows `decode: …` are single decoders in this process. Candidates take turns in every round, so
that a busy machine slows all alike. The pictures are generated: blurred blocks with noise.

Columns:
    candidate, file_pixels      the loader or decoder; size of the JPEG files
    images_per_second_*         flat out: mean and standard deviation over n rounds
    images_per_cpu_second_*     likewise, a second of CPU time of all processes
    stall_fraction_*            share of the time that a consumer of `demand_images_per_second` waits
    n                           rounds
    demand_images_per_second, batch_size, workers, cores    the loaders' settings; of the machine
    load_average, note          what else the machine did
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision.transforms as v1
from common import write_csv
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image, read_file

from noisybsd.data import images as noisybsd_images
from noisybsd.data.images import ImageFiles
from noisybsd.data.loader import StreamingLoader, epoch_order

SIZE, CROP = 256, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 10


def make_tree(root: Path, width: int, height: int, count: int) -> list[str]:
    """JPEGs of quality 88 in class folders; their paths relative to root."""
    generator = np.random.default_rng(0)
    paths = []
    for i in range(count):
        blocks = generator.normal(128, 60, (height // 8, width // 8, 3)).clip(0, 255)
        smooth = Image.fromarray(blocks.astype(np.uint8)).resize((width, height), Image.BICUBIC)
        noisy = np.asarray(smooth) + generator.normal(0, 8, (height, width, 3))
        path = root / str(i % CLASSES) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=88)
        paths.append(str(path.relative_to(root)))
    return paths


def image_folder(root: Path, batch_size: int, workers: int, augmented: bool) -> Iterator[Tensor]:
    moves = (
        [
            v1.Resize(SIZE),
            v1.RandomCrop(CROP),
            v1.RandomHorizontalFlip(),
            v1.ToTensor(),
            v1.Normalize(MEAN, STD),
        ]
        if augmented
        else [v1.Resize(SIZE), v1.CenterCrop(SIZE), v1.PILToTensor()]
    )
    folder = ImageFolder(str(root), v1.Compose(moves))
    endless = RandomSampler(folder, replacement=True, num_samples=10**9)
    loader = DataLoader(folder, batch_size, sampler=endless, num_workers=workers)
    for images, _ in loader:
        yield images


def noisybsd_stream(loader: StreamingLoader) -> Iterator[Tensor]:
    epoch = 0
    while True:
        yield from (images for _, images in loader.epoch(epoch))
        epoch += 1


def torchvision_decoder(path: Path) -> Tensor:
    """torchvision.io and torch's resize, else as noisybsd's."""
    pixels = decode_image(read_file(str(path)), ImageReadMode.RGB)
    side = min(pixels.shape[1:])
    top, left = (pixels.shape[1] - side) // 2, (pixels.shape[2] - side) // 2
    square = pixels[None, :, top : top + side, left : left + side]
    if side != SIZE:
        square = interpolate(square, (SIZE, SIZE), mode="bilinear", antialias=True)
    return square[0].contiguous()


def pil_decoder(path: Path) -> Tensor:
    """As ImageFolder's default loader, with torchvision's PIL transforms."""
    with path.open("rb") as file:
        image = Image.open(file).convert("RGB")
    return v1.functional.pil_to_tensor(
        v1.functional.center_crop(v1.functional.resize(image, SIZE), SIZE)
    )


DECODERS: dict[str, Callable[[Path], Tensor]] = {
    "decode: noisybsd": lambda path: noisybsd_images.decode_image(path, SIZE),
    "decode: torchvision.io": torchvision_decoder,
    "decode: PIL": pil_decoder,
}


def cpu_seconds(pids: list[int]) -> float:
    """CPU time that processes have used so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])  # utime, stime
    return ticks / os.sysconf("SC_CLK_TCK")


def settle(pids: list[int]) -> None:
    """Wait until the workers have filled their queues and rest."""
    used = -1.0
    while used != (now := cpu_seconds(pids)):
        used = now
        time.sleep(0.3)


def measure(
    batches: Iterator[Tensor], pids: list[int], args: argparse.Namespace
) -> tuple[float, float, float]:
    """Images per second, images per CPU second, stall fraction."""
    for _ in range(2 * args.workers + 2):  # what was decoded while others had their turn
        next(batches)
    count = args.steps * args.batch_size
    start, cpu = time.perf_counter(), cpu_seconds(pids)
    for _ in range(args.steps):
        next(batches)
    seconds, cpu = time.perf_counter() - start, cpu_seconds(pids) - cpu

    waited, start = 0.0, time.perf_counter()
    for _ in range(args.steps):
        before = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - before
        time.sleep(args.batch_size / args.demand)
    return count / seconds, count / cpu, waited / (time.perf_counter() - start)


def measure_decoder(decode: Callable[[Path], Tensor], files: list[Path]) -> tuple[float, float]:
    start, cpu = time.perf_counter(), time.process_time()
    for path in files:
        decode(path)
    return len(files) / (time.perf_counter() - start), len(files) / (time.process_time() - cpu)


def benchmark(
    root: Path, width: int, height: int, args: argparse.Namespace
) -> dict[str, list[tuple[float, ...]]]:
    """Measurements of every candidate on pictures of one size, one per round."""
    paths = make_tree(root, width, height, args.images)
    candidates: dict[str, tuple[Iterator[Tensor], list[int]]] = {}

    def start(name: str, batches: Iterator[Tensor]) -> None:
        before = {process.pid for process in active_children()}
        next(batches)
        workers = [p.pid for p in active_children() if p.pid not in before and p.pid is not None]
        candidates[name] = batches, [os.getpid(), *workers]

    for augmented, name in ((True, "ImageFolder, augmented"), (False, "ImageFolder, decoded")):
        start(name, image_folder(root, args.batch_size, args.workers, augmented))
    order = partial(epoch_order, len(paths), 0)
    files = ImageFiles(paths, root, SIZE)
    loader = StreamingLoader(files, order, args.batch_size, "cpu", args.workers)
    start("noisybsd, decoded", noisybsd_stream(loader))

    rounds: dict[str, list[tuple[float, ...]]] = {name: [] for name in [*candidates, *DECODERS]}
    workers = [pid for _, pids in candidates.values() for pid in pids[1:]]
    for _ in range(args.rounds):
        for name, (batches, pids) in candidates.items():
            settle(workers)
            rounds[name].append(measure(batches, pids, args))
        settle(workers)
        for name, decode in DECODERS.items():
            rounds[name].append(measure_decoder(decode, [root / path for path in paths[:200]]))
    loader.close()
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="CSV to write; default: only print")
    parser.add_argument("--images", type=int, default=2000, help="generated pictures per size")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20, help="batches per measurement")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--demand", type=float, default=600, help="images per second consumed")
    parser.add_argument("--note", default="", help="e.g. what else the machine does")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # torchvision.io, once per image
    torch.set_num_threads(1)

    rows = []
    for width, height in ((256, 256), (500, 375)):
        with tempfile.TemporaryDirectory() as folder:
            results = benchmark(Path(folder), width, height, args)
        for name, rounds in results.items():
            columns = ("images_per_second", "images_per_cpu_second", "stall_fraction")
            measured = {}
            for column, values in zip(columns, zip(*rounds, strict=True), strict=False):
                measured[f"{column}_mean"] = f"{statistics.mean(values):.4g}"
                measured[f"{column}_std"] = f"{statistics.stdev(values):.2g}"
            streams = not name.startswith("decode")
            row = {
                "candidate": name,
                "file_pixels": f"{width}x{height}",
                **measured,
                "n": len(rounds),
                "demand_images_per_second": args.demand if streams else "",
                "batch_size": args.batch_size if streams else "",
                "workers": args.workers if streams else "",
                "cores": os.cpu_count(),
                "load_average": f"{os.getloadavg()[0]:.1f}",
                "pillow": PIL.__version__,
                "note": args.note,
            }
            rows.append(row)
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
