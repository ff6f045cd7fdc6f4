"""Bayesian self-distillation for a training loop of one's own: `BSD`.

Dimensions: N training samples, K classes, B batch, V views.
"""

from __future__ import annotations

import hashlib
import math
import numbers
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from noisybsd import distributed
from noisybsd.errors import UserError, brief
from noisybsd.methods.bsd import PosteriorTargets
from noisybsd.methods.parts import Task
from noisybsd.settings import NeighboursConfig


class OfLabels(nn.Module):
    """A module whose state belongs to the labels that it was made with, and has the epoch."""

    epoch: int

    def __init__(self, labels_or_votes: Any):
        super().__init__()
        self._labels_sha256 = _sha256(labels_or_votes)

    def start_epoch(self, epoch: int) -> None:
        raise NotImplementedError

    def get_extra_state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "labels_sha256": self._labels_sha256}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if state["labels_sha256"] != self._labels_sha256:
            raise UserError("state_dict: belongs to other labels than these")
        self.start_epoch(state["epoch"])


class BSD(OfLabels):
    """A belief over the class of every training sample, and the targets that follow from it.

    The network learns the targets by `noisybsd.cross_entropy`. The method has one loop and no further
    network. `BSD.paper` is the recursion of arXiv 2512.24162, without the steps that noisybsd adds.

    The module has no parameters. Its state is in buffers: they follow `.to(device)`, and `state_dict` has all
    that training changed. The labels are not in it; a state of other labels is refused. Keep the module in
    float32: under autocast, logits of any floating type are made float32.

    On several processes (torch.distributed) each `step` gathers index and logits of all processes, so that
    all hold the same beliefs. All must call `step` equally often with equally many samples: use
    `DistributedSampler(…, drop_last=True)`, which repeats no sample.

    Args:
        labels_or_votes: the given labels, (N,) integers; or (N,K) numbers, how often each sample was
            given each class, or with which probability.
        num_classes: K, at least 2.
        epochs: how many epochs the whole training has; targets soften in its second half.
        prior_strength: c, the pseudo-count of a given label in the prior.
        discount: gamma in (0,1], what a visit leaves of older evidence.
        align, sharpen, label_evidence, weigh_visits: switches of four steps, see docs/method.md.
        probe: the switch of the fifth. One in twenty samples of each class, of many samples about 1,000 in
            all, is never learned, to notice when the network memorises labels. Their targets are zeros, so
            that their cross-entropy is zero.
        top_k: keep so many classes of each sample apart, to save memory where K is large; None: all.
        gather: False: take the batch of this process alone, though there are others.

    Raises:
        ValueError: names the argument, the value and what is valid.

    Example:
        >>> beliefs = BSD([0, 1, 1], 2, epochs=10)
        >>> targets = beliefs.step(torch.tensor([0, 2]), torch.tensor([[3.0, 0.0], [1.0, 0.0]]))
        >>> targets.shape
        torch.Size([2, 2])
        >>> beliefs.suggested()
        tensor([0, 1, 1])
    """

    def __init__(
        self,
        labels_or_votes: Any,
        num_classes: int,
        *,
        epochs: int,
        prior_strength: float = 8.0,
        discount: float = 0.8,
        align: bool = True,
        sharpen: bool = True,
        label_evidence: bool = True,
        weigh_visits: bool = True,
        probe: bool = True,
        top_k: int | None = None,
        gather: bool = True,
    ):
        super().__init__(labels_or_votes)
        if not is_number(prior_strength) or not 0 <= prior_strength < math.inf:
            raise UserError(f"prior_strength: got {brief(prior_strength)}; valid: a number from 0")
        switches = {
            "align": align,
            "sharpen": sharpen,
            "label_evidence": label_evidence,
            "weigh_visits": weigh_visits,
            "probe": probe,
            "gather": gather,
        }
        for name, switch in switches.items():
            if not isinstance(switch, bool):
                raise UserError(f"{name}: got {brief(switch)}; valid: True or False")
        if not is_number(discount) or not 0 < discount <= 1:
            raise UserError(f"discount: got {brief(discount)}; valid: a number above 0, at most 1")
        if top_k is not None:
            whole_number(top_k, "top_k", 2)
        self.rule = PosteriorTargets(
            task_of(labels_or_votes, num_classes, epochs),
            prior_strength=prior_strength,
            discount=discount,
            align=align,
            sharpen=sharpen,
            label_evidence=label_evidence,
            weigh_visits=weigh_visits,
            probe=probe,
            top_k=top_k,
        )
        self.num_classes, self.epochs, self.gather = num_classes, epochs, gather
        self.epoch = 0

    @classmethod
    def paper(
        cls,
        labels_or_votes: Any,
        num_classes: int,
        *,
        prior_strength: float = 8.0,
        discount: float = 0.8,
        top_k: int | None = None,
        gather: bool = True,
    ) -> BSD:
        """The paper's recursion: a prediction is evidence as it is, the posterior mean is the target.

        The paper's values of `prior_strength` and `discount` are not known; these are ours.
        """
        return cls(
            labels_or_votes,
            num_classes,
            epochs=1,
            prior_strength=prior_strength,
            discount=discount,
            align=False,
            sharpen=False,
            label_evidence=False,
            weigh_visits=False,
            probe=False,
            top_k=top_k,
            gather=gather,
        )

    def start_epoch(self, epoch: int) -> None:
        """Say that epoch number `epoch`, from 0, begins. Targets are as sharp as this says."""
        self.epoch = whole_number(epoch, "epoch", 0)
        self.rule.start_epoch(self.epoch)

    @torch.no_grad()
    def step(self, index: Tensor, logits: Tensor) -> Tensor:
        """See the network's predictions for some samples, and say what these samples' targets are now.

        An index on the CPU, as a data loader gives it, is checked. One on a GPU is not, since a check would
        wait for the GPU: there an index out of range is CUDA's error, and of a sample that is in a batch
        twice one visit counts.

        Args:
            index: (B,) integers, the samples' positions among the labels; none twice.
            logits: (B,K), or (V,B,K) of several views of the same samples: evidence comes from the first
                view, and how much a visit counts from the agreement of the first and the last. What is not
                a number, as in a step that a GradScaler skips, counts as 0.

        Returns:
            (B,K) float32, without gradient, on the device of the beliefs. Rows sum to one, and those of
            probes to zero.

        Raises:
            ValueError: names the argument, the value and what is valid.
        """
        device = self._device()
        logits = checked_logits(logits, self.num_classes, device).nan_to_num()
        index = checked_index(index, logits, self.samples, device)
        with torch.autocast(device.type, enabled=False):
            if not self.gather or distributed.world_size() == 1:
                return self.rule.visit(index, logits)
            targets = self.rule.visit(
                distributed.gather(index), distributed.gather(logits.contiguous(), dim=1)
            )
        return targets[distributed.rank() * len(index) :][: len(index)]

    @property
    def samples(self) -> int:
        """N."""
        return len(next(self.rule.posterior.buffers()))

    def mean(self, index: Tensor | None = None) -> Tensor:
        """The belief, (B,K) of the samples `index` (B,), or (N,K) of all; float32, rows sum to one.

        Raises:
            ValueError: names the argument, the value and what is valid.
        """
        if index is not None:
            index = checked_rows(index, self.samples).to(self._device())
        return self.rule.posterior.mean(index)

    def suggested(self) -> Tensor:
        """The most probable class of each sample, (N,) int64."""
        return self.rule.posterior.suggested()

    def memorisation(self) -> Tensor | None:
        """How far the network has memorised the given labels, () from 0 to 1 (all); None without probes."""
        return self.rule.memorisation()

    def strength(self) -> Tensor:
        """The pseudo-count behind each sample's belief, (N,) float32."""
        return self.rule.posterior.strength()

    def extra_repr(self) -> str:
        return f"{self.samples} samples, {self.num_classes} classes, {self.epochs} epochs"

    def _device(self) -> torch.device:
        floating = [buffer.dtype for buffer in self.rule.buffers() if buffer.is_floating_point()]
        if any(dtype != torch.float32 for dtype in floating):
            raise UserError(
                f"beliefs: are in {floating[0]}; keep them in float32, outside of a module that you convert"
            )
        return next(self.rule.posterior.buffers()).device


