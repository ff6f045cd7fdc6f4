"""Losses that know nothing of a sample but its target.

Dimensions: K classes, B batch, V views.
"""

from __future__ import annotations

from torch import Tensor

from noisybsd.methods.parts import (
    Batch,
    BelowOne,
    Loss,
    NonNegative,
    PositiveShare,
    Task,
    cross_entropy,
)


class LabelSmoothing(Loss):
    """Cross-entropy to (1 - s) y + s / K.

    Source: Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", section 7;
    under label noise: Lukasik et al. 2020, arXiv 2003.02819.
    """

    mixup = "instead"

    def __init__(self, task: Task, *, smoothing: BelowOne = 0.1):
        super().__init__()
        self.smoothing = smoothing

    def forward(self, batch: Batch) -> Tensor:
        uniform = 1 / batch.targets.shape[1]
        return cross_entropy(
            batch.logits, (1 - self.smoothing) * batch.targets + self.smoothing * uniform
        )


class GeneralizedCrossEntropy(Loss):
    """L_q = (1 - p_y^q) / q, between cross-entropy (q -> 0) and the mean absolute error (q = 1).

    Source: Zhang & Sabuncu 2018, arXiv 1805.07836; without the paper's truncation. CTRR's code, whose
    "CTRR + GCE" is often cited, clamps p_y at 1e-4, where the gradient then ends; here p_y has no floor.
    """

    mixup = "instead"
    takes_weights = True

    def __init__(self, task: Task, *, q: PositiveShare = 0.7):
        super().__init__()
        self.q = q

    def forward(self, batch: Batch) -> Tensor:
        # p^q through the logarithm: the gradient of p^q itself is infinite at p = 0
        power = (self.q * batch.logits.log_softmax(dim=-1)).exp()
        return (batch.targets * (1 - power) / self.q).sum(dim=-1).mean()


class SymmetricCrossEntropy(Loss):
    """alpha * cross-entropy + beta * reverse cross-entropy -sum_k p_k log y_k.

    Source: Wang et al. 2019, arXiv 1908.06112. The logarithm of a label's zeros is that of 1e-4, as in the
    authors' code.
    """

    mixup = "instead"
    FLOOR = 1e-4

    def __init__(self, task: Task, *, alpha: NonNegative = 0.1, beta: NonNegative = 1.0):
        super().__init__()
        self.alpha, self.beta = alpha, beta

    def forward(self, batch: Batch) -> Tensor:
        log_targets = batch.targets.clamp_min(self.FLOOR).log()
        reverse = -(batch.logits.softmax(dim=-1) * log_targets).sum(dim=-1).mean()
        return self.alpha * cross_entropy(batch.logits, batch.targets) + self.beta * reverse
