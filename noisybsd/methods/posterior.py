"""Bayesian self-distillation: a Dirichlet belief for every training sample.

The given label is the prior, or all labels that annotators gave. From then on the network is a noisy
sensor: each of its predictions is fractional evidence, older evidence fades, and the posterior mean is
what the network learns. Source: "Bayesian Self-Distillation for Image Classification", arXiv 2512.24162.
The paper's values of `prior_strength`, `prior_floor` and `discount` are not known; the defaults are ours.
How a prediction becomes evidence is the business of bsd.py.

`SparsePosterior` holds the same belief for many classes in a few numbers a sample.

Dimensions: N training samples, K classes, B batch, k classes kept (sparse).
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
        votes: (N,K) float32, how often each sample was given each class; None: its label, once.
        prior_strength: c, the pseudo-count of a vote in the prior.
        prior_floor: eps, the least pseudo-count of a class in the prior.
        discount: gamma in (0, 1], what stays of the belief at each visit.

    Example:
        >>> posterior = Posterior(torch.tensor([0]), 2, prior_strength=1.0, prior_floor=1e-9)
        >>> posterior.observe(torch.tensor([0]), torch.tensor([[0.0, 1.0]]))
        >>> posterior.mean(torch.tensor([0])).round(decimals=3)
        tensor([[0.4440, 0.5560]])
    """

    alpha: Tensor

    def __init__(
        self,
        labels: Tensor,
        num_classes: int,
        *,
        votes: Tensor | None = None,
        prior_strength: float = 8.0,
        prior_floor: float = 1e-3,
        discount: float = 0.8,
    ):
        super().__init__()
        self.discount = discount
        # alpha_i^0: c for each vote, but at least eps for each class
        if votes is None:
            alpha = torch.full((len(labels), num_classes), prior_floor, device=labels.device)
            alpha.scatter_(1, labels[:, None], max(prior_strength, prior_floor))
        else:
            alpha = (prior_strength * votes).clamp_min(prior_floor)
        self.register_buffer("alpha", alpha)

    @torch.no_grad()
    def observe(self, index: Tensor, evidence: Tensor, weight: Tensor | None = None) -> None:
        """alpha_i^t = gamma^w * alpha_i^{t-1} + w * evidence; no sample twice in one call.

        Args:
            index: (B,) int64, the rows observed.
            evidence: (B,K), the network's prediction p_i^t, plus that of further sensors, if any.
            weight: (B,), w, how many visits this is, from 0; None: 1, as in the paper.
        """
        kept, added = _of_a_visit(self.discount, evidence, weight)
        rows = self.alpha.index_select(0, index)
        self.alpha.index_copy_(0, index, rows.mul_(kept).add_(added))

    def mean(self, index: Tensor | None = None) -> Tensor:
        """The posterior mean y_i = alpha_i / sum_j alpha_ij, (B,K), or (N,K) of all samples."""
        alpha = self.alpha if index is None else self.alpha.index_select(0, index)
        return alpha / alpha.sum(dim=1, keepdim=True)

    def strength(self) -> Tensor:
        """S_i = sum_j alpha_ij, (N,): the pseudo-count behind each belief."""
        return self.alpha.sum(dim=1)

    def suggested(self) -> Tensor:
        """The most probable class of each sample, (N,) int64."""
        return self.alpha.argmax(dim=1)

    def probability(self, labels: Tensor) -> Tensor:
        """The posterior mean (N,) of each sample at its class in `labels` (N,)."""
        return self.alpha.gather(1, labels[:, None]).squeeze(1) / self.strength()


