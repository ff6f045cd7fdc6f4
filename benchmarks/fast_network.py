"""Does `fast_resnet` learn what its source says, if it is trained as the source trains it?

    python benchmarks/fast_network.py --out results/fast_network.csv --device cuda data.root=DIR

Jordan 2024 (arXiv 2404.00498) has 94.0 % of CIFAR-10's test images in 9.9 epochs, clean labels, with this
network: batches of 1,024, crops shifted by up to 2 pixels, lookahead every 5 steps, the bias of the whitening
layer learnt for 3 epochs, and predictions averaged over mirrored and shifted images. `cifar10n_worst_fast`
does each of these in another way. A row is one training: as the source trains, then with one thing as the
recipe has it, then with all of them. Not taken from the source in any row: its warm-up starts at 0.2 of the
peak, its batch norms have momentum 0.4 and eps 1e-12 (here torch's 0.1 and 1e-5), and its last layer has no
bias. The images are those of data.root; copies that are not the official pixels give other numbers.

Columns:
    variant         what is as in the recipe
    accuracy        of the test images, %, as they are
    mirrored        the same, predictions averaged over the image and its mirror image
    shifted         the same, averaged over shifts by one pixel too, as the source reports it
    train_accuracy  of the training batches of the last epoch, as they were learnt, %
    seconds         training and the whitening, with whatever else the machine does
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from common import Row, print_row, rounded, save_csv
from torch import Tensor, nn

from noisybsd.config import load_config
from noisybsd.data.augment import RandomCropFlip
from noisybsd.engine.data import run_dataset
from noisybsd.models.networks import FastResNet, Network, build_network, uncounted
from noisybsd.models.optim import WeightEma, build_optimizer, learning_rate, set_learning_rate
from noisybsd.runs.environment import pick_device
from noisybsd.settings import OptimizerConfig

SMOOTHING = 0.2
LOOKAHEAD_EVERY, LOOKAHEAD_DECAY = 5, 0.95


@dataclass(frozen=True)
class Variant:
    """One way to train; the defaults are the source's."""

    batch: int = 1024
    shift: int = 2  # pixels
    lookahead: bool = True  # or a plain weight average, that is evaluated
    bias_epochs: float = 3
    last_lr: float = 0.07  # of the peak


SOURCE = Variant()
VARIANTS = {
    "as the source": SOURCE,
    "batches of 256": replace(SOURCE, batch=256),
    "shifts up to 4 pixels": replace(SOURCE, shift=4),
    "weight average, no lookahead": replace(SOURCE, lookahead=False),
    "the whitening bias learns to the end": replace(SOURCE, bias_epochs=1e6),
    "down to 0": replace(SOURCE, last_lr=0.0),
    "all as the recipe": Variant(256, 4, False, 1e6, 0.0),
}


class Images:
    """Images (N,3,H,W) of one split on the device, normalised, with their labels (N,)."""

    def __init__(self, images: Tensor, labels: Tensor, mean: Tensor, std: Tensor):
        self.pixels = (images.float() / 255 - mean) / std
        self.labels = labels


@torch.no_grad()
def lookahead(slow: list[Tensor], network: nn.Module, decay: float) -> None:
    """Pull the slow weights towards the network's, and set the network's to them."""
    fast = [t for t in network.state_dict().values() if t.is_floating_point()]
    torch._foreach_lerp_(slow, fast, 1 - decay)
    torch._foreach_copy_(fast, slow)


