"""Target rules (what a sample should be called) and classification losses (how that is learned).

Both read one `Batch`. A new loss is a function here and an entry in LOSSES; a new rule is a class here
and an entry in TARGET_RULES; a preset in methods.py then gives the pair a name.

Dimensions: N training samples, K classes, B batch, V views, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisybsd.config import Config
from noisybsd.posterior import Posterior


@dataclass(frozen=True)
class Batch:
    """What a loss may look at. Clean labels are not among it."""

    index: Tensor  # (B,) int64, positions in the training set
    labels: Tensor  # (B,) int64, the given labels
    logits: Tensor  # (V,B,K) float32
    z: Tensor  # (V*B,D) float32, unit length, view by view
    targets: Tensor  # (B,K) float32, rows sum to one, no gradient


class TargetRule(nn.Module):
    """Says what each sample's target is. State lives in registered buffers, keyed by index."""

    def observe(self, index: Tensor, probs: Tensor) -> None:
        """See the network's prediction `probs` (B,K) for the samples `index` (B,)."""

    def observe_neighbours(self, votes: Tensor) -> None:
        """See the neighbours' mean targets (N,K), once an epoch; a row of zeros says nothing."""

    def targets(self, index: Tensor) -> Tensor:
        """Targets (B,K) float32 of the samples `index` (B,); rows sum to one."""
        raise NotImplementedError(type(self).__name__)

    def belief(self) -> Tensor | None:
        """The present belief (N,K) over every sample's class, or None if the rule holds none."""
        return None


class LabelTargets(TargetRule):
    """The given labels, one-hot: ordinary supervised learning."""

    labels: Tensor

    def __init__(self, labels: Tensor, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("labels", labels, persistent=False)

    def targets(self, index: Tensor) -> Tensor:
        return F.one_hot(self.labels[index], self.num_classes).float()


class PosteriorTargets(TargetRule):
    """The posterior mean of Bayesian self-distillation; the neighbours are a second sensor.

    alpha <- gamma * alpha + p + kappa * mean_{j in kNN(i)} y_j, kappa = `neighbour_weight`.
    """

    votes: Tensor

    def __init__(self, posterior: Posterior, neighbour_weight: float = 0.0):
        super().__init__()
        self.posterior = posterior
        self.neighbour_weight = neighbour_weight
        if neighbour_weight > 0:
            self.register_buffer("votes", torch.zeros_like(posterior.alpha))

    def observe(self, index: Tensor, probs: Tensor) -> None:
        if self.neighbour_weight > 0:
            probs = probs + self.neighbour_weight * self.votes[index]
        self.posterior.observe(index, probs)

    def observe_neighbours(self, votes: Tensor) -> None:
        if self.neighbour_weight > 0:
            self.votes.copy_(votes)

    def targets(self, index: Tensor) -> Tensor:
        return self.posterior.mean(index)

    def belief(self) -> Tensor | None:
        return self.posterior.mean()


def cross_entropy(batch: Batch) -> Tensor:
    """Cross-entropy to the targets, mean over views and samples: -sum_k y_k log p_k."""
    log_probs = F.log_softmax(batch.logits, dim=-1)
    return -(batch.targets * log_probs).sum(dim=-1).mean()


def _posterior(labels: Tensor, num_classes: int, config: Config) -> TargetRule:
    prior = config.posterior
    posterior = Posterior(
        labels,
        num_classes,
        prior_strength=prior.prior_strength,
        prior_floor=prior.prior_floor,
        discount=prior.discount,
    )
    return PosteriorTargets(posterior, config.neighbours.weight)


TARGET_RULES: dict[str, Callable[[Tensor, int, Config], TargetRule]] = {
    "labels": lambda labels, num_classes, config: LabelTargets(labels, num_classes),
    "posterior": _posterior,
}

LOSSES: dict[str, Callable[[Batch], Tensor]] = {
    "cross_entropy": cross_entropy,
}
