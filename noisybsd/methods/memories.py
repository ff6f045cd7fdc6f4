"""The methods that BSD is compared with, as target rules and losses over the same loop.

Each has one network and one stage. Each formula is its paper's; where the authors' public code says
more or says otherwise, that is named. Schedules that papers give in epochs are shares of the run
here, so that a method can run in any recipe's budget. The published numbers are in methods.py.

Dimensions: N training samples, K classes, B batch, V views, D embedding width.
"""

from __future__ import annotations

import math
import warnings
from functools import partial

import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from noisybsd import distributed
from noisybsd.methods.contrastive import simclr
from noisybsd.methods.parts import (
    Batch,
    Loss,
    TargetRule,
    Task,
    check_option,
    cross_entropy,
    one_hot,
)

# ---------------------------------------------------------------------------------------------
# losses that know nothing of a sample but its target


class LabelSmoothing(Loss):
    """Cross-entropy to (1 - s) y + s / K.

    Source: Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", section 7;
    under label noise: Lukasik et al. 2020, arXiv 2003.02819.
    """

    mixup = "instead"

    def __init__(self, task: Task, *, smoothing: float = 0.1):
        super().__init__()
        check_option("smoothing", smoothing, 0 <= smoothing < 1, "a number in [0, 1)")
        self.smoothing = smoothing

    def forward(self, batch: Batch) -> Tensor:
        uniform = 1 / batch.targets.shape[1]
        return cross_entropy(
            batch.logits, (1 - self.smoothing) * batch.targets + self.smoothing * uniform
        )


class GeneralizedCrossEntropy(Loss):
    """L_q = (1 - p_y^q) / q, between cross-entropy (q -> 0) and the mean absolute error (q = 1).

    Source: Zhang & Sabuncu 2018, arXiv 1805.07836; without the paper's truncation.
    """

    mixup = "instead"

    def __init__(self, task: Task, *, q: float = 0.7):
        super().__init__()
        check_option("q", q, 0 < q <= 1, "a number in (0, 1]")
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

    def __init__(self, task: Task, *, alpha: float = 0.1, beta: float = 1.0):
        super().__init__()
        check_option("alpha", alpha, alpha >= 0, "a number of at least 0")
        check_option("beta", beta, beta >= 0, "a number of at least 0")
        self.alpha, self.beta = alpha, beta

    def forward(self, batch: Batch) -> Tensor:
        log_targets = batch.targets.clamp_min(self.FLOOR).log()
        reverse = -(batch.logits.softmax(dim=-1) * log_targets).sum(dim=-1).mean()
        return self.alpha * cross_entropy(batch.logits, batch.targets) + self.beta * reverse


# ---------------------------------------------------------------------------------------------
# memories of each sample's predictions


class EarlyLearningTargets(TargetRule):
    """ELR's memory t <- beta t + (1 - beta) p, from t = 0: rows sum to 1 - beta^visits, not to one.

    Source: Liu et al. 2020, "Early-Learning Regularization Prevents Memorization of Noisy Labels",
    arXiv 2007.00151. Predictions are kept within [1e-4, 1 - 1e-4] and normalised, as in the authors' code.
    """

    memory: Tensor
    labels: Tensor

    def __init__(self, task: Task, *, beta: float = 0.7):
        super().__init__()
        check_option("beta", beta, 0 <= beta < 1, "a number in [0, 1)")
        self.beta, self.num_classes = beta, task.num_classes
        self.register_buffer("labels", task.labels, persistent=False)
        self.register_buffer("memory", _zeros(task, task.num_classes))

    @torch.no_grad()
    def observe(self, index: Tensor, probs: Tensor) -> None:
        probs = _inside(probs[0])
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

    def __init__(self, task: Task, *, weight: float = 3.0):
        super().__init__()
        check_option("weight", weight, weight >= 0, "a number of at least 0")
        self.weight = weight

    def forward(self, batch: Batch) -> Tensor:
        labels = one_hot(batch.labels, batch.logits.shape[-1])
        agreement = (_inside(batch.logits.softmax(dim=-1)) * batch.targets).sum(dim=-1)  # (V,B)
        regulariser = torch.log1p(-agreement).mean()
        return cross_entropy(batch.logits, labels) + self.weight * regulariser


