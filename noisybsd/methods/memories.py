"""Memories of each sample's predictions: ELR, SELC, temporal ensembling, PS-KD.

Dimensions: N training samples, K classes, B batch, V views.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from noisybsd.methods.parts import (
    Batch,
    BelowOne,
    GivenTargets,
    Loss,
    NonNegative,
    PositiveShare,
    Share,
    TargetRule,
    Task,
    cross_entropy,
    inside,
    one_hot,
    zeros,
)


class EarlyLearningTargets(TargetRule):
    """ELR's memory t <- beta t + (1 - beta) p, from t = 0: rows sum to 1 - beta^visits, not to one.

    Source: Liu et al. 2020, "Early-Learning Regularization Prevents Memorization of Noisy Labels",
    arXiv 2007.00151. Predictions are kept within [1e-4, 1 - 1e-4] and normalised, as in the authors' code.
    """

    only_predictions = True

    memory: Tensor
    labels: Tensor

    def __init__(self, task: Task, *, beta: BelowOne = 0.7):
        super().__init__()
        self.beta, self.num_classes = beta, task.num_classes
        self.register_buffer("labels", task.labels, persistent=False)
        self.register_buffer("memory", zeros(task, task.num_classes))

    @torch.no_grad()
    def observe(self, index: Tensor, probs: Tensor) -> None:
        probs = inside(probs[0])
        probs = probs / probs.sum(dim=1, keepdim=True)
        rows = self.memory.index_select(0, index)
        self.memory.index_copy_(0, index, self.beta * rows + (1 - self.beta) * probs)

    def targets(self, index: Tensor) -> Tensor:
        return self.memory.index_select(0, index)

    def belief(self) -> Tensor:
        """The memory, normalised; the label of a sample that was never seen."""
        total = self.memory.sum(dim=1, keepdim=True)
        labels = one_hot(self.labels, self.num_classes)
        return torch.where(total > 0, self.memory / total.clamp_min(1e-12), labels)


class EarlyLearningRegularization(Loss):
    """Cross-entropy to the given labels + weight * log(1 - <p, t>), with t of EarlyLearningTargets.

    Source: Liu et al. 2020, arXiv 2007.00151. The regulariser falls as p agrees with t; its gradient keeps up
    that of samples fitted early and cancels that of labels that contradict t.
    """

    learns_labels = True

    def __init__(self, task: Task, *, weight: NonNegative = 3.0):
        super().__init__()
        self.weight = weight

    def forward(self, batch: Batch) -> Tensor:
        labels = one_hot(batch.labels, batch.logits.shape[-1])
        agreement = (inside(batch.logits.softmax(dim=-1)) * batch.targets).sum(dim=-1)  # (V,B)
        regulariser = torch.log1p(-agreement).mean()
        return cross_entropy(batch.logits, labels) + self.weight * regulariser


class SelfEnsembleLabels(TargetRule):
    """SELC: the labels, and after `warmup`, a share of the run, y <- momentum y + (1 - momentum) p.

    Source: Lu & He 2022, "SELC: Self-Ensemble Label Correction Improves Learning with Noisy Labels",
    arXiv 2205.01156. The paper finds the end of the warm-up for each dataset and noise rate beforehand (its
    turning point); here it is a number.
    """

    soft_labels: Tensor

    def __init__(self, task: Task, *, momentum: Share = 0.9, warmup: Share = 0.15):
        super().__init__()
        self.momentum = momentum
        self.warmup_epochs = round(warmup * task.epochs)
        self.correcting = False
        self.register_buffer("soft_labels", GivenTargets(task)())

    def start_epoch(self, epoch: int) -> None:
        self.correcting = epoch >= self.warmup_epochs

    @torch.no_grad()
    def observe(self, index: Tensor, probs: Tensor) -> None:
        if self.correcting:
            rows = self.soft_labels.index_select(0, index)
            self.soft_labels.index_copy_(0, index, rows.lerp_(probs[0], 1 - self.momentum))

    def targets(self, index: Tensor) -> Tensor:
        return self.soft_labels.index_select(0, index)

    def belief(self) -> Tensor:
        return self.soft_labels


class TemporalEnsemble(TargetRule):
    """The average of a sample's predictions at its earlier visits, recent ones weighing more.

    Z <- momentum Z + (1 - momentum) p after each visit; the target is Z / (1 - momentum^t) from before this
    visit, and the given label at the first one.

    Source: Laine & Aila 2017, "Temporal Ensembling for Semi-Supervised Learning", arXiv 1610.02242,
    algorithm 2.
    """

    ensemble: Tensor
    earlier: Tensor
    visits: Tensor

    def __init__(self, task: Task, *, momentum: BelowOne = 0.6):
        super().__init__()
        self.momentum, self.given = momentum, GivenTargets(task)
        self.register_buffer("ensemble", zeros(task, task.num_classes))  # (N,K), Z
        self.register_buffer("earlier", zeros(task, task.num_classes))  # (N,K), Z one visit ago
        self.register_buffer("visits", zeros(task, 1))  # (N,1), t

    @torch.no_grad()
    def observe(self, index: Tensor, probs: Tensor) -> None:
        rows = self.ensemble.index_select(0, index)
        self.earlier.index_copy_(0, index, rows)
        self.ensemble.index_copy_(0, index, rows.lerp(probs[0], 1 - self.momentum))
        self.visits.index_add_(0, index, torch.ones_like(probs[0, :, :1]))

    def targets(self, index: Tensor) -> Tensor:
        return self._corrected(self.earlier[index], self.visits[index] - 1, self.given(index))

    def belief(self) -> Tensor:
        """The average over all visits; the label of a sample that was never seen."""
        return self._corrected(self.ensemble, self.visits, self.given())

    def _corrected(self, ensemble: Tensor, visits: Tensor, given: Tensor) -> Tensor:
        mean = ensemble / (1 - self.momentum**visits).clamp_min(1e-12)
        return torch.where(visits > 0, mean, given)


class TemporalConsistency(Loss):
    """Cross-entropy to the given labels + w(t) * mean squared difference of p and the ensemble's target.

    w rises from 0 as weight * exp(-5 (1 - T)^2), T going from 0 to 1 within `ramp_up`, a share of the run.

    Source: Laine & Aila 2017, arXiv 1610.02242, algorithm 2; every sample is labelled.
    """

    learns_labels = True

    def __init__(
        self,
        task: Task,
        *,
        weight: NonNegative = 30.0,
        ramp_up: PositiveShare = 0.27,
    ):
        super().__init__()
        self.weight = weight
        self.ramp_epochs = max(1.0, ramp_up * task.epochs)
        self.weight_now = 0.0

    def start_epoch(self, epoch: int) -> None:
        ramp = math.exp(-5 * (1 - min(1.0, epoch / self.ramp_epochs)) ** 2)
        self.weight_now = self.weight * ramp if epoch > 0 else 0.0  # no ensemble before

    def forward(self, batch: Batch) -> Tensor:
        labels = one_hot(batch.labels, batch.logits.shape[-1])
        difference = (batch.logits.softmax(dim=-1) - batch.targets).square().mean()
        return cross_entropy(batch.logits, labels) + self.weight_now * difference


class ProgressiveTargets(TemporalEnsemble):
    """PS-KD: (1 - a_t) y + a_t p, with p of the sample's last visit and a_t rising linearly to `alpha`.

    Source: Kim et al. 2021, "Self-Knowledge Distillation with Progressive Refinement of Targets",
    arXiv 2006.12000. In the first epoch p is the label.
    """

    def __init__(self, task: Task, *, alpha: Share = 0.8):
        super().__init__(task, momentum=0.0)
        self.alpha, self.epochs = alpha, task.epochs
        self.alpha_now = 0.0

    def start_epoch(self, epoch: int) -> None:
        self.alpha_now = self.alpha * (epoch + 1) / self.epochs

    def targets(self, index: Tensor) -> Tensor:
        return self.given(index).lerp(super().targets(index), self.alpha_now)