def train(
    images: Images, variant: Variant, epochs: float, width: int, seed: int
) -> tuple[Network, float]:
    """A trained network, and the accuracy of the batches of the last epoch as they were learnt."""
    device = images.pixels.device
    torch.manual_seed(seed)
    network = build_network("fast_resnet", 10, width=width)
    network.projection = nn.Identity()  # nothing contrastive: no head to learn
    uncounted(network.to(device).to(memory_format=torch.channels_last))
    assert isinstance(network.encoder, FastResNet)
    network.encoder.fit(images.pixels[:5000])
    whitening_bias = network.encoder[0].bias
    assert isinstance(whitening_bias, nn.Parameter)

    peak = 1.5 * variant.batch / 1024
    config = OptimizerConfig(
        lr=peak, schedule="linear", min_lr=variant.last_lr * peak, momentum=0.85,
        weight_decay=1.33e-3, norm_bias_lr=64,
    )  # fmt: skip
    optimizer = build_optimizer([network], config)
    average = WeightEma(network, 0.99)
    slow = [t.clone() for t in network.state_dict().values() if t.is_floating_point()]
    crop = RandomCropFlip(32, padding=variant.shift, flip=0.0).to(device)
    mirrored = torch.rand(len(images.labels), device=device) < 0.5

    per_epoch = len(images.labels) // variant.batch
    total = round(per_epoch * epochs)
    network.train()
    right: list[Tensor] = []
    for step in range(total):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = torch.randperm(len(images.labels), device=device)
            whitening_bias.requires_grad_(epoch < variant.bias_epochs)
            right = []
        index = order[place * variant.batch : (place + 1) * variant.batch]
        chosen, labels = images.pixels[index], images.labels[index]
        turned = (mirrored[index] ^ (epoch % 2 == 1))[:, None, None, None]
        inputs = crop(torch.where(turned, chosen.flip(-1), chosen))
        set_learning_rate(optimizer, learning_rate(step, total, 0.23 * total, config))
        with torch.autocast(device.type, torch.bfloat16):
            logits, _ = network(inputs.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=SMOOTHING)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        right.append((logits.argmax(1) == labels).float().mean())
        average.update(step)
        if variant.lookahead and (step + 1) % LOOKAHEAD_EVERY == 0:
            decay = LOOKAHEAD_DECAY**LOOKAHEAD_EVERY * (step / total) ** 3
            lookahead(slow, network, decay)
    if variant.lookahead:
        lookahead(slow, network, 1.0)
    return network if variant.lookahead else average.network, torch.stack(right).mean().item()


@torch.no_grad()
def accuracies(network: Network, images: Images) -> list[float]:
    """In %: as they are, with mirror images, and with mirror images and shifts."""
    network.eval()
    device = images.pixels.device

    def predict(pixels: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            batches = pixels.contiguous(memory_format=torch.channels_last).split(2000)
            return torch.cat([network(batch)[0].float() for batch in batches])

    def mirror(pixels: Tensor) -> Tensor:
        return predict(pixels) + predict(pixels.flip(-1))

    height, width = images.pixels.shape[-2:]
    padded = F.pad(images.pixels, (1, 1, 1, 1), mode="reflect")
    shifted = mirror(padded[..., :height, :width]) + mirror(padded[..., 2:, 2:])
    both = mirror(images.pixels)
    votes = (predict(images.pixels), both, both + shifted / 2)
    return [100 * (vote.argmax(1) == images.labels).float().mean().item() for vote in votes]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="CSV to write, anew after each row")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--epochs", type=float, default=9.9)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--variants", default="all", help="names, separated by semicolons")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="e.g. data.root=DIR")
    args = parser.parse_args()
    names = list(VARIANTS) if args.variants == "all" else args.variants.split(";")
    if unknown := set(names) - VARIANTS.keys():
        parser.error(f"--variants: unknown {sorted(unknown)}; valid: {', '.join(VARIANTS)}")

    clean = ["recipe=cifar10n_worst_fast", "data.name=cifar10", "data.labels=default"]
    config = load_config([*clean, f"device={args.device}", *args.settings])
    device, dataset = pick_device(config), run_dataset(config)
    mean, std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (dataset.mean, dataset.std))
    train_images, test_images = (
        Images(split.images.to(device), torch.as_tensor(split.labels, device=device), mean, std)
        for split in (dataset.train, dataset.test)
    )
    rows: list[Row] = []
    for seed in map(int, args.seeds.split(",")):
        for name in names:
            start = time.perf_counter()
            network, learnt = train(train_images, VARIANTS[name], args.epochs, args.width, seed)
            seconds = time.perf_counter() - start
            plain, mirrored, shifted = accuracies(network, test_images)
            rows.append(
                {"variant": name, "seed": seed, "accuracy": rounded(plain)}
                | {"mirrored": rounded(mirrored), "shifted": rounded(shifted)}
                | {"train_accuracy": rounded(100 * learnt), "seconds": rounded(seconds)}
                | {"epochs": args.epochs, "width": args.width, "n_train": len(train_images.labels)}
                | {"device": args.device, "settings": " ".join(args.settings)}
            )
            print_row(rows[-1])
            if args.out is not None:
                save_csv(args.out, rows, device)


if __name__ == "__main__":
    main()
