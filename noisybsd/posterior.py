"""Bayesian self-distillation: a Dirichlet belief for every training sample.

The given label is used once, as the prior. From then on the network is a noisy sensor: each of its
predictions is fractional evidence, older evidence fades, and the training target is the posterior
mean. Source: "Bayesian Self-Distillation for Image Classification", arXiv 2512.24162. The values of
`prior_strength`, `prior_floor` and `discount` are not published; the defaults are ours.

Dimensions: N training samples, K classes, B batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Posterior(nn.Module):
    """Dirichlet concentrations alpha (N,K), one row per training sample, as a registered buffer.

    Args:
        labels: (N,) int64, the given labels.
        num_classes: K.
        prior_strength: c, the pseudo-count of the given label in the prior.
        prior_floor: eps, the pseudo-count of every other class in the prior.
        discount: gamma in (0, 1], what stays of the belief at each visit.

    Example:
        >>> posterior = Posterior(torch.tensor([0]), 2, prior_strength=1.0, prior_floor=1e-9)
        >>> posterior.observe(torch.tensor([0]), torch.tensor([[0.0, 1.0]]))
        >>> posterior.mean(torch.tensor([0])).round(decimals=3)
        tensor([[0.4870, 0.5130]])
    """

    alpha: Tensor

    def __init__(
        self,
        labels: Tensor,
        num_classes: int,
        *,
        prior_strength: float = 10.0,
        prior_floor: float = 1e-3,
        discount: float = 0.95,
    ):
        super().__init__()
        self.discount = discount
        # alpha_i^0: c at the given label, eps elsewhere
        alpha = torch.full((len(labels), num_classes), prior_floor, device=labels.device)
        alpha.scatter_(1, labels[:, None], max(prior_strength, prior_floor))
        self.register_buffer("alpha", alpha)

    @torch.no_grad()
    def observe(self, index: Tensor, evidence: Tensor) -> None:
        """alpha_i^t = gamma * alpha_i^{t-1} + evidence; no sample twice in one call.

        Args:
            index: (B,) int64, the rows observed.
            evidence: (B,K), the network's prediction p_i^t, plus further sensors where there are any.
        """
        rows = self.alpha.index_select(0, index)
        self.alpha.index_copy_(0, index, rows.mul_(self.discount).add_(evidence.float()))

    def mean(self, index: Tensor | None = None) -> Tensor:
        """The posterior mean y_i = alpha_i / sum_j alpha_ij, (B,K), or (N,K) of all samples."""
        alpha = self.alpha if index is None else self.alpha.index_select(0, index)
        return alpha / alpha.sum(dim=1, keepdim=True)

    def strength(self) -> Tensor:
        """S_i = sum_j alpha_ij, (N,): the pseudo-count behind each belief."""
        return self.alpha.sum(dim=1)


def override_time(prior_strength: float, discount: float) -> int:
    """Visits after which fully confident contrary predictions flip the target's argmax.

    The first t > ln(1 + c (1 - gamma)) / (-ln gamma), or t > c at gamma = 1, for eps -> 0. It belongs
    in the early-learning phase: a network that has memorised the label never flips it.
    """
    if discount == 1.0:
        return math.floor(prior_strength) + 1
    visits = math.log(1 + prior_strength * (1 - discount)) / -math.log(discount)
    return math.floor(visits) + 1


def reference_targets(
    label: int,
    predictions: list[list[float]],
    *,
    prior_strength: float,
    prior_floor: float,
    discount: float,
) -> list[list[float]]:
    """The targets of one sample after each of its visits, as the equations read: the slow reference.

    Args:
        label: the given label.
        predictions: T predictions of K probabilities each, in the order of the visits.

    Returns:
        T targets of K probabilities each.
    """
    classes = range(len(predictions[0]))
    alpha = [prior_strength if k == label else prior_floor for k in classes]
    targets = []
    for p in predictions:
        alpha = [discount * alpha[k] + p[k] for k in classes]
        total = sum(alpha)
        targets.append([alpha[k] / total for k in classes])
    return targets