def task_of(
    labels_or_votes: Any, num_classes: int, epochs: int, views: int = 1, embedding_dim: int = 128
) -> Task:
    """What target rules and losses are told, from labels (N,) or votes (N,K) of a caller.

    Raises:
        UserError: names the argument, the value and what is valid.
    """
    num_classes = whole_number(num_classes, "num_classes", 2)
    given, votes = as_tensor(labels_or_votes, "labels_or_votes"), None
    if given.ndim == 2:
        votes = _checked_votes(given, num_classes)
        given = votes.argmax(dim=1)
    return Task(
        _checked_labels(given, num_classes),
        num_classes,
        epochs=whole_number(epochs, "epochs", 1),
        views=views,
        embedding_dim=embedding_dim,
        balanced=None,
        neighbours=NeighboursConfig(k=0),
        votes=votes,
    )


def whole_number(value: Any, argument: str, least: int) -> int:
    """An int, as Python and NumPy have them, from `least`; raises UserError."""
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise UserError(f"{argument}: got {brief(value)}; valid: a whole number from {least}")
    return number


def is_number(value: Any) -> bool:
    """Whether it is a number of Python or NumPy; True is none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def as_tensor(values: Any, argument: str) -> Tensor:
    """Numbers as a tensor: a tensor, an array, a list, or a column of pandas.

    Raises:
        UserError: they are no numbers, or a mask hides some.
    """
    refuse_masked(values, argument)
    if isinstance(values, Tensor):
        return comparable(values.detach())
    try:
        # a copy: pandas gives arrays that may not be written to
        return comparable(
            torch.tensor(values.to_numpy() if hasattr(values, "to_numpy") else values)
        )
    except (ValueError, TypeError, RuntimeError, OverflowError):
        raise UserError(
            f"{argument}: got {brief(values, 80)}, which is no array of numbers"
        ) from None


def comparable(values: Tensor) -> Tensor:
    """The same numbers, of a type that torch can compare: wide unsigned integers become int64."""
    wide = (torch.uint16, torch.uint32, torch.uint64)
    return values.long() if values.dtype in wide else values


def refuse_masked(values: Any, argument: str) -> None:
    """Refuse an array of which a mask hides something, since torch would read what is hidden."""
    if np.ma.is_masked(values):
        raise UserError(
            f"{argument}: got a masked array, in which {np.ma.count_masked(values)} values are hidden; "
            "valid: an array without a mask"
        )


def _checked_labels(labels: Tensor, num_classes: int) -> Tensor:
    integer = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.ndim != 1 or not integer or not len(labels):
        raise UserError(
            f"labels_or_votes: got {labels.dtype} of shape {tuple(labels.shape)}; valid: integers of shape "
            f"(N,), or votes of shape (N, {num_classes})"
        )
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        i = int(wrong[0])
        raise UserError(
            f"labels_or_votes: label {int(labels[i])} of sample {i} is out of range; valid: 0 to "
            f"{num_classes - 1} ({len(wrong)} such)"
        )
    return labels.long()


def _checked_votes(votes: Tensor, num_classes: int) -> Tensor:
    if votes.shape[1] != num_classes or not len(votes):
        raise UserError(
            f"labels_or_votes: got votes of shape {tuple(votes.shape)}; valid: (N, {num_classes})"
        )
    votes = votes.float()
    bad = ~(votes.isfinite() & (votes >= 0)).all(dim=1) | (votes.sum(dim=1) == 0)
    if bad.any():
        i = int(bad.nonzero()[0])
        raise UserError(
            f"labels_or_votes: sample {i} has the votes {brief(votes[i].tolist(), 60)}; valid: numbers from "
            f"0, not all of them 0 ({int(bad.sum())} such)"
        )
    return votes


def checked_logits(logits: Tensor, num_classes: int, device: torch.device) -> Tensor:
    """Logits (B,K) or (V,B,K) of any floating type as (V,B,K) float32, without gradient."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"logits: got {got}; valid: a tensor of floating-point numbers")
    if logits.ndim not in (2, 3) or logits.shape[-1] != num_classes or not logits.numel():
        raise UserError(
            f"logits: got shape {tuple(logits.shape)}; valid: (B, {num_classes}), or (V, B, {num_classes}) "
            "of V views"
        )
    if logits.device != device:
        raise UserError(
            f"logits: are on {logits.device}, the beliefs on {device}; move the beliefs with .to(device)"
        )
    logits = logits.detach().float()
    return logits if logits.ndim == 3 else logits[None]


