"""Networks that memorise labels in a few epochs: pretrained ones, on 5,000 images with human labels.

Images of CIFAR-10N "worst" as PNG files and a manifest, as users have them; 2,000 test images with clean
labels. `--part 1` takes the next 5,000 and 2,000. Three ways to use EfficientNet-Lite0 with ImageNet
weights: fine-tuned (`recipe=own` at 64 pixels, 15 epochs), frozen (`recipe=own_quick` at 112 pixels), and
frozen with a layer of 512 before the classifier, a high learning rate and hardly any decay, which memorises
every label. A run that is finished is not repeated: the same command continues.

  python benchmarks/memorise.py --cifar data --runs runs/memorise --out results/memorise.csv
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import torch
from common import Row, rounded, write_csv
from PIL import Image

from noisybsd import train
from noisybsd.data.dataset import load_dataset
from noisybsd.settings import DataConfig, NoiseConfig

TRAINING, TEST = 5000, 2000
QUICK = ("recipe=own_quick", "network.size=112")
SETUPS = {
    "fine-tuned": (
        *("recipe=own", "network.name=efficientnet_lite0", "data.size=64", "epochs=15"),
        *("neighbours.k=0", "data.workers=0"),
    ),
    "frozen": QUICK,
    "frozen, a layer of 512": (
        *(*QUICK, "network.width=512", "optimizer.lr=0.05", "optimizer.weight_decay=5e-4"),
    ),
}
METHODS = {
    "ce": ("method=ce",),
    "elr": ("method=elr",),
    "sop_plus": ("method=sop_plus",),
    "bsd": ("method=bsd",),
    "bsd_plus targets=labels": ("targets=labels",),
    "bsd_plus options.probe=false": ("options.probe=false",),
    "bsd_plus options.probe=true": ("options.probe=true",),
}
COLUMNS = {
    "test_accuracy_last": "accuracy",
    "test_accuracy_ema_last": "accuracy_ema",
    "test_ece_last": "ece",
    "label_correction_accuracy": "corrected",
    "noise_detection_auroc": "auroc",
    "memorised_fraction": "memorised",
    "network_passes": "passes",
    "seconds": "seconds",
    "hardware": "run_hardware",
    "git_commit": "run_commit",
}


def write_images(cifar: Path, folder: Path, part: int) -> Path:
    """Write the images of a part and their manifest, if it is not there, and return the manifest."""
    manifest = folder / "list.csv"
    if manifest.exists():
        return manifest
    data = DataConfig(name="cifar10n", labels="worst", root=str(cifar), verify=False)
    source = load_dataset(data, NoiseConfig(), 0)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [("path", "label", "clean_label", "split")]
    for name, split, count in (("train", source.train, TRAINING), ("test", source.test, TEST)):
        clean = split.labels if split.clean_labels is None else split.clean_labels
        for i in range(part * count, (part + 1) * count):
            path = folder / f"{name}{i:05d}.png"
            Image.fromarray(split.images[i].permute(1, 2, 0).numpy()).save(path)
            classes = (source.class_names[labels[i]] for labels in (split.labels, clean))
            rows.append((path.name, *classes, name))
    with manifest.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return manifest


def row(setup: str, method: str, part: int, seed: int, run: Path) -> Row:
    results = json.loads((run / "results.json").read_text("utf-8"))
    found = {
        column: rounded(results[key]) if isinstance(results[key], float) else results[key]
        for key, column in COLUMNS.items()
    }
    torch_version = results["versions"]["torch"]
    return (
        {"setup": setup, "method": method, "part": part, "seed": seed}
        | found
        | {"torch": torch_version}
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", type=Path, required=True, help="folder of CIFAR-10's files")
    parser.add_argument("--runs", type=Path, required=True, help="folder for images and runs")
    parser.add_argument(
        "--part", type=int, default=0, help="which 5,000 images and 2,000 test images"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--setups", default=";".join(SETUPS), help="separated by ;")
    parser.add_argument("--methods", default=";".join(METHODS), help="separated by ;")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    manifest = write_images(args.cifar, args.runs / f"part{args.part}", args.part)
    rows = []
    for setup in args.setups.split(";"):
        for method in args.methods.split(";"):
            name = f"{setup}-{method}-{args.part}-{args.seed}"
            run = args.runs / "".join(c if c.isalnum() else "-" for c in name)
            if not (run / "results.json").exists():
                data = (f"data.manifest={manifest}", f"data.root={manifest.parent}")
                fixed = (
                    f"seed={args.seed}",
                    "device=cpu",
                    "tracking.wandb=disabled",
                    f"run.dir={run}",
                )
                settings = [*SETUPS[setup], *METHODS[method], *data, *fixed]
                if train.main(settings) != 0:
                    raise SystemExit(f"{run} failed")
            rows.append(row(setup, method, args.part, args.seed, run))
    write_csv(args.out, rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
