"""A network's outputs on a whole split, without augmentation."""

from __future__ import annotations

import torch
from torch import Tensor

from noisybsd.data.dataset import Split
from noisybsd.data.loader import eval_batches
from noisybsd.data.views import EmbeddedViews, Views
from noisybsd.errors import UserError
from noisybsd.models.networks import Network

PIXELS = 500 * 224**2  # of the images that a GPU evaluates at once, at most


def channels_last(inputs: Tensor) -> Tensor:
    """Images (B,C,H,W) in the order in memory that convolutions are fast in; embeddings (B,F) as they are."""
    if inputs.dim() != 4:
        return inputs
    return inputs.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def predict(
    network: Network,
    split: Split,
    views: Views | EmbeddedViews,
    device: torch.device,
    amp: torch.dtype | None,
    *,
    batch_size: int = 500,
    workers: int = 2,
    on_error: str = "stop",
) -> tuple[Tensor, Tensor, Tensor]:
    """The network's outputs on a split, in its order, without augmentation.

    Returns:
        logits (M,K) float32, z (M,D) float32, labels (M,) int64, all on `device`.

    Raises:
        UserError: no image can be read.
    """
    training = network.training
    network.eval()
    logits, embeddings, labels = [], [], []
    for images, given in eval_batches(
        split, batch_size, device, workers=workers, on_error=on_error
    ):
        inputs = channels_last(views.plain(images))
        with torch.autocast(device.type, amp, enabled=amp is not None):
            output, z = network(inputs)
        logits.append(output.float() / network.temperature)
        embeddings.append(z)
        labels.append(given)
    network.train(training)
    if not any(map(len, labels)):
        raise UserError(
            f"not one of the images to test on can be read; the last: {split.skipped[-1]}"
        )
    # the labels together: a copy to a GPU is a matter of its own each time
    return torch.cat(logits), torch.cat(embeddings), torch.cat(labels).to(device)


def evaluation_batch(trained: int, size: int, device: torch.device) -> int:
    """How many images a network takes at once without gradients: on a GPU as many as keep it busy.

    Where a small batch is what the memory needs in training, that holds here too. A training step keeps
    the activations of all layers of its images, a step without gradients those of two or three layers.

    Args:
        trained: images of a training step on this device.
        size: S, the side of an image in pixels.
    """
    if device.type == "cpu":
        return min(500, 4 * trained)
    return min(2500, 10 * trained, max(1, PIXELS // size**2))
