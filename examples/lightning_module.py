"""Bayesian self-distillation in a Lightning module: pip install lightning

python examples/lightning_module.py

The beliefs are a part of the module: they move to its device and are in its checkpoints. On several GPUs,
`BSD.step` gathers the joint batch; let the sampler drop the last samples, so that none is repeated.
"""

from __future__ import annotations

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import noisybsd


class SelfDistilled(lightning.LightningModule):
    """Any classifier, trained on the beliefs about its labels."""

    def __init__(self, network: nn.Module, labels: Tensor, num_classes: int, epochs: int) -> None:
        super().__init__()
        self.network = network
        self.beliefs = noisybsd.BSD(labels, num_classes, epochs=epochs)

    def on_train_epoch_start(self) -> None:
        self.beliefs.start_epoch(self.current_epoch)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        index, images = batch
        logits = self.network(images)
        return noisybsd.cross_entropy(logits, self.beliefs.step(index, logits))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), lr=1e-3)


def main(epochs: int = 20, folder: str = "lightning_run", **options: object) -> dict[str, float]:
    lightning.seed_everything(0)
    digits = noisybsd.load_dataset("digits")
    images, clean = digits.train.images / 255, digits.train.labels
    given = torch.from_numpy(noisybsd.inject_noise(clean, "symmetric", 0.4, seed=0))
    # the index of each image among the labels is part of the batch
    data = TensorDataset(torch.arange(len(given)), images)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    model = SelfDistilled(network, given, 10, epochs)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, DataLoader(data, batch_size=64, shuffle=True, drop_last=True))
    suggested = model.beliefs.suggested().cpu().numpy()
    return {
        "labels right before": float((given.numpy() == clean).mean()),
        "labels right after": float((suggested == clean).mean()),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name:<20} {value:.1%}")
