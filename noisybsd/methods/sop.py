"""Sparse over-parameterisation: each sample's label noise is fitted beside the network.

Dimensions: N training samples, K classes, B batch, V views.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from noisybsd.errors import UserError
from noisybsd.methods.parts import Batch, Loss, NonNegative, Task, one_hot, zeros


class SparseOverparameterization(Loss):
    """SOP: each sample's label noise s = u^2 y - v^2 (1 - y) is fitted beside the network.

    y is the given label, one-hot, u (N,1) and v (N,K). The network descends the cross-entropy of p + s,
    clamped and normalised, to y; v descends the squared error of hard(p) + s to y; u descends both. u
    and v start near 0 and so grow only where the error lasts. The paper has u descend the cross-entropy
    alone (its equation 6); this follows the authors' code, which made the published numbers: there u^2
    shrinks again once the network comes to agree with the label. SOP+ adds the agreement of a second view,
    KL(p_weak || p_strong), and class balance, the cross-entropy of the mean prediction to the uniform
    distribution.

    u and v are buffers with their own gradient descent, done while the gradient is computed. Its rates
    are for the paper's batches of 128: in batches of any size a row moves by rate / 128 times the
    gradient of its own sample's loss.

    Source: Liu et al. 2022, "Robust Training under Label Noise by Over-parameterization",
    arXiv 2202.14026. The second view is this project's strong one, not AutoAugment with cutout.
    """

    learns_labels = True
    learns_targets = False

    u: Tensor
    v: Tensor
    BATCH = 128
    FLOOR = 1e-4
    INITIAL_STD = 1e-8

    def __init__(
        self,
        task: Task,
        *,
        rate_u: NonNegative = 10.0,
        rate_v: NonNegative = 10.0,
        consistency: NonNegative = 0.0,
        balance: NonNegative = 0.0,
    ):
        super().__init__()
        if consistency > 0 and task.views != 2:
            raise UserError(
                f"options.consistency={consistency} compares two views; augment.views has {task.views}: "
                "use augment.views=[weak,strong], or options.consistency=0"
            )
        self.rate_u, self.rate_v = rate_u, rate_v
        self.consistency, self.balance = consistency, balance
        self.register_buffer("u", torch.randn_like(zeros(task, 1)) * self.INITIAL_STD)
        v = torch.randn_like(zeros(task, task.num_classes)) * self.INITIAL_STD
        self.register_buffer("v", v)

    def forward(self, batch: Batch) -> Tensor:
        index, y = batch.index, one_hot(batch.labels, batch.logits.shape[-1])
        u, v = (
            self._descending(self.u, index, self.rate_u),
            self._descending(self.v, index, self.rate_v),
        )
        added = (u.square() * y).clamp_max(1)
        removed = (v.square() * (1 - y)).clamp_max(1)

        p = batch.logits[0].softmax(dim=1)
        explained = (p + added - removed.detach()).clamp_min(self.FLOOR)
        explained = explained / explained.sum(dim=1, keepdim=True)
        explained = explained.clamp_min(self.FLOOR)
        loss = -(y * explained.log()).sum(dim=1).mean()
        hard = one_hot(p.argmax(dim=1), p.shape[1])
        loss = loss + (hard + added - removed - y).square().sum(dim=1).mean()
        if self.balance > 0:
            loss = loss - self.balance * explained.mean(dim=0).log().mean()
        if self.consistency > 0:
            log_other = batch.logits[1].log_softmax(dim=1)
            loss = loss + self.consistency * F.kl_div(log_other, p.detach(), reduction="batchmean")
        return loss

    def _descending(self, state: Tensor, index: Tensor, rate: float) -> Tensor:
        """Rows `index` (B,) of `state`, whose gradient, when it comes, moves them in place."""
        rows = state.index_select(0, index).requires_grad_()
        rows.register_hook(partial(_descend, state, index, rate * len(index) / self.BATCH))
        return rows


def _descend(state: Tensor, index: Tensor, rate: float, gradient: Tensor) -> None:
    state.index_add_(0, index, gradient, alpha=-rate)
