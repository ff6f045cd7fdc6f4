"""Optimiser, learning-rate schedule and the moving average of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from noisybsd.models.networks import Network
from noisybsd.settings import OptimizerConfig


def build_optimizer(modules: Sequence[nn.Module], config: OptimizerConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW, of what `modules` learn; fused on a GPU.

    Each parameter group has a `scale`, by which the learning rate of a step is multiplied: 1, and
    `norm_bias_lr` for the biases of batch norms, whose weight decay is divided by it, so that both
    groups shrink at the same pace.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    fused = parameters[0].is_cuda
    groups = [{"params": parameters, "scale": 1.0}]
    if config.norm_bias_lr != 1:
        biases = _norm_biases(modules)
        chosen = {id(p) for p in biases}
        groups = [
            {"params": [p for p in parameters if id(p) not in chosen], "scale": 1.0},
            {
                "params": biases,
                "scale": config.norm_bias_lr,
                "weight_decay": config.weight_decay / config.norm_bias_lr,
            },
        ]
    if config.name == "adamw":
        return torch.optim.AdamW(
            groups,
            lr=config.lr,
            betas=(config.momentum, 0.999),
            weight_decay=config.weight_decay,
            fused=fused,
        )
    return torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
        fused=fused,
    )


def _norm_biases(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    norms = (part for module in modules for part in module.modules())
    return [
        part.bias
        for part in norms
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.bias is not None
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of the next step, times each group's own `scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


def learning_rate(
    step: int, total_steps: int, warmup_steps: float, config: OptimizerConfig
) -> float:
    """Linear warm-up to `lr`, then a cosine or a line down to `min_lr`; a function of the step alone."""
    if step < warmup_steps:
        return config.lr * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1.0, total_steps - warmup_steps)
    left = 1 - progress
    if config.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_lr + (config.lr - config.min_lr) * left


class WeightEma(nn.Module):
    """Exponential moving average of the parameters and buffers of `network`, which it follows.

    torch's AveragedModel asks a device tensor at every step whether it is the first one, which makes
    the host wait for the GPU; the step number is known here.
    """

    def __init__(self, network: Network, decay: float):
        super().__init__()
        self.decay = decay
        self.network: Network = copy.deepcopy(network).requires_grad_(False)
        self._mine, self._theirs = _floating_point(self.network), _floating_point(network)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average in the weights after step number `step`; early steps count more (1/10 at first)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        mine, theirs = ([held[name] for held, name in each] for each in (self._mine, self._theirs))
        torch._foreach_lerp_(mine, theirs, 1 - decay)


def _floating_point(network: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """The floating-point weights and statistics of a network: the dictionary and name of each.

    The walk through the modules takes longer than an update, so it is made once. The tensors themselves
    would not last, as `Module.to` puts new ones in the place of buffers.
    """
    # batch norm's integer step counter takes no part in evaluation
    return [
        (held, name)
        for module in network.modules()
        for held in (module._parameters, module._buffers)
        for name, tensor in held.items()
        if tensor is not None and tensor.is_floating_point()
    ]
