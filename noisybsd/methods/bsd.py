"""The target rule of Bayesian self-distillation: what of a visit is evidence, and what the belief teaches.

Dimensions: N training samples, K classes, B batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from noisybsd.methods.parts import TargetRule, Task, one_hot
from noisybsd.methods.posterior import Posterior, SparsePosterior


def class_shares(labels: Tensor, num_classes: int, balanced: int | None) -> tuple[Tensor, int]:
    """What running means over visits need to know of the labels (N,).

    Args:
        balanced: at most so many samples of each given class are visited in an epoch; None: all.

    Returns:
        How often the classes are visited, (K,), never 0; and over how many samples a mean is to run: about
        320 a class, but not more than three epochs.
    """
    counts = torch.bincount(labels, minlength=num_classes).float()
    counts = counts.clamp(1, balanced)  # a class without labels: not impossible, but rare
    return counts / counts.sum(), min(320 * num_classes, 3 * int(counts.sum()))


class Alignment(nn.Module):
    """Distribution alignment: predictions scaled so that every class is as frequent as among the labels.

    p_k r_k, normalised, r_k = h_k / m_k within [1/10, 10], with h the labels' histogram and m_k the running
    share of class k in the predictions. Berthelot et al. 2020, "ReMixMatch", section 3.1, with the noisy
    labels as the reference. Where most labels are wrong, a class of which a few more than usual are can
    be crowded out: predicted less, so observed less, so learned less. Its predictions count for more then.
    """

    MOST = 10.0

    histogram: Tensor
    predicted: Tensor

    def __init__(self, histogram: Tensor, window: int):
        super().__init__()
        self.window = window
        self.register_buffer("histogram", histogram, persistent=False)  # (K,)
        self.register_buffer("predicted", histogram.clone())  # m (K,)

    @torch.no_grad()
    def observe(self, probs: Tensor) -> None:
        """Predictions (B,K) become part of the mean."""
        self.predicted.lerp_(probs.mean(dim=0), min(1.0, len(probs) / self.window))

    def forward(self, probs: Tensor) -> Tensor:
        """Predictions (...,K), aligned."""
        ratio = self.histogram / self.predicted.clamp_min(1e-30)
        scaled = probs * ratio.clamp(1 / self.MOST, self.MOST)
        return scaled / scaled.sum(dim=-1, keepdim=True)


class LabelNoise(nn.Module):
    """How labels come to be: P(g | k), the noise transition matrix, from a running joint (K,K) of label
    and class.

    It starts as if nothing were known. A tenth of the labels is always taken as drawn at random, so that
    no label is proof.
    """

    RANDOM = 0.1

    labels: Tensor
    histogram: Tensor
    joint: Tensor

    def __init__(self, labels: Tensor, histogram: Tensor, window: int):
        super().__init__()
        self.window = window
        self.register_buffer("labels", labels, persistent=False)  # (N,)
        self.register_buffer("histogram", histogram, persistent=False)  # (K,)
        self.register_buffer("joint", histogram[:, None] * histogram)  # (K,K): g, k

    @torch.no_grad()
    def observe(self, index: Tensor, probs: Tensor) -> None:
        """What the samples `index` (B,) seem to be, (B,K), becomes part of the mean."""
        given = one_hot(self.labels[index], len(self.joint))
        share = min(1.0, len(index) / self.window)
        self.joint.addmm_(given.T, probs, beta=1 - share, alpha=share / len(index))

    def likelihood(self, index: Tensor) -> Tensor:
        """P(g_i | k), (B,K): how likely the samples' given labels are if their class is k."""
        given = self.labels[index]
        of_class = self.joint.sum(dim=0).clamp_min(1e-30)  # (K,)
        return (self.joint[given] / of_class).lerp(self.histogram[given, None], self.RANDOM)