class SelfEnsembleLabels(TargetRule):
    """SELC: the labels, and after `warmup`, a share of the run, y <- momentum y + (1 - momentum) p.

    Source: Lu & He 2022, "SELC: Self-Ensemble Label Correction Improves Learning with Noisy Labels",
    arXiv 2205.01156. The paper finds the end of the warm-up for each dataset and noise rate beforehand (its
    turning point); here it is a number.
    """

    soft_labels: Tensor

    def __init__(self, task: Task, *, momentum: float = 0.9, warmup: float = 0.15):
        super().__init__()
        check_option("momentum", momentum, 0 <= momentum <= 1, "a number in [0, 1]")
        check_option("warmup", warmup, 0 <= warmup <= 1, "a share of the run, in [0, 1]")
        self.momentum = momentum
        self.warmup_epochs = round(warmup * task.config.epochs)
        self.correcting = False
        labels = one_hot(task.labels, task.num_classes)
        self.register_buffer("soft_labels", labels)

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

    labels: Tensor
    ensemble: Tensor
    earlier: Tensor
    visits: Tensor

    def __init__(self, task: Task, *, momentum: float = 0.6):
        super().__init__()
        check_option("momentum", momentum, 0 <= momentum < 1, "a number in [0, 1)")
        self.momentum, self.num_classes = momentum, task.num_classes
        self.register_buffer("labels", task.labels, persistent=False)
        self.register_buffer("ensemble", _zeros(task, task.num_classes))  # (N,K), Z
        self.register_buffer("earlier", _zeros(task, task.num_classes))  # (N,K), Z one visit ago
        self.register_buffer("visits", _zeros(task, 1))  # (N,1), t

    @torch.no_grad()
    def observe(self, index: Tensor, probs: Tensor) -> None:
        rows = self.ensemble.index_select(0, index)
        self.earlier.index_copy_(0, index, rows)
        self.ensemble.index_copy_(0, index, rows.lerp(probs[0], 1 - self.momentum))
        self.visits.index_add_(0, index, torch.ones_like(probs[0, :, :1]))

    def targets(self, index: Tensor) -> Tensor:
        return self._corrected(self.earlier[index], self.visits[index] - 1, self.labels[index])

    def belief(self) -> Tensor:
        """The average over all visits; the label of a sample that was never seen."""
        return self._corrected(self.ensemble, self.visits, self.labels)

    def _corrected(self, ensemble: Tensor, visits: Tensor, labels: Tensor) -> Tensor:
        mean = ensemble / (1 - self.momentum**visits).clamp_min(1e-12)
        return torch.where(visits > 0, mean, one_hot(labels, self.num_classes))


class TemporalConsistency(Loss):
    """Cross-entropy to the given labels + w(t) * mean squared difference of p and the ensemble's target.

    w rises from 0 as weight * exp(-5 (1 - T)^2), T going from 0 to 1 within `ramp_up`, a share of the run.

    Source: Laine & Aila 2017, arXiv 1610.02242, algorithm 2; every sample is labelled.
    """

    def __init__(self, task: Task, *, weight: float = 30.0, ramp_up: float = 0.27):
        super().__init__()
        check_option("weight", weight, weight >= 0, "a number of at least 0")
        check_option("ramp_up", ramp_up, 0 < ramp_up <= 1, "a share of the run, in (0, 1]")
        self.weight = weight
        self.ramp_epochs = max(1.0, ramp_up * task.config.epochs)
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

    def __init__(self, task: Task, *, alpha: float = 0.8):
        super().__init__(task, momentum=0.0)
        check_option("alpha", alpha, 0 <= alpha <= 1, "a number in [0, 1]")
        self.alpha, self.epochs = alpha, task.config.epochs
        self.alpha_now = 0.0

    def start_epoch(self, epoch: int) -> None:
        self.alpha_now = self.alpha * (epoch + 1) / self.epochs

    def targets(self, index: Tensor) -> Tensor:
        labels = one_hot(self.labels[index], self.num_classes)
        return labels.lerp(super().targets(index), self.alpha_now)


# ---------------------------------------------------------------------------------------------
# sparse over-parameterisation


