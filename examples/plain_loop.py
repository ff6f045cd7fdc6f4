"""Bayesian self-distillation in a loop of one's own: digits, 40 % of whose labels are made wrong.

python examples/plain_loop.py
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import normalize

import noisybsd


class Network(nn.Module):
    """Logits of the classes, and embeddings of unit length for the contrastive term."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.classify = nn.Linear(64 * 4 * 4, 10)
        self.project = nn.Linear(64 * 4 * 4, 32)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.encoder(images)
        return self.classify(features), normalize(self.project(features), dim=1)


def main(epochs: int = 20, out: str = "report.html") -> dict[str, float]:
    torch.manual_seed(0)
    digits = noisybsd.load_dataset("digits")
    images, clean = digits.train.images, digits.train.labels
    given = noisybsd.inject_noise(clean, "symmetric", 0.4, seed=0)
    views = noisybsd.Views("digits", digits.size, digits.mean, digits.std)
    network, beliefs = Network(), noisybsd.BSD(given, 10, epochs=epochs)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for epoch in range(epochs):
        network.train()
        beliefs.start_epoch(epoch)
        for index in torch.randperm(len(images)).split(64):
            logits, z = network(views(images[index], ("weak", "strong")).flatten(0, 1))
            logits = logits.unflatten(0, (2, len(index)))  # (V,B,K)
            targets = beliefs.step(index, logits)
            loss = noisybsd.cross_entropy(logits, targets) + noisybsd.supcon(z, targets, 0.3)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        probs = network(views.plain(images))[0].softmax(1)
        predicted = network(views.plain(digits.test.images))[0].argmax(1)
    table = noisybsd.label_table(given, probs, belief=beliefs.mean())
    noisybsd.write_report(table, out, images=images)
    return {
        "labels right before": float((given == clean).mean()),
        "labels right after": float((beliefs.suggested().numpy() == clean).mean()),
        "test accuracy": float((predicted.numpy() == digits.test.labels).mean()),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name:<20} {value:.1%}")
