"""ILL: imprecise-label learning, for labels that are noisy.

Dimensions: K classes, B batch.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from noisybsd.methods.parts import Batch, Loss, NonNegative, Positive, Task, cross_entropy


class ImpreciseLabels(Loss):
    """Expectation-maximisation over the class behind a noisy label, with a noise matrix that is learned.

    With p and p' the predictions for the weak and the strong view, g the given label and M (K,K) a matrix
    whose columns and then rows are scaled to unit length, and that by `scale`:

        P(g | k) = softmax of row k of M at g
        q   ~ p_k P(g | k),   q' ~ p'_k P(g | k)                       (both without gradient to M)
        n   ~ sum_k p_k softmax of column g of M at k
        loss = H(q, q') - log n_g + H(p, p') + balance * H(uniform, mean of p)

    "~": normalised to sum to one; q, and p where it is a target, have no gradient. The matrix starts as the
    identity and is a buffer with its own gradient descent, done while the gradient is computed.

    Source: Chen et al. 2024, "Imprecise Label Learning: A Unified Framework for Learning with Various
    Imprecise Label Configurations", arXiv 2305.12715, in the form of the authors' code: the softmax over
    columns and the last two terms are from there. The strong view is this project's.
    """

    learns_labels = True
    learns_targets = False
    needs_two_views = True

    matrix: Tensor

    def __init__(
        self,
        task: Task,
        *,
        scale: Annotated[
            Positive,
            Field(
                description="of the noise matrix before its softmax; near 0 no label says anything"
            ),
        ] = 1.0,
        rate: Annotated[
            NonNegative, Field(description="learning rate of the noise matrix, by plain descent")
        ] = 0.02,
        balance: Annotated[
            NonNegative, Field(description="weight of equal class frequencies in the predictions")
        ] = 0.1,
    ):
        super().__init__()
        self.scale, self.rate, self.balance = scale, rate, balance
        self.register_buffer("matrix", torch.eye(task.num_classes, device=task.labels.device))

    def forward(self, batch: Batch) -> Tensor:
        weak, strong = batch.logits  # (B,K)
        matrix = self.matrix.clone().requires_grad_()
        matrix.register_hook(self._descend)
        scaled = self.scale * F.normalize(F.normalize(matrix, dim=0), dim=1)
        p = weak.softmax(dim=1)

        # by logarithms: the product of a prediction and the likelihood may be 0 in float32
        given = scaled.detach().log_softmax(dim=1).T[batch.labels]  # (B,K), log P(g | k)
        loss = cross_entropy(strong + given, (weak.detach() + given).softmax(dim=1))
        seen = p @ scaled.softmax(dim=0)  # (B,K), n but for its sum
        loss = loss + F.nll_loss((seen / seen.sum(dim=1, keepdim=True)).log(), batch.labels)
        loss = loss + cross_entropy(strong, p.detach())
        return loss - self.balance * p.mean(dim=0).clamp_min(1e-6).log().mean()

    def _descend(self, gradient: Tensor) -> None:
        self.matrix.sub_(gradient, alpha=self.rate)
