"""The target rule of Bayesian self-distillation: what of a visit is evidence, and what the belief teaches.

Dimensions: N training samples, K classes, B batch.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from noisybsd.methods.parts import NonNegative, PositiveShare, TargetRule, Task, one_hot
from noisybsd.methods.posterior import Posterior, SparsePosterior

# How far running means look back; not tuned: long against a batch, short against a run.
SAMPLES_A_CLASS, EPOCHS = 320, 3


def class_shares(labels: Tensor, num_classes: int, balanced: int | None) -> tuple[Tensor, int]:
    """What running means over visits need to know of the labels (N,).

    Args:
        balanced: at most so many samples of each given class are visited in an epoch; None: all.

    Returns:
        How often the classes are visited, (K,), never 0; and over how many samples a mean is to run:
        `SAMPLES_A_CLASS` for each class, but not more than `EPOCHS`.
    """
    counts = torch.bincount(labels, minlength=num_classes).float()
    counts = counts.clamp(1, balanced)  # a class without labels: not impossible, but rare
    window = min(SAMPLES_A_CLASS * num_classes, EPOCHS * int(counts.sum()))
    return counts / counts.sum(), window


class Alignment(nn.Module):
    """Distribution alignment: predictions scaled so that every class is as frequent as among the labels.

    p_k r_k, normalised, r_k = h_k / m_k within [1/10, 10], with h the labels' histogram and m_k the running
    share of class k in the predictions. Berthelot et al. 2020, "ReMixMatch", section 3.1, with the noisy
    labels as the reference. Where most labels are wrong, a class of which a few more than usual are can
    be crowded out: predicted less, so observed less, so learned less. Its predictions count for more then.
    """

    MOST = 10.0  # not tuned: keeps a class that is hardly predicted from taking all

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

    RANDOM = 0.1  # not tuned

    labels: Tensor
    shares: Tensor | None
    histogram: Tensor
    joint: Tensor

    def __init__(self, labels: Tensor, histogram: Tensor, window: int, votes: Tensor | None = None):
        super().__init__()
        self.window = window
        self.register_buffer("labels", labels, persistent=False)  # (N,)
        shares = None if votes is None else votes / votes.sum(dim=1, keepdim=True)
        self.register_buffer("shares", shares, persistent=False)  # (N,K), of several labels
        self.register_buffer("histogram", histogram, persistent=False)  # (K,)
        self.register_buffer("joint", histogram[:, None] * histogram)  # (K,K): g, k

    @torch.no_grad()
    def observe(self, index: Tensor, probs: Tensor) -> None:
        """What the samples `index` (B,) seem to be, (B,K), becomes part of the mean."""
        given = one_hot(self.labels[index], len(self.joint))
        if self.shares is not None:
            given = self.shares[index]
        share = min(1.0, len(index) / self.window)
        self.joint.addmm_(given.T, probs, beta=1 - share, alpha=share / len(index))

    def likelihood(self, index: Tensor) -> Tensor:
        """P(g_i | k), (B,K): how likely the samples' given labels are if their class is k.

        Of several votes it is the geometric mean. Their product would take them as independent, but people
        err on the same images (docs/LOG.md, votes count as one label).
        """
        of_class = self.joint.sum(dim=0).clamp_min(1e-30)  # (K,)
        if self.shares is None:
            given = self.labels[index]
            return (self.joint[given] / of_class).lerp(self.histogram[given, None], self.RANDOM)
        of_vote = (self.joint / of_class).lerp(self.histogram[:, None], self.RANDOM)  # (K,K): g, k
        return (self.shares[index] @ of_vote.log()).exp()


class Memorisation(nn.Module):
    """How far the network has memorised the given labels, without knowing which are right.

    The classifier never learns some of the samples, the probes. Once it memorises, it gives the given label
    more probability for samples that it learns than for probes: M = (a - b - e) / (1 - b), within [0, 1].
    Over the last epoch a is the mean probability of the given label of the samples that are learned, b that
    of probes, and e the standard error of b. M is 0 while nothing is memorised, and 1 when all labels are.
    """

    # A class's share of probes is one in EVERY of its samples; of very many samples about MOST are enough.
    EVERY, MOST = 20, 1000

    labels: Tensor
    learned: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, labels: Tensor, num_classes: int):
        super().__init__()
        every = max(self.EVERY, math.ceil(len(labels) / self.MOST))
        order = labels.argsort(stable=True)
        ones = torch.ones_like(labels)
        of_class = ones.new_zeros(num_classes).index_add(0, labels, ones)
        first = of_class.cumsum(0) - of_class
        number = torch.arange(len(labels), device=labels.device) - first[labels[order]]
        learned = torch.ones(len(labels), device=labels.device)
        learned[order] = (number % every != every - 1).float()
        self.register_buffer("labels", labels, persistent=False)  # (N,)
        self.register_buffer("learned", learned, persistent=False)  # (N,) 1.0, or 0.0 of a probe
        # over an epoch's visits, of probes and of samples that are learned: the given labels' summed
        # probabilities, and the number of visits
        self.register_buffer("sums", learned.new_zeros(2))
        self.register_buffer("counts", learned.new_zeros(2))

    @torch.no_grad()
    def observe(self, index: Tensor, probs: Tensor) -> None:
        """Predictions (B,K) for the samples `index` (B,) become part of the means."""
        learned = self.learned[index]
        kind = torch.stack((1 - learned, learned))  # (2,B)
        of_given = probs.gather(1, self.labels[index][:, None]).squeeze(1)
        left = 1 - min(1.0, len(index) / len(self.labels))
        self.sums.mul_(left).add_(kind @ of_given)
        self.counts.mul_(left).add_(kind.sum(dim=1))

    def forward(self) -> Tensor:
        """M, () float32."""
        # as if there were two probes more, one of them predicted as labelled: few probes say little
        of_probes = (self.sums[0] + 1) / (self.counts[0] + 2)
        of_learned = self.sums[1] / self.counts[1].clamp_min(1)
        error = (of_probes * (1 - of_probes) / (self.counts[0] + 2)).sqrt()
        return ((of_learned - of_probes - error) / (1 - of_probes)).clamp(0, 1)


class PosteriorTargets(TargetRule):
    """The posterior mean of Bayesian self-distillation, from evidence that is treated in five steps.

    With p (B,K) the network's predictions for the first view of the samples, p' for the last one:

        (1) align                     a  ~ p_k h_k / m_k                           (`Alignment`)
        (2) sharpen                   s  ~ a_k^(1/T)
        (3) condition on the label    q  ~ s_k P(g | k)^(1-r)                      (`LabelNoise`)
        (4) weigh the visit           w  = f (r + (1-r) <a^(1/T_w), a'^(1/T_w)>), both normalised
        (*) probe                     r  = u min(1, 10 M)^2                        (`Memorisation`)
        (5)                           alpha <- gamma^w alpha + w (q + kappa mean_{j in kNN(i)} y_j)
        (6)                           target ~ y_k^(1/T_t),  y = alpha / sum_k alpha_k

    "~": normalised to sum to one; kappa is `neighbours.weight`. Each of the steps 1 to 4 has a switch, and so
    has (*), without which r = 0; `sharpen` is (2) and (6). Without all five and without neighbours this is
    the paper's recursion: q = p, w = 1, and the mean is the target (arXiv 2512.24162). docs/method.md says
    why each step is there.

    (3) is Bayes' rule for a class of which the network says one thing and the label another. The
    likelihood is learned from the evidence, and a little from the prediction: by predictions alone the
    network's errors count as the labels', and what only labels know is overridden; by evidence alone every
    label is proof of what labels are worth.

    (4) is the probability that two views name the same class (with one view: that two draws from its
    prediction do). While the network is undecided, hardly any time passes for the belief, and the label
    stands; so neither a slow network nor a long run forgets labels that nothing better has come for. c and
    gamma suit the visits of 40 epochs: in a run of fewer, E, a visit counts for more, f = 40 / max(E, 16).

    (*) A network that memorises labels says of every sample what it has been taught. A label that is asked
    at every visit then confirms itself, and so does one that stands until the network is sure. Memorisation
    is measured on probes, which the classifier does not learn: their targets are zeros. As M rises, the
    label is asked less and visits count in full, as in the paper's recursion, which lets go of all labels.
    u falls from 1 to 0 between half and nine tenths of the run, as for the temperatures: by then beliefs have
    settled, and a network that memorises a little so late does less harm than labels that are not asked.

    With `top_k` below the number of classes the state is sparse.
    """

    # eps, of every other class in the prior; not tuned: small against a visit's evidence of 1
    PRIOR_FLOOR = 1e-3
    # T and T_t, with c = 8 and gamma = 0.8: on digits and CIFAR-10N (docs/LOG.md, the label as evidence)
    EVIDENCE_TEMPERATURE, TARGET_TEMPERATURE = 0.7, 0.25
    # the shares of the run between which both rise to 1, and u falls to 0: on CIFAR-10N (docs/LOG.md,
    # sharp first)
    SOFTENS = 0.5, 0.9
    # of what labels' worth is learned from (docs/LOG.md, three parts evidence)
    EVIDENCE_SHARE = 0.75
    # T_w: on digits and CIFAR-10N (docs/LOG.md, visits that count in part)
    AGREEMENT_TEMPERATURE = 0.25
    # epochs: c and gamma were chosen in runs of LONG_RUN and more; in shorter ones visits count more, which
    # was tried down to SHORT_RUN (docs/LOG.md, a belief that keeps pace with the run)
    LONG_RUN, SHORT_RUN = 40, 16
    # r = u min(1, MEMORISED * M)^2: on 5,000 and 4,000 images of CIFAR-10N (docs/LOG.md, memorisation)
    MEMORISED = 10.0

    votes: Tensor

    def __init__(
        self,
        task: Task,
        *,
        prior_strength: Annotated[
            NonNegative, Field(description="c: pseudo-count of a given label in the prior")
        ] = 8.0,
        discount: Annotated[
            PositiveShare, Field(description="gamma: what a visit leaves of older evidence")
        ] = 0.8,
        align: Annotated[
            bool,
            Field(description="scale predictions to the class frequencies of the given labels"),
        ] = True,
        sharpen: Annotated[
            bool, Field(description="sharpen evidence and targets, less and less late in the run")
        ] = True,
        label_evidence: Annotated[
            bool,
            Field(description="the given label is evidence at every visit, for what it is worth"),
        ] = True,
        weigh_visits: Annotated[
            bool,
            Field(
                description="a visit counts as much as the predictions for two views agree, and for more in "
                "a run of less than 40 epochs"
            ),
        ] = True,
        probe: Annotated[
            bool,
            Field(
                description="never learn a few samples, to notice when the network memorises labels; label "
                "evidence and the weights of visits then give way"
            ),
        ] = False,
        top_k: Annotated[
            int | None,
            Field(ge=2, description="keep so many classes of each sample apart; null: all"),
        ] = None,
    ):
        super().__init__()
        labels, classes = task.labels, task.num_classes
        prior: dict[str, Any] = {
            "prior_strength": prior_strength,
            "prior_floor": self.PRIOR_FLOOR,
            "discount": discount,
            "votes": task.votes,
        }
        self.posterior: Posterior | SparsePosterior
        if top_k is not None and top_k < classes:
            self.posterior = SparsePosterior(labels, classes, top_k=top_k, **prior)
        else:
            self.posterior = Posterior(labels, classes, **prior)
        shares = class_shares(labels, classes, task.balanced)
        self.alignment = Alignment(*shares) if align else None
        self.label_noise = LabelNoise(labels, *shares, task.votes) if label_evidence else None
        self.sharpen, self.weigh_visits, self.epochs = sharpen, weigh_visits, task.epochs
        self.pace = max(1.0, self.LONG_RUN / max(task.epochs, self.SHORT_RUN))
        self.probes = Memorisation(labels, classes) if probe else None
        self.start_epoch(0)
        self.neighbour_weight = task.neighbours.weight
        if self.neighbour_weight > 0:
            votes = torch.zeros(len(labels), classes, device=labels.device)
            self.register_buffer("votes", votes)

    def start_epoch(self, epoch: int) -> None:
        start, end = self.SOFTENS
        rise = (epoch / self.epochs - start) / (end - start)
        self.early = 1 - min(max(rise, 0.0), 1.0)  # u
        sharpness = self.early if self.sharpen else 0.0
        self.temperature = self.EVIDENCE_TEMPERATURE**sharpness
        self.target_temperature = self.TARGET_TEMPERATURE**sharpness

    def observe(self, index: Tensor, probs: Tensor) -> None:
        if self.probes is not None:
            self.probes.observe(index, probs[0])
        memorised = self._memorised()
        aligned = self._align(probs)
        evidence = sharpened(aligned[0], self.temperature)  # (2)
        evidence = self._condition_on_label(index, evidence, probs[0], memorised)
        if self.neighbour_weight > 0:
            evidence = evidence + self.neighbour_weight * self.votes[index]
        self.posterior.observe(index, evidence, self._weigh(aligned, memorised))

    def never_learned(self) -> Tensor | None:
        return None if self.probes is None else self.probes.learned == 0

    def memorisation(self) -> Tensor | None:
        return None if self.probes is None else self.probes()

    def _memorised(self) -> Tensor | None:
        """(*): r (), or None without probes."""
        memorisation = self.memorisation()
        if memorisation is None:
            return None
        return self.early * (self.MEMORISED * memorisation).clamp_max(1) ** 2

    def _align(self, probs: Tensor) -> Tensor:
        """(1): predictions (V,B,K) of all views, aligned by the first one."""
        if self.alignment is None:
            return probs
        self.alignment.observe(probs[0])
        return self.alignment(probs)

    def _condition_on_label(
        self,
        index: Tensor,
        evidence: Tensor,
        prediction: Tensor,
        memorised: Tensor | None = None,
    ) -> Tensor:
        """(3): evidence (B,K), times what the given labels say; `prediction` (B,K) as the network has it."""
        if self.label_noise is None:
            return evidence
        # as the others say: what this visit adds to the likelihood is no proof of itself
        likelihood = self.label_noise.likelihood(index)
        conditioned = evidence * likelihood
        conditioned = conditioned / conditioned.sum(dim=1, keepdim=True)
        self.label_noise.observe(index, prediction.lerp(conditioned, self.EVIDENCE_SHARE))
        if memorised is None:
            return conditioned
        evidence = evidence * likelihood ** (1 - memorised)
        return evidence / evidence.sum(dim=1, keepdim=True)

    def _weigh(self, aligned: Tensor, memorised: Tensor | None) -> Tensor | None:
        """(4): w (B,) from the aligned predictions (V,B,K); None: whole visits."""
        if not self.weigh_visits:
            return None
        views = sharpened(aligned, self.AGREEMENT_TEMPERATURE)
        agreement = (views[0] * views[-1]).sum(dim=1)
        if memorised is not None:
            agreement = agreement + memorised * (1 - agreement)
        return self.pace * agreement

    def observe_neighbours(self, votes: Tensor) -> None:
        if self.neighbour_weight > 0:
            self.votes.copy_(votes)

    def targets(self, index: Tensor) -> Tensor:
        targets = sharpened(self.posterior.mean(index), self.target_temperature)  # (6)
        return targets if self.probes is None else targets * self.probes.learned[index][:, None]

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
