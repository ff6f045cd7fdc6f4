"""What a target rule and a classification loss are, and what they are given.

A rule and a loss are built from the `Task` when a run starts; a loss is given a `Batch` at each step.
The keyword arguments of a part's constructor are its `options.*` on the command line: their annotations
say which values are valid, and what an option means. No part may make a training step wait for the device.

Dimensions: N training samples, K classes, B batch, V views, D embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from noisybsd.errors import UserError
from noisybsd.settings import NeighboursConfig

# types of options
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Task:
    """What a rule or a loss is told when a run starts. Clean labels are not among it."""

    labels: Tensor  # (N,) int64, the given labels; of several, the majority's
    num_classes: int  # K
    epochs: int  # of the whole run
    views: int  # of an image in a step
    embedding_dim: int  # D
    balanced: int | None  # most visits of samples of a given class in an epoch; None: all
    neighbours: NeighboursConfig
    votes: Tensor | None = (
        None  # (N,K) float32: how often a sample was given each class; None: once
    )


@dataclass(frozen=True)
class Batch:
    """What a loss may look at in a step. Clean labels are not among it."""

    index: Tensor  # (B,) int64, positions in the training set
    labels: Tensor  # (B,) int64, the given labels; of several, the majority's
    logits: Tensor  # (V,B,K) float32
    z: Tensor  # (V*B,D) float32, unit length, view by view
    targets: Tensor  # (B,K) float32, rows sum to one (ELR's and SSR's excepted), no gradient
    mixup: Mixup | None = None  # with mixed images beside the plain ones: how they were mixed


@dataclass(frozen=True)
class Mixup:
    """Convex combinations of the rows of a batch: lambda x_i + (1 - lambda) x_partner(i).

    Source: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization". One lambda for the batch,
    from Beta(alpha, alpha), folded to at least 1/2: the mixed pairs are distributed as before, since a
    random order and its inverse are alike, and what is recorded of sample i is of the image that shows
    most of it.
    """

    weight: Tensor  # () float32, lambda in [1/2, 1]
    partner: Tensor  # (B,) int64

    @classmethod
    def draw(cls, batch_size: int, alpha: float, device: torch.device) -> Mixup:
        """Random on `device`, without waiting for it."""
        concentration = torch.full((), alpha, device=device)
        beta = torch.distributions.Beta(concentration, concentration, validate_args=False)
        weight = beta.sample()
        partner = torch.rand(batch_size, device=device).argsort()
        return cls(torch.maximum(weight, 1 - weight), partner)

    def __call__(self, rows: Tensor) -> Tensor:
        """Mix `rows` (B,...): images of one view, or targets."""
        return torch.lerp(rows.index_select(0, self.partner), rows, self.weight.to(rows.dtype))


class Part(nn.Module):
    """A rule or a loss. What it remembers lives in registered buffers, and so in the checkpoint."""

    # How it takes mixup: never; "instead", with mixed images in place of the plain ones and targets mixed as
    # the images are, for a part that does not tell samples apart; or, a loss, with mixed ones "beside" them.
    mixup: Literal["never", "instead", "beside"] = "never"

    def start_epoch(self, epoch: int) -> None:
        """Epoch number `epoch`, from 0, begins or goes on after an interruption."""


class GivenTargets(nn.Module):
    """The given labels as distributions: one-hot; or of several votes each class's share.

    Its buffers are no part of a checkpoint.
    """

    labels: Tensor
    shares: Tensor | None

    def __init__(self, task: Task):
        super().__init__()
        self.num_classes = task.num_classes
        shares = None if task.votes is None else task.votes / task.votes.sum(1, keepdim=True)
        self.register_buffer("labels", task.labels, persistent=False)  # (N,)
        self.register_buffer("shares", shares, persistent=False)  # (N,K)

    def forward(self, index: Tensor | None = None) -> Tensor:
        """Of the samples `index` (B,), or of all: (B,K) float32; rows sum to one."""
        rows = slice(None) if index is None else index
        if self.shares is not None:
            return self.shares[rows]
        return one_hot(self.labels[rows], self.num_classes)


class TargetRule(Part):
    """Says what each sample's target is.

    One that cannot do without `observe_neighbours` says so by `needs_neighbours`. One whose targets hold
    nothing of the given labels says so by `only_predictions`: a loss must bring the labels in. One whose
    targets sum to a sample's weight, which may be 0, says so by `weighted`.
    """

    needs_neighbours = False
    only_predictions = False
    weighted = False

    def observe(self, index: Tensor, probs: Tensor) -> None:
        """See the network's predictions `probs` (V,B,K) for the views of the samples `index` (B,)."""

    def observe_neighbours(self, votes: Tensor) -> None:
        """See the neighbours' mean ballots (N,K), once an epoch; a row of zeros says nothing."""

    def ballots(self) -> Tensor | None:
        """What each sample votes for among its neighbours, (N,K), rows sum to one: its belief."""
        return self.belief()

    def visit(self, index: Tensor, logits: Tensor) -> Tensor:
        """Observe logits (V,B,K) for the views of the samples `index` (B,), and return their targets."""
        self.observe(index, logits.detach().softmax(dim=-1))
        return self.targets(index)

    def targets(self, index: Tensor) -> Tensor:
        """Targets (B,K) float32 of the samples `index` (B,); rows sum to one."""
        raise NotImplementedError(type(self).__name__)

    def belief(self) -> Tensor | None:
        """The present belief (N,K) over every sample's class, or None if the rule holds none."""
        return None

    def suggested(self) -> Tensor | None:
        """The most probable class (N,) by belief, without the whole of it where the rule can."""
        belief = self.belief()
        return None if belief is None else belief.argmax(dim=1)

    def strength(self) -> Tensor | None:
        """The pseudo-count (N,) behind each sample's belief, or None if it has none."""
        return None

    def never_learned(self) -> Tensor | None:
        """Which samples (N,) bool have zeros for a target throughout, or None if the rule keeps none so."""
        return None

    def memorisation(self) -> Tensor | None:
        """How far the network has memorised the given labels, () from 0 to 1 (all); None if not known."""
        return None

    def probability(self, labels: Tensor) -> Tensor | None:
        """The belief (N,) in each sample's class in `labels` (N,), or None."""
        belief = self.belief()
        return None if belief is None else belief.gather(1, labels[:, None]).squeeze(1)


