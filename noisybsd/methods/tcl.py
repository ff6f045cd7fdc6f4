"""TCL: twin contrastive learning.

Dimensions: N training samples, K classes, B batch, D embedding width.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from noisybsd import distributed
from noisybsd.methods.contrastive import simclr
from noisybsd.methods.parts import Batch, Loss, Positive, Share, Task, cross_entropy, one_hot, zeros


class TwinContrastive(Loss):
    """TCL's objective: two views that supervise each other where a mixture model doubts the label.

    Once an epoch, from each sample's last embedding v and prediction p: class prototypes
    mu_k = normalise(sum_i p_ik v_i); assignments softmax(<v, mu> / temperature); a two-component Gaussian
    mixture of the assignments of the given labels; w_i, the probability of the component that agrees.
    With s the share of samples whose w exceeds 1/2, the targets of the two views are
    w s y + (1 - w s) p_other, and those of mixed images the mixed w s y + (1 - w s) p_mean. In the
    `warmup`, a share of the run, all are the labels. The loss is the sum, every weight 1, of
    - NT-Xent between the views;
    - cross-entropy of both views and of the mixed images;
    - alignment: cross-entropy of softmax(<z_mixed, mu> / temperature) to the mixed targets;
    - mean entropy of the predictions, minus the entropy of their mean.

    Source: Huang et al. 2023, "Twin Contrastive Learning with Noisy Labels", arXiv 2303.06930, with s and
    the form of the regularisers from the authors' code. Unlike there:
    - the views are one weak and one strong, not two strong ones beside a weak one that is only mixed;
      mixed images pair samples within a view, not across views;
    - embeddings and predictions for the mixture are those of the weak view as training passed, in
      training mode and up to an epoch old, not of a further pass over the unaugmented images;
    - the classifier and the projection head are this project's (linear; SimCLR's), where the authors'
      classifier has two layers and dropout;
    - the alignment begins with the second epoch, when there are prototypes.
    """

    learns_labels = True
    learns_targets = False
    uses_embedding = True
    needs_two_views = True
    mixup = "beside"

    labels: Tensor
    features: Tensor
    probs: Tensor
    clean: Tensor
    clean_share: Tensor
    prototypes: Tensor
    fitted_epoch: Tensor

    def __init__(self, task: Task, *, temperature: Positive = 0.25, warmup: Share = 0.1):
        super().__init__()
        self.temperature = temperature
        self.warmup_epochs = round(warmup * task.epochs)
        self.warming_up = True
        k, d = task.num_classes, task.embedding_dim
        self.register_buffer("labels", task.labels, persistent=False)
        self.register_buffer("features", zeros(task, d))  # (N,D), v
        self.register_buffer("probs", zeros(task, k))  # (N,K), p
        self.register_buffer("clean", zeros(task, 1))  # (N,1), w
        self.register_buffer("clean_share", torch.ones((), device=task.labels.device))  # s
        self.register_buffer("prototypes", torch.zeros(k, d, device=task.labels.device))  # (K,D)
        self.register_buffer("fitted_epoch", torch.zeros((), dtype=torch.int64))

    def start_epoch(self, epoch: int) -> None:
        self.warming_up = epoch < self.warmup_epochs
        if epoch > int(self.fitted_epoch):  # not again where an interrupted epoch goes on
            self.fit()
            self.fitted_epoch.fill_(epoch)

    @torch.no_grad()
    def fit(self) -> None:
        """Prototypes, and each label's probability to be right, from what the last epoch left."""
        from sklearn.exceptions import ConvergenceWarning  # here, since it takes a second to import
        from sklearn.mixture import GaussianMixture

        seen = self.probs.sum(dim=1) > 0  # drop_last leaves some out
        if not seen.any():
            return
        features, labels = self.features[seen], self.labels[seen]
        self.prototypes.copy_(F.normalize(self.probs[seen].T @ features, dim=1))
        assigned = (features @ self.prototypes.T / self.temperature).softmax(dim=1)
        agreement = assigned.gather(1, labels[:, None]).double()  # (n,1)
        low, high = agreement.min(), agreement.max()
        values = ((agreement - low) / (high - low).clamp_min(1e-12)).cpu().numpy()
        mixture = GaussianMixture(n_components=2, random_state=0)
        with warnings.catch_warnings():  # assignments that are all alike are one cluster
            warnings.simplefilter("ignore", ConvergenceWarning)
            component = mixture.fit(values).predict_proba(values)[:, mixture.means_.argmax()]
        clean = torch.as_tensor(component, dtype=torch.float32, device=labels.device)
        self.clean[seen] = clean[:, None]
        self.clean_share.copy_((clean > 0.5).float().mean())
        for found in (self.clean, self.clean_share):  # another machine may round otherwise
            distributed.copy_first_(found)

    def forward(self, batch: Batch) -> Tensor:
        assert batch.mixup is not None
        plain, mixed = batch.logits.chunk(2)  # (2,B,K) each: the weak view, the strong view
        z, z_mixed = batch.z.chunk(2)  # (2B,D) each
        y = one_hot(batch.labels, plain.shape[-1])
        p = plain.detach().softmax(dim=-1)
        self.features.index_copy_(0, batch.index, z.detach()[: len(y)])
        self.probs.index_copy_(0, batch.index, p[0])

        trust = self.clean[batch.index] * self.clean_share  # (B,1)
        if self.warming_up:
            trust = torch.ones_like(trust)
        targets = trust * y + (1 - trust) * p.flip(0)  # (2,B,K): each view's from the other
        mixed_targets = batch.mixup(trust * y + (1 - trust) * p.mean(dim=0))  # (B,K)

        aligned = (z_mixed @ self.prototypes.T / self.temperature).view_as(mixed)
        log_p = batch.logits.log_softmax(dim=-1).flatten(0, 1)  # (4B,K)
        mean = log_p.exp().mean(dim=0)
        return (
            simclr(z, self.temperature)
            + 2 * cross_entropy(plain, targets)  # the views' losses are summed
            + cross_entropy(mixed, mixed_targets)
            + cross_entropy(aligned, mixed_targets)
            - (log_p.exp() * log_p).sum(dim=1).mean()
            + torch.xlogy(mean, mean).sum()
        )
