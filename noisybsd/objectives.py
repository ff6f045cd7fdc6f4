"""Target rules (what a sample should be called) and classification losses (how that is learned).

A rule and a loss are given the `Task` when a run starts and a `Batch` at each step. A new one is a class
here and an entry in TARGET_RULES or LOSSES; a preset in methods.py gives the pair a name. Its numbers are
keyword arguments of its constructor, and thereby the method's `options.*` on the command line.

Dimensions: N training samples, K classes, B batch, V views, D embedding width.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisybsd.config import Config
from noisybsd.posterior import Posterior


@dataclass(frozen=True)
class Task:
    """What a rule or a loss is told when a run starts. Clean labels are not among it."""

    labels: Tensor  # (N,) int64, the given labels
    num_classes: int  # K
    config: Config


@dataclass(frozen=True)
class Batch:
    """What a loss may look at in a step. Clean labels are not among it."""

    index: Tensor  # (B,) int64, positions in the training set
    labels: Tensor  # (B,) int64, the given labels
    logits: Tensor  # (V,B,K) float32
    z: Tensor  # (V*B,D) float32, unit length, view by view
    targets: Tensor  # (B,K) float32, rows sum to one, no gradient


class Part(nn.Module):
    """A rule or a loss. What it remembers lives in registered buffers, and so in the checkpoint."""

    def start_epoch(self, epoch: int) -> None:
        """Epoch number `epoch`, from 0, begins or goes on after an interruption."""


class TargetRule(Part):
    """Says what each sample's target is."""

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

    def __init__(self, task: Task):
        super().__init__()
        self.num_classes = task.num_classes
        self.register_buffer("labels", task.labels, persistent=False)

    def targets(self, index: Tensor) -> Tensor:
        return F.one_hot(self.labels[index], self.num_classes).float()


class PosteriorTargets(TargetRule):
    """The posterior mean of Bayesian self-distillation; the neighbours are a second sensor.

    alpha <- gamma * alpha + p + kappa * mean_{j in kNN(i)} y_j, with kappa = `neighbours.weight`
    and the constants of `posterior.*`.
    """

    votes: Tensor

    def __init__(self, task: Task):
        super().__init__()
        prior = task.config.posterior
        self.posterior = Posterior(
            task.labels,
            task.num_classes,
            prior_strength=prior.prior_strength,
            prior_floor=prior.prior_floor,
            discount=prior.discount,
        )
        self.temperature = prior.temperature
        self.neighbour_weight = task.config.neighbours.weight
        if self.neighbour_weight > 0:
            self.register_buffer("votes", torch.zeros_like(self.posterior.alpha))

    def observe(self, index: Tensor, probs: Tensor) -> None:
        if self.temperature != 1:
            probs = probs.pow(1 / self.temperature)
            probs = probs / probs.sum(dim=1, keepdim=True)
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


class Loss(Part):
    """The classification loss, a scalar for each batch.

    A loss may have parameters: they are trained with the network's. One that reads `batch.z` says so
    by `uses_embedding`, and the network then gets a projection head.
    """

    uses_embedding = False

    def forward(self, batch: Batch) -> Tensor:
        raise NotImplementedError(type(self).__name__)


class CrossEntropy(Loss):
    """Cross-entropy to the targets, mean over views and samples: -sum_k y_k log p_k."""

    def __init__(self, task: Task):
        super().__init__()

    def forward(self, batch: Batch) -> Tensor:
        log_probs = F.log_softmax(batch.logits, dim=-1)
        return -(batch.targets * log_probs).sum(dim=-1).mean()


TARGET_RULES: dict[str, type[TargetRule]] = {
    "labels": LabelTargets,
    "posterior": PosteriorTargets,
}

LOSSES: dict[str, type[Loss]] = {
    "cross_entropy": CrossEntropy,
}


def options(part: type[Part]) -> Iterator[inspect.Parameter]:
    """The keyword arguments of a rule's or loss's constructor: its `options.*`."""
    parameters = inspect.signature(part).parameters.values()
    return (p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


def build_rule(task: Task) -> TargetRule:
    return _build(TARGET_RULES[task.config.targets], task)


def build_loss(task: Task) -> Loss:
    return _build(LOSSES[task.config.loss], task)


def _build(part: Any, task: Task) -> Any:
    mine = {p.name for p in options(part)}
    return part(task, **{k: v for k, v in task.config.options.items() if k in mine})
