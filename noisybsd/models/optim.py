"""Optimiser, learning-rate schedule and the moving average of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from noisybsd.models.networks import Network
from noisybsd.settings import OptimizerConfig


def build_optimizer(
    parameters: Sequence[nn.Parameter], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW; fused on a GPU."""
    fused = parameters[0].is_cuda
    if config.name == "adamw":
        return torch.optim.AdamW(
            parameters,
            lr=config.lr,
            betas=(config.momentum, 0.999),
            weight_decay=config.weight_decay,
            fused=fused,
        )
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
        fused=fused,
    )


def learning_rate(
    step: int, total_steps: int, warmup_steps: float, config: OptimizerConfig
) -> float:
    """Linear warm-up to `lr`, then a cosine down to `min_lr`; a function of the step alone."""
    if step < warmup_steps:
        return config.lr * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1.0, total_steps - warmup_steps)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


class WeightEma(nn.Module):
    """Exponential moving average of a network's parameters and buffers.

    torch's AveragedModel asks a device tensor at every step whether it is the first one, which makes
    the host wait for the GPU; the step number is known here.
    """

    def __init__(self, network: Network, decay: float):
        super().__init__()
        self.decay = decay
        self.network: Network = copy.deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def update(self, network: Network, step: int) -> None:
        """Average in the weights after step number `step`; early steps count more (1/10 at first)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        mine, theirs = self._tensors(self.network), self._tensors(network)
        torch._foreach_lerp_(mine, theirs, 1 - decay)

    @staticmethod
    def _tensors(network: Network) -> list[Tensor]:
        # batch norm's integer step counter takes no part in evaluation
        return [t for t in network.state_dict(keep_vars=True).values() if t.is_floating_point()]