class SparseOverparameterization(Loss):
    """SOP: each sample's label noise s = u^2 y - v^2 (1 - y) is fitted beside the network.

    y is the given label, one-hot, u (N,1) and v (N,K). The network and u descend the cross-entropy of
    p + s, clamped and normalised, to y; v descends the squared error of hard(p) + s to y. u and v start
    near 0 and so grow only where the error lasts. SOP+ adds the agreement of a second view,
    KL(p_weak || p_strong), and class balance, the cross-entropy of the mean prediction to the uniform
    distribution.

    u and v are buffers with their own gradient descent, done while the gradient is computed. Its rates
    are for the paper's batches of 128: in batches of any size a row moves by rate / 128 times the
    gradient of its own sample's loss.

    Source: Liu et al. 2022, "Robust Training under Label Noise by Over-parameterization",
    arXiv 2202.14026. The second view is this project's strong one, not AutoAugment with cutout.
    """

    u: Tensor
    v: Tensor
    BATCH = 128
    FLOOR = 1e-4
    INITIAL_STD = 1e-8

    def __init__(
        self,
        task: Task,
        *,
        rate_u: float = 10.0,
        rate_v: float = 10.0,
        consistency: float = 0.0,
        balance: float = 0.0,
    ):
        super().__init__()
        given = {
            "rate_u": rate_u,
            "rate_v": rate_v,
            "consistency": consistency,
            "balance": balance,
        }
        for name, value in given.items():
            check_option(name, value, value >= 0, "a number of at least 0")
        if consistency > 0:
            views = len(task.config.augment.views)
            check_option(
                "consistency", consistency, views == 2, f"0, or two augment.views (got {views})"
            )
        self.rate_u, self.rate_v = rate_u, rate_v
        self.consistency, self.balance = consistency, balance
        self.register_buffer("u", torch.randn_like(_zeros(task, 1)) * self.INITIAL_STD)
        v = torch.randn_like(_zeros(task, task.num_classes)) * self.INITIAL_STD
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
        loss = loss + (hard + added.detach() - removed - y).square().sum(dim=1).mean()
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


# ---------------------------------------------------------------------------------------------
# contrastive methods


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

    uses_embedding = True
    needs_two_views = True

    def __init__(self, task: Task, *, weight: float = 50.0, threshold: float = 0.4):
        super().__init__()
        check_option("weight", weight, weight >= 0, "a number of at least 0")
        check_option("threshold", threshold, 0 <= threshold <= 1, "a number in [0, 1]")
        self.weight, self.threshold = weight, threshold
        width = task.config.network.embedding_dim
        self.predictor = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.BatchNorm1d(4 * width),
            nn.ReLU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, batch: Batch) -> Tensor:
        weak, strong = batch.z.chunk(2)
        q = _inside(F.normalize(self.predictor(strong), dim=1))
        similarity = q @ _inside(weak.detach()).T  # (B,B)
        itself = torch.eye(len(q), dtype=torch.bool, device=q.device)
        # the clamp keeps the logarithm finite if two images have the same embedding
        distance = torch.where(itself, -similarity, (1 - similarity).clamp_min(1e-4).log())

        p = batch.logits[0].detach().softmax(dim=1)
        agreement = (p @ p.T).masked_fill(itself, 1.0)
        agreement = agreement * (agreement >= self.threshold)
        agreement = agreement / agreement.sum(dim=1, keepdim=True)
        contrast = (agreement * distance).sum(dim=1).mean()
        return cross_entropy(batch.logits[0], batch.targets) + self.weight * contrast


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

    def __init__(self, task: Task, *, temperature: float = 0.25, warmup: float = 0.1):
        super().__init__()
        check_option("temperature", temperature, temperature > 0, "a number above 0")
        check_option("warmup", warmup, 0 <= warmup <= 1, "a share of the run, in [0, 1]")
        self.temperature = temperature
        self.warmup_epochs = round(warmup * task.config.epochs)
        self.warming_up = True
        k, d = task.num_classes, task.config.network.embedding_dim
        self.register_buffer("labels", task.labels, persistent=False)
        self.register_buffer("features", _zeros(task, d))  # (N,D), v
        self.register_buffer("probs", _zeros(task, k))  # (N,K), p
        self.register_buffer("clean", _zeros(task, 1))  # (N,1), w
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


# ---------------------------------------------------------------------------------------------


def _zeros(task: Task, width: int) -> Tensor:
    """(N,width) float32 on the labels' device."""
    return torch.zeros(len(task.labels), width, device=task.labels.device)


def _inside(x: Tensor) -> Tensor:
    return x.clamp(1e-4, 1 - 1e-4)


TARGET_RULES: dict[str, type[TargetRule]] = {
    "elr": EarlyLearningTargets,
    "selc": SelfEnsembleLabels,
    "temporal_ensemble": TemporalEnsemble,
    "ps_kd": ProgressiveTargets,
}

LOSSES: dict[str, type[Loss]] = {
    "label_smoothing": LabelSmoothing,
    "gce": GeneralizedCrossEntropy,
    "sce": SymmetricCrossEntropy,
    "elr": EarlyLearningRegularization,
    "temporal_ensemble": TemporalConsistency,
    "sop": SparseOverparameterization,
    "ctrr": ContrastiveRegularization,
    "tcl": TwinContrastive,
}
