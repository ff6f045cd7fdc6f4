"""Plain supervision: the given labels as targets, and the cross-entropy to targets."""

from __future__ import annotations

from torch import Tensor

from noisybsd.methods.parts import Batch, Loss, TargetRule, Task, cross_entropy, one_hot


class LabelTargets(TargetRule):
    """The given labels, one-hot: ordinary supervised learning."""

    mixup = "instead"
    labels: Tensor

    def __init__(self, task: Task):
        super().__init__()
        self.num_classes = task.num_classes
        self.register_buffer("labels", task.labels, persistent=False)

    def targets(self, index: Tensor) -> Tensor:
        return one_hot(self.labels[index], self.num_classes)


class CrossEntropy(Loss):
    """Cross-entropy to the targets, mean over views and samples: -sum_k y_k log p_k."""

    mixup = "instead"

    def __init__(self, task: Task):
        super().__init__()

    def forward(self, batch: Batch) -> Tensor:
        return cross_entropy(batch.logits, batch.targets)
