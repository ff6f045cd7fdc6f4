"""Records of every training sample and of every epoch, kept on the device.

A step adds to these buffers and never reads them, so it does not wait for the device. They are read once
an epoch, and are part of the checkpoint, so that a run interrupted within an epoch continues exactly.

Dimensions: N training samples, K classes, B batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SampleMonitor(nn.Module):
    """Per sample: the network's last prediction and its margin for the given label over time."""

    labels: Tensor
    predicted: Tensor
    given_prob: Tensor
    margin_sum: Tensor
    visits: Tensor
    left_epoch: Tensor

    def __init__(self, labels: Tensor):
        super().__init__()
        n, device = len(labels), labels.device
        self.register_buffer("labels", labels, persistent=False)  # (N,) int64, given
        # (N,) int64: the class the network predicted at the last visit; the given one before any
        self.register_buffer("predicted", labels.clone())
        # (N,) float32: the probability it gave to the given label at the last visit
        self.register_buffer("given_prob", torch.ones(n, device=device))
        # (N,) float32: sum over visits of logit(given) - max logit(other): area under the margin,
        # Pleiss et al. 2020, when divided by visits
        self.register_buffer("margin_sum", torch.zeros(n, device=device))
        self.register_buffer("visits", torch.zeros(n, device=device))  # (N,) float32
        # (N,) int64: the first epoch after which the belief favoured another class; -1: none did
        self.register_buffer("left_epoch", torch.full((n,), -1, device=device))

    @torch.no_grad()
    def record(self, index: Tensor, logits: Tensor) -> None:
        """Note the prediction for samples `index` (B,) from `logits` (B,K) float32."""
        given = self.labels[index][:, None]
        own = logits.gather(1, given)
        other = logits.scatter(1, given, -torch.inf).amax(dim=1)
        self.predicted.index_copy_(0, index, logits.argmax(dim=1))
        self.given_prob.index_copy_(0, index, logits.softmax(dim=1).gather(1, given).squeeze(1))
        self.margin_sum.index_add_(0, index, own.squeeze(1) - other)
        self.visits.index_add_(0, index, torch.ones_like(other))

    @torch.no_grad()
    def record_belief(self, suggested: Tensor, epoch: int) -> None:
        """Note the epoch at which the suggested class (N,) first differs from the given label."""
        left = (suggested != self.labels) & (self.left_epoch < 0)
        self.left_epoch.masked_fill_(left, epoch)


class EpochSums(nn.Module):
    """Sums over the steps of an epoch, and the first step whose loss was not finite."""

    NAMES = ("loss", "classification_loss", "contrastive_loss", "train_accuracy")
    _NEVER = 2**62

    sums: Tensor
    steps: Tensor
    bad_step: Tensor

    def __init__(self, device: torch.device):
        super().__init__()
        self.register_buffer("sums", torch.zeros(len(self.NAMES), device=device))
        self.register_buffer("steps", torch.zeros((), device=device))
        self.register_buffer("bad_step", torch.full((), self._NEVER, device=device))

    def reset(self) -> None:
        self.sums.zero_()
        self.steps.zero_()

    @torch.no_grad()
    def add(self, step: int, *values: Tensor) -> None:
        """Add one scalar tensor for each of NAMES; the first one is the loss."""
        row = torch.stack([value.detach() for value in values])
        self.sums += row
        self.steps += 1
        fault = torch.where(row[0].isfinite(), self._NEVER, step)
        torch.minimum(self.bad_step, fault, out=self.bad_step)

    def means(self) -> dict[str, float]:
        """The means over the epoch so far. Reads the device."""
        return dict(zip(self.NAMES, (self.sums / self.steps).tolist(), strict=True))

    def first_bad_step(self) -> int | None:
        """The first step with a non-finite loss, or None. Reads the device."""
        step = int(self.bad_step.item())
        return None if step == self._NEVER else step
