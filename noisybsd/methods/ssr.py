"""SSR and SSR+: labels that the network is sure of are replaced, and neighbours vote which are learned.

Dimensions: N training samples, K classes, B batch, V views, D embedding width.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from noisybsd.methods.ctrr import predictor
from noisybsd.methods.parts import (
    Batch,
    Loss,
    NonNegative,
    Share,
    TargetRule,
    Task,
    cross_entropy,
    one_hot,
    zeros,
)


class SelectedLabels(TargetRule):
    """SSR's relabelling and selection, once an epoch; a target (K,) sums to its sample's weight.

    The label l of a sample is the predicted class where its probability exceeds `theta_r`, and the given
    one elsewhere. With v (K,) the shares of the labels l among its neighbours, each divided by its class's
    share of all labels l, the sample is selected if v_l >= theta_s max_k v_k. A selected sample's weight
    is the inverse of how many selected samples have its label, that of others 0; the mean weight is 1.

    Source: Feng, Tzimiropoulos & Patras 2022, "SSR: An Efficient and Robust Framework for Learning with
    Unknown Label Noise", arXiv 2111.11288, with the division by class shares from the authors' code.
    Unlike there:
    - weights stand in for a sampler that repeats selected samples until classes are equally frequent, so
      that a step learns from those of its batch that are selected, and an epoch sees each once;
    - predictions and embeddings are those of the weak view as training passed, in training mode and up to
      an epoch old, not of a further pass in evaluation mode;
    - a sample is no neighbour of itself; of SSR+ the embeddings are the projection head's;
    - all given labels are learned until neighbours first vote, after `neighbours.start_epoch` epochs. In
      a loop of one's own `observe_neighbours` is to be called with the neighbours' mean of `ballots`.
    """

    needs_neighbours = True
    weighted = True

    given: Tensor
    labels: Tensor
    weights: Tensor
    predicted: Tensor
    confidence: Tensor

    def __init__(
        self,
        task: Task,
        *,
        theta_r: Annotated[
            Share, Field(description="a prediction of a higher probability replaces the label")
        ] = 0.9,
        theta_s: Annotated[
            Share, Field(description="least vote for the label that selects, of the largest vote")
        ] = 1.0,
    ):
        super().__init__()
        self.theta_r, self.theta_s, self.num_classes = theta_r, theta_s, task.num_classes
        self.register_buffer("given", task.labels, persistent=False)
        self.register_buffer("labels", task.labels.clone())  # (N,), l
        self.register_buffer("weights", zeros(task, 1) + 1)  # (N,1)
        self.register_buffer("predicted", task.labels.clone())  # (N,)
        self.register_buffer("confidence", zeros(task, 1).squeeze(1))  # (N,)

    @torch.no_grad()
    def observe(self, index: Tensor, probs: Tensor) -> None:
        confidence, predicted = probs[0].max(dim=1)
        self.confidence.index_copy_(0, index, confidence)
        self.predicted.index_copy_(0, index, predicted)

    def suggested(self) -> Tensor:
        """l (N,) by the predictions so far."""
        return torch.where(self.confidence > self.theta_r, self.predicted, self.given)

    def ballots(self) -> Tensor:
        return one_hot(self.suggested(), self.num_classes)

    def observe_neighbours(self, votes: Tensor) -> None:
        self.labels.copy_(self.suggested())
        y = one_hot(self.labels, self.num_classes)
        votes = votes / y.mean(dim=0).clamp_min(1e-10)
        largest = votes.amax(dim=1, keepdim=True)
        selected = y * (votes >= self.theta_s * largest) * (largest > 0)  # (N,K)
        weights = (selected / selected.sum(dim=0).clamp_min(1)).sum(dim=1, keepdim=True)
        self.weights.copy_(weights / weights.mean().clamp_min(1e-12))

    def targets(self, index: Tensor) -> Tensor:
        return self.weights[index] * one_hot(self.labels[index], self.num_classes)


class SelectedCrossEntropy(Loss):
    """Cross-entropy of the mixed images to the mixed targets, divided by the batch's mean weight.

    Source: Feng et al. 2022, arXiv 2111.11288; see `SelectedLabels`. Unlike there, images are mixed within a
    weak and a strong view and not among two strong ones, and a selected image's partner may be one that is
    not selected, whose label then does not count.
    """

    mixup = "beside"
    takes_weights = True

    def __init__(self, task: Task):
        super().__init__()

    def forward(self, batch: Batch) -> Tensor:
        assert batch.mixup is not None
        _, mixed = batch.logits.chunk(2)  # (V,B,K)
        targets = batch.mixup(batch.targets)
        return cross_entropy(mixed, targets) / targets.sum(dim=1).mean().clamp_min(1e-12)


class ConsistentFeatures(SelectedCrossEntropy):
    """SSR+: the loss of SSR - consistency * <predictor(z_strong), z_weak>, a cosine, over all samples.

    z_weak has no gradient. Source: Feng et al. 2022, arXiv 2111.11288. Unlike there, z, which the predictor
    takes, is normalised.
    """

    uses_embedding = True
    needs_two_views = True

    def __init__(self, task: Task, *, consistency: NonNegative = 1.0):
        super().__init__(task)
        self.consistency = consistency
        self.predictor = predictor(task.embedding_dim, 2)

    def forward(self, batch: Batch) -> Tensor:
        weak, strong, *_ = batch.z.chunk(4)  # (B,D)
        agreement = F.cosine_similarity(self.predictor(strong), weak.detach(), dim=1).mean()
        return super().forward(batch) - self.consistency * agreement