class Loss(Part):
    """The classification loss, a scalar for each batch.

    A loss may have parameters: they are trained with the network's. One that reads `batch.z` says so
    by `uses_embedding`, and the network then gets a projection head. One that compares two views says so
    by `needs_two_views`. One that reads `batch.labels` says so by `learns_labels`, one that leaves
    `batch.targets` alone by `learns_targets`, and one that is linear in them, so that they may be
    `weighted`, by `takes_weights`.
    """

    learns_labels = False
    learns_targets = True
    takes_weights = False
    uses_embedding = False
    needs_two_views = False

    def forward(self, batch: Batch) -> Tensor:
        raise NotImplementedError(type(self).__name__)


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """(B,) int64 to (B,K) float32; torch's own reads the labels back to check them, off CUDA."""
    return (labels[:, None] == torch.arange(num_classes, device=labels.device)).float()


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum_k y_k log p_k, the mean over views and samples.

    Args:
        logits: (V,B,K) or (B,K).
        targets: (B,K), probabilities; or of the shape of the logits.

    Raises:
        ValueError: the logits are no tensor, or the targets are of another shape.
    """
    if not isinstance(logits, Tensor):
        raise UserError(f"logits: got {type(logits).__name__}; valid: a tensor")
    tensor = isinstance(targets, Tensor)
    if not tensor or targets.shape not in (logits.shape, logits.shape[-2:]):
        got = (
            f"{targets.dtype} of shape {tuple(targets.shape)}" if tensor else type(targets).__name__
        )
        raise UserError(
            f"targets: got {got}; valid: probabilities of shape "
            f"{tuple(logits.shape[-2:])}. torch.nn.functional.cross_entropy takes labels"
        )
    return -(targets * logits.log_softmax(dim=-1)).sum(dim=-1).mean()


def zeros(task: Task, width: int) -> Tensor:
    """(N,width) float32 on the labels' device."""
    return torch.zeros(len(task.labels), width, device=task.labels.device)


def inside(x: Tensor) -> Tensor:
    """`x`, kept within [1e-4, 1 - 1e-4]."""
    return x.clamp(1e-4, 1 - 1e-4)