def checked_index(index: Tensor, logits: Tensor, samples: int, device: torch.device) -> Tensor:
    """An index (B,) as int64 on `device`; its values are checked where no GPU has to be waited for."""
    count = logits.shape[1]
    index = checked_rows(index, samples)
    if index.shape != (count,):
        raise UserError(
            f"index: got shape {tuple(index.shape)}; valid: ({count},), one for each row of the logits. "
            "Those of V views are (V, B, K), and not (V*B, K)"
        )
    if index.device.type == "cpu" and not torch.compiler.is_compiling():
        values, counts = index.unique(return_counts=True)
        if len(values) < count:
            raise UserError(
                f"index: {int(values[counts > 1][0])} is in the step twice; valid: each sample once"
            )
    return index.to(device, non_blocking=True)


def checked_rows(index: Tensor, samples: int) -> Tensor:
    """An index as int64; its values are checked where no GPU has to be waited for."""
    if not isinstance(index, Tensor) or index.is_floating_point() or index.dtype == torch.bool:
        got = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise UserError(f"index: got {got}; valid: a tensor of integers")
    if index.ndim != 1:
        raise UserError(f"index: got shape {tuple(index.shape)}; valid: (B,), one for each sample")
    index = index.long()
    if index.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = index[(index < 0) | (index >= samples)]
        if len(wrong):
            raise UserError(f"index: got {int(wrong[0])}; valid: 0 to {samples - 1}")
    return index


def _sha256(values: Any) -> str:
    given = as_tensor(values, "labels_or_votes").cpu()
    kept = given.float() if given.ndim == 2 else given.long()
    return hashlib.sha256(kept.numpy().tobytes()).hexdigest()
