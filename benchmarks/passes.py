"""How often each method passes an image through the network in an epoch: the cost that no machine changes.

    python benchmarks/passes.py --out results/cost/passes.csv

Trains every method for an epoch on scikit-learn's digits, one network in one stage, and counts the images
that the encoder sees forward and backward; a forward pass counts 1 and a backward pass 2. Evaluation is
not counted.

Columns:
    method      as `method=`
    views       of an image in a step; `+ mixed` with mixed images beside them
    forward     images that pass the network forward, for each training image of the epoch
    backward    and backward
    passes      forward + 2 backward, as papers count
    n           training images
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import Row, write_csv
from torch import Tensor

from noisybsd.config import Config, load_config
from noisybsd.data.dataset import Dataset, load_dataset
from noisybsd.engine.trainer import Trainer
from noisybsd.methods.presets import METHODS
from noisybsd.methods.registry import LOSSES


def count(config: Config, dataset: Dataset) -> Row:
    trainer = Trainer(config, dataset, torch.device("cpu"))
    forward = backward = images = 0

    def passed(module: torch.nn.Module, inputs: tuple[Tensor, ...], features: Tensor) -> None:
        nonlocal forward
        forward += len(features)
        if features.requires_grad:
            features.register_hook(returned)

    def returned(gradient: Tensor) -> None:
        nonlocal backward
        backward += len(gradient)

    trainer.network.encoder.register_forward_hook(passed)
    trainer.network.train()
    for index, batch in trainer.loader.epoch(0):
        trainer.step(index, batch)
        images += len(index)
    views = " + ".join(config.augment.views)
    return {
        "method": config.method,
        "views": views + (" + mixed" if LOSSES[config.loss].mixup == "beside" else ""),
        "forward": forward / images,
        "backward": backward / images,
        "passes": (forward + 2 * backward) / images,
        "n": images,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="CSV to write; default: only print")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = ["recipe=digits_sym40", "network.width=4", "epochs=1", "neighbours.start_epoch=0"]
    config = load_config(settings)
    dataset = load_dataset(config.data, config.noise, config.seed)
    rows = [count(load_config([*settings, f"method={name}"]), dataset) for name in METHODS]
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
