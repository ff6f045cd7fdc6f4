"""A loop of one's own with another method by name, logged to Weights & Biases without a network connection.

python examples/weights_and_biases.py

`wandb sync` sends the folder later; mode="online" does at once.
"""

from __future__ import annotations

import torch
import wandb
from torch import nn

import noisybsd


def main(epochs: int = 15, folder: str = ".") -> dict[str, float]:
    torch.manual_seed(0)
    digits = noisybsd.load_dataset("digits")
    images, clean = digits.train.images / 255, digits.train.labels
    given = noisybsd.inject_noise(clean, "symmetric", 0.4, seed=0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    method = noisybsd.methods.build("elr", given, 10, epochs=epochs)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    run = wandb.init(project="noisybsd", mode="offline", dir=folder, config={"method": method.name})
    for epoch in range(epochs):
        method.start_epoch(epoch)
        total = 0.0
        for index in torch.randperm(len(images)).split(64):
            loss = method.step(index, network(images[index]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(index)
        with torch.no_grad():
            test = network(digits.test.images / 255).argmax(1).numpy()
        accuracy = float((test == digits.test.labels).mean())
        run.log({"epoch": epoch, "loss": total / len(images), "test accuracy": accuracy})

    with torch.no_grad():
        probs = network(images).softmax(1)
    table = noisybsd.label_table(given, probs, belief=method.mean())
    columns = ["index", "given_name", "suggested_name", "given_prob", "rank"]
    suspicious = table.select(columns).to_pandas().sort_values("rank").head(100)
    suspicious["image"] = [
        wandb.Image(digits.train.images[i, 0].numpy()) for i in suspicious["index"]
    ]
    run.log({"suspicious labels": wandb.Table(dataframe=suspicious)})
    run.finish()
    return {"test accuracy": accuracy, "disputed": float(table["issue"].to_numpy().mean())}


if __name__ == "__main__":
    print(main())
