"""CTRR: contrastive regularisation.

Dimensions: K classes, B batch, D embedding width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisybsd.methods.parts import Batch, Loss, NonNegative, Share, Task, cross_entropy, inside


def predictor(width: int, times: int) -> nn.Sequential:
    """A layer of `times` the width, with batch norm, between an embedding (B,D) and a guess at another."""
    hidden = times * width
    return nn.Sequential(
        nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, width)
    )


class ContrastiveRegularization(Loss):
    """CTRR: cross-entropy of the weak view + weight * a contrastive term without negatives.

    With q = predictor(z) of the strong view, k = z of the weak view without gradient, and p the weak
    view's prediction, image i is drawn to itself by -<q_i, k_i> and to j by log(1 - <q_i, k_j>), each
    weighted by the agreement <p_i, p_j> where that is at least `threshold` (1 for itself), the weights of
    a row summing to one. The logarithm's gradient is largest for pairs that are close already, which
    right pairs are early.

    Source: Yi et al. 2022, "On Learning Contrastive Representations for Learning with Noisy Labels",
    arXiv 2203.01785, in the form of the authors' code, which also keeps the entries of q and k within
    [1e-4, 1 - 1e-4]. Unlike there: k comes from the network itself, not from a moving average of it; one
    of the two views compared is the weak one, not a third view; z, which the predictor takes, is
    normalised; a constant 2 * weight is left out.
    """

    takes_weights = True
    uses_embedding = True
    needs_two_views = True

    def __init__(self, task: Task, *, weight: NonNegative = 50.0, threshold: Share = 0.4):
        super().__init__()
        self.weight, self.threshold = weight, threshold
        self.predictor = predictor(task.embedding_dim, 4)

    def forward(self, batch: Batch) -> Tensor:
        weak, strong = batch.z.chunk(2)
        q = inside(F.normalize(self.predictor(strong), dim=1))
        similarity = q @ inside(weak.detach()).T  # (B,B)
        itself = torch.eye(len(q), dtype=torch.bool, device=q.device)
        # the clamp keeps the logarithm finite if two images have the same embedding
        distance = torch.where(itself, -similarity, (1 - similarity).clamp_min(1e-4).log())

        p = batch.logits[0].detach().softmax(dim=1)
        agreement = (p @ p.T).masked_fill(itself, 1.0)
        agreement = agreement * (agreement >= self.threshold)
        agreement = agreement / agreement.sum(dim=1, keepdim=True)
        contrast = (agreement * distance).sum(dim=1).mean()
        return cross_entropy(batch.logits[0], batch.targets) + self.weight * contrast