class SparsePosterior(nn.Module):
    """A `Posterior` that keeps k classes of each sample apart and the rest of the mass together.

    A row is the given label, which is always kept, the k-1 others with the largest concentrations,
    and the sum of all else, `rest`, spread evenly over the K-k classes not kept: 8k + 4 bytes
    instead of 4K. At a visit a class outside that now has more than one inside takes its place; what
    leaves joins `rest`. No step waits for the device, and shapes are static.

    How far it is from the dense posterior after t visits:
    - S is the same, and so is the given label's concentration. All is the same for k = K, and as long
      as predictions have had mass on at most k-1 classes beside the given label: the argmax flips at
      the same visit.
    - Else the total variation between the posterior means is at most rest/S, less what the prior has
      left there: at a visit only the mass that joins `rest` beyond its even share can get into a wrong
      place, and it fades as all evidence does.
    - The argmax is always one of the classes kept: what leaves is no larger than what stays.

    Args: as of `Posterior`, and
        top_k: k, from 2 to K.
    """

    classes: Tensor
    mass: Tensor
    rest: Tensor

    def __init__(
        self,
        labels: Tensor,
        num_classes: int,
        *,
        top_k: int,
        votes: Tensor | None = None,
        prior_strength: float = 8.0,
        prior_floor: float = 1e-3,
        discount: float = 0.8,
    ):
        super().__init__()
        self.num_classes, self.discount = num_classes, discount
        self.outside = num_classes - top_k
        # (N,k): the given label, then (for now) the classes that follow it, or those of other votes
        classes = labels[:, None] + torch.arange(top_k, device=labels.device)
        classes %= num_classes
        # (N,k): their concentrations
        mass = torch.full(classes.shape, prior_floor, device=labels.device)
        mass[:, 0] = max(prior_strength, prior_floor)
        # (N,): the sum of all other concentrations
        rest = torch.full(labels.shape, prior_floor * self.outside, device=labels.device)
        if votes is not None:
            alpha = (prior_strength * votes).clamp_min(prior_floor)  # (N,K), as in `Posterior`
            order = alpha.scatter(1, labels[:, None], torch.inf).sort(descending=True).indices
            classes = order[:, :top_k]
            mass = alpha.gather(1, classes)
            rest = alpha.gather(1, order[:, top_k:]).sum(dim=1)
        self.register_buffer("classes", classes.int())  # int32
        self.register_buffer("mass", mass)  # float32
        self.register_buffer("rest", rest)  # float32

    @torch.no_grad()
    def observe(self, index: Tensor, evidence: Tensor, weight: Tensor | None = None) -> None:
        """As `Posterior.observe`: rows `index` (B,) with `evidence` (B,K), each `weight` (B,)."""
        kept, evidence = _of_a_visit(self.discount, evidence, weight)
        classes = self.classes.index_select(0, index).long()
        mass = self.mass.index_select(0, index).mul_(kept)
        mass.add_(evidence.gather(1, classes))
        rest = self.rest.index_select(0, index).mul_(kept.squeeze(-1))
        challengers = min(classes.shape[1] - 1, self.outside)
        if challengers:
            others = evidence.scatter(1, classes, -1.0)
            share = rest / self.outside  # of each class outside, before this visit
            new_mass, new = others.topk(challengers, dim=1)
            rivals = torch.cat((mass[:, 1:], new_mass + share[:, None]), dim=1)
            best, chosen = rivals.topk(classes.shape[1] - 1, dim=1)
            stays = torch.zeros_like(rivals).scatter_(1, chosen, 1.0)
            evicted, admitted = stays.tensor_split([classes.shape[1] - 1], dim=1)
            # Sums of what is not negative: rounding makes no mass negative.
            rest = rest * (1 - admitted.sum(1) / self.outside)
            rest += (mass[:, 1:] * (1 - evicted)).sum(1)
            kept = torch.cat((classes[:, 1:], new), dim=1).gather(1, chosen)
            rest += others.scatter(1, classes, 0.0).scatter(1, kept, 0.0).sum(1)
            classes = torch.cat((classes[:, :1], kept), dim=1)
            mass = torch.cat((mass[:, :1], best), dim=1)
        self.classes.index_copy_(0, index, classes.int())
        self.mass.index_copy_(0, index, mass)
        self.rest.index_copy_(0, index, rest)

    def mean(self, index: Tensor | None = None) -> Tensor:
        """The posterior mean (B,K), or (N,K) of all samples, which is as large as a dense one."""
        classes, mass, rest = self.classes, self.mass, self.rest
        if index is not None:
            classes, mass, rest = (x.index_select(0, index) for x in (classes, mass, rest))
        share = rest / max(self.outside, 1)
        alpha = share[:, None].expand(-1, self.num_classes).scatter(1, classes.long(), mass)
        return alpha / alpha.sum(dim=1, keepdim=True)

    def strength(self) -> Tensor:
        """S_i, (N,): the pseudo-count behind each belief."""
        return self.mass.sum(dim=1) + self.rest

    def suggested(self) -> Tensor:
        """The most probable class of each sample, (N,) int64."""
        return self.classes.gather(1, self.mass.argmax(1, keepdim=True)).squeeze(1).long()

    def probability(self, labels: Tensor) -> Tensor:
        """The posterior mean (N,) of each sample at its class in `labels` (N,)."""
        found = self.classes == labels[:, None]  # (N,k), at most one in a row
        share = self.rest / max(self.outside, 1)
        alpha = torch.where(found.any(dim=1), (self.mass * found).sum(dim=1), share)
        return alpha / self.strength()


def _of_a_visit(discount: float, evidence: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """What a visit of `weight` (B,) keeps of a row, (B,1) or (1,), and what it adds, (B,K) float32."""
    if weight is None:
        return evidence.new_full((1,), discount, dtype=torch.float32), evidence.float()
    weight = weight.float()[:, None]
    return discount**weight, weight * evidence.float()


def override_time(prior_strength: float, discount: float) -> int:
    """Visits after which fully confident contrary predictions flip the target's argmax.

    The first t > ln(1 + c (1 - gamma)) / (-ln gamma), or t > c at gamma = 1, for eps -> 0. It belongs
    in the early-learning phase: a network that has memorised the label never flips it.
    """
    if discount == 1.0:
        return math.floor(prior_strength) + 1
    visits = math.log(1 + prior_strength * (1 - discount)) / -math.log(discount)
    return math.floor(visits) + 1