class PosteriorTargets(TargetRule):
    """The posterior mean of Bayesian self-distillation; the neighbours are a second sensor.

    alpha <- gamma^w alpha + w (q + kappa mean_{j in kNN(i)} y_j), with kappa = `neighbours.weight` and
    the constants of `posterior.*`. The evidence q is the prediction, aligned (`Alignment`) and sharpened,
    times the likelihood of the given label (`LabelNoise`), normalised: Bayes' rule for a class of which the
    network says one thing and the label another. The likelihood is learned from the evidence, and a little
    from the prediction: by predictions alone the network's errors count as the labels', and what only
    labels know is overridden; by evidence alone every label is proof of what labels are worth. What is
    learned is the posterior mean, sharpened to `target_temperature`. The paper's recursion is q = p, w = 1,
    kappa = 0, and it learns the mean; from `sharp_until` on both temperatures rise to its 1, so that the
    network ends as sure as the belief.

    w in [0,1], how much of a visit this is, is ours: the probability that the predictions for two
    views of the image, sharpened to `agreement_temperature`, name the same class (with one view: that
    two draws from its prediction do). While the network is undecided, hardly any time passes for the
    belief, and the label stands; so neither a slow network nor a long run forgets labels that nothing
    better has come for.

    With `posterior.top_k` below the number of classes the state is sparse.
    """

    uses_posterior = True

    SOFT_FROM = 0.9  # of the run; `sharp_until` is less

    votes: Tensor

    def __init__(self, task: Task):
        super().__init__()
        self.prior, self.epochs = task.posterior, task.epochs
        prior = self.prior
        constants = {
            "prior_strength": prior.prior_strength,
            "prior_floor": prior.prior_floor,
            "discount": prior.discount,
        }
        self.posterior: Posterior | SparsePosterior
        if prior.top_k is not None and prior.top_k < task.num_classes:
            self.posterior = SparsePosterior(
                task.labels, task.num_classes, top_k=prior.top_k, **constants
            )
        else:
            self.posterior = Posterior(task.labels, task.num_classes, **constants)
        shares = class_shares(task.labels, task.num_classes, task.balanced)
        self.alignment = Alignment(*shares) if prior.align else None
        self.label_noise = LabelNoise(task.labels, *shares) if prior.label_evidence else None
        self.observe_mean = prior.observe == "mean"
        self.start_epoch(0)
        self.agreement_temperature = prior.agreement_temperature
        self.neighbour_weight = task.neighbours.weight
        if self.neighbour_weight > 0:
            votes = torch.zeros(len(task.labels), task.num_classes, device=task.labels.device)
            self.register_buffer("votes", votes)

    def start_epoch(self, epoch: int) -> None:
        sharpness, start = 1.0, self.prior.sharp_until
        if start is not None:
            rise = (epoch / self.epochs - start) / (self.SOFT_FROM - start)
            sharpness = 1 - min(max(rise, 0.0), 1.0)
        self.temperature = self.prior.temperature**sharpness
        self.target_temperature = self.prior.target_temperature**sharpness

    def observe(self, index: Tensor, probs: Tensor) -> None:
        plain = probs[0]
        if self.alignment is not None:
            self.alignment.observe(plain)
            probs = self.alignment(probs)
        evidence = sharpened(probs.mean(dim=0) if self.observe_mean else probs[0], self.temperature)
        if self.label_noise is not None:
            # as the others say: what this visit adds to the likelihood is no proof of itself
            evidence = evidence * self.label_noise.likelihood(index)
            evidence = evidence / evidence.sum(dim=1, keepdim=True)
            self.label_noise.observe(index, plain.lerp(evidence, self.prior.evidence_share))
        if self.neighbour_weight > 0:
            evidence = evidence + self.neighbour_weight * self.votes[index]
        weight = None
        if self.agreement_temperature is not None:
            views = sharpened(probs, self.agreement_temperature)
            weight = (views[0] * views[-1]).sum(dim=1)
        self.posterior.observe(index, evidence, weight)

    def observe_neighbours(self, votes: Tensor) -> None:
        if self.neighbour_weight > 0:
            self.votes.copy_(votes)

    def targets(self, index: Tensor) -> Tensor:
        return sharpened(self.posterior.mean(index), self.target_temperature)

    def belief(self) -> Tensor | None:
        return self.posterior.mean()

    def suggested(self) -> Tensor | None:
        return self.posterior.suggested()

    def strength(self) -> Tensor | None:
        return self.posterior.strength()

    def probability(self, labels: Tensor) -> Tensor | None:
        return self.posterior.probability(labels)


def sharpened(probs: Tensor, temperature: float) -> Tensor:
    """p_k^(1/T) / sum_j p_j^(1/T), of predictions (...,K)."""
    if temperature == 1:
        return probs
    powers = (probs / probs.amax(dim=-1, keepdim=True)).pow(1 / temperature)  # the largest is 1
    return powers / powers.sum(dim=-1, keepdim=True)
