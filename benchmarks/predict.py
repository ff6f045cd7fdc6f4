"""What predicting costs beside decoding: `noisybsd.predict` against the training loader's pace.

    python benchmarks/predict.py --out results/cost/predict.csv

Candidates take turns on the same JPEG files, in every round, so that a busy machine slows all alike:

    loader                  the training loader flat out, images of `stored_size` pixels and nothing else
    predict, no network     from paths to a CSV of classes, by a mean over the pixels
    predict, small_cnn      the same by a small network, of `width` channels on `size` pixels
    network alone           that network on decoded images, in batches as predict has them

Columns:
    candidate, file_pixels          see above; size of the files
    images_per_second_*             median and quartiles over n rounds
    pace_of_loader_*                images per second, divided by the loader's in the same round
    cpu_ms_per_image_*              of all processes, which other programs on the machine disturb less
    cpu_of_loader_*                 that, divided by the loader's in the same round
    n, images                       rounds; images in a turn
    stored_size, size, width, workers, batch_size, cores, load_average, note
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import active_children
from pathlib import Path

import torch
from common import Row, quartiles, write_csv
from loader import cpu_seconds, make_tree, noisybsd_stream, settle
from torch import Tensor, nn

from noisybsd.data.images import ImageFiles
from noisybsd.data.loader import StreamingLoader, epoch_order
from noisybsd.engine.classifier import Classifier
from noisybsd.engine.predictions import write_predictions
from noisybsd.models.networks import Network, build_network, uncounted
from noisybsd.runs.records import Input

BATCH = 64


def classifier(network: Network, size: int, stored_size: int) -> Classifier:
    takes = Input(
        class_names=[str(k) for k in range(10)],
        channels=3,
        stored_size=stored_size,
        size=size,
        mean=[0.485, 0.456, 0.406],
        std=[0.229, 0.224, 0.225],
    )
    network = uncounted(network.to(memory_format=torch.channels_last))
    return Classifier(network, takes, torch.device("cpu"))


def turns(root: Path, args: argparse.Namespace, width: int, height: int) -> Iterator[Row]:
    """Measure every candidate on files of one size; a row for each."""
    names = make_tree(root, width, height, args.images)
    stored = round(args.size * 256 / 224)  # as the card `own` has it
    files = ImageFiles(names, root, stored)
    order = partial(epoch_order, len(files), 0)
    loader = StreamingLoader(files, order, BATCH, "cpu", args.workers)
    batches = noisybsd_stream(loader)
    next(batches)
    pids = [os.getpid(), *(p.pid for p in active_children() if p.pid is not None)]
    small = classifier(build_network("small_cnn", 10, width=args.width), args.size, stored)
    mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    none = classifier(Network(mean, 3, 10, nn.Identity(), 3), args.size, stored)
    paths = [root / name for name in names]
    decoded = [each for each in files.decode_many(range(BATCH)) if isinstance(each, Tensor)]
    steps = len(files) // BATCH

    def load() -> None:
        for _ in range(steps):
            next(batches)

    def predict(by: Classifier) -> None:
        parts = by.stream(paths[: steps * BATCH], batch_size=BATCH, threads=args.workers)
        write_predictions(parts, names, steps * BATCH, root / "out.csv")

    def compute() -> None:
        for _ in range(steps):
            small._logits(decoded).softmax(dim=1).numpy()

    candidates: dict[str, Callable[[], None]] = {
        "loader": load,
        "predict, no network": partial(predict, none),
        "predict, small_cnn": partial(predict, small),
        "network alone": compute,
    }
    wall: dict[str, list[float]] = {name: [] for name in candidates}
    cpu: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(args.rounds + 1):
        for name, run in candidates.items():
            settle(pids[1:])
            if name == "loader":
                for _ in range(2 * args.workers + 2):  # decoded while others had their turn
                    next(batches)
            start, used = time.perf_counter(), cpu_seconds(pids)
            run()
            if turn > 0:
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(cpu_seconds(pids) - used)
    loader.close()
    count = steps * BATCH
    for name in candidates:
        pace = [base / own for base, own in zip(wall["loader"], wall[name], strict=True)]
        share = [own / base for base, own in zip(cpu["loader"], cpu[name], strict=True)]
        yield {
            "candidate": name,
            "file_pixels": f"{width}x{height}",
            **quartiles([count / each for each in wall[name]], "images_per_second"),
            **quartiles(pace, "pace_of_loader", 3),
            **quartiles([1000 * each / count for each in cpu[name]], "cpu_ms_per_image", 3),
            **quartiles(share, "cpu_of_loader", 3),
            "n": args.rounds,
            "images": count,
            "stored_size": stored,
            "size": args.size,
            "width": args.width,
            "workers": args.workers,
            "batch_size": BATCH,
            "cores": os.cpu_count(),
            "load_average": f"{os.getloadavg()[0]:.1f}",
            "note": args.note,
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="CSV to write; default: only print")
    parser.add_argument("--images", type=int, default=2048, help="generated pictures per size")
    parser.add_argument("--size", type=int, default=32, help="side of the network's input")
    parser.add_argument("--width", type=int, default=8, help="channels of small_cnn")
    parser.add_argument("--workers", type=int, default=2, help="decoding processes or threads")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--note", default="", help="e.g. what else the machine does")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for width, height in ((256, 256), (500, 375)):
        with tempfile.TemporaryDirectory() as folder:
            rows += turns(Path(folder), args, width, height)
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
