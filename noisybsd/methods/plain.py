"""Plain supervision: the given labels as targets, and the cross-entropy to targets."""

from __future__ import annotations

from torch import Tensor

from noisybsd.methods.parts import Batch, GivenTargets, Loss, TargetRule, Task, cross_entropy


class LabelTargets(TargetRule):
    """The given labels, one-hot, or the mean of several: ordinary supervised learning."""

    mixup = "instead"

    def __init__(self, task: Task):
        super().__init__()
        self.given = GivenTargets(task)

    def targets(self, index: Tensor) -> Tensor:
        return self.given(index)


class CrossEntropy(Loss):
    """Cross-entropy to the targets, mean over views and samples: -sum_k y_k log p_k."""

    mixup = "instead"
    takes_weights = True

    def __init__(self, task: Task):
        super().__init__()

    def forward(self, batch: Batch) -> Tensor:
        return cross_entropy(batch.logits, batch.targets)
