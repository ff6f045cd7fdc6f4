"""A GPU that is not there: torch's fake tensors say what a step would do on one, and compute nothing."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from noisybsd.data import residence
from noisybsd.data.dataset import Dataset
from noisybsd.data.splits import Split
from noisybsd.engine import trainer
from noisybsd.methods import bsd
from noisybsd.methods.tcl import TwinContrastive
from noisybsd.models import optim

GPU = torch.device("cuda", 0)


def random_images(samples: int, classes: int, size: int = 8) -> Dataset:
    shape = (samples, 3, size, size)
    images = torch.randint(256, shape, dtype=torch.uint8)
    labels = np.arange(samples) % classes
    split = Split(images, labels, None)
    names = tuple(map(str, range(classes)))
    statistics = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    return Dataset("random", names, split, split, size, 3, **statistics, sha256="", notes={})


@contextmanager
def fake_gpu(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within it a tensor on `GPU` has a shape, a dtype and a device, and no values."""
    mode = FakeTensorMode()
    # what asks for a GPU's driver, what reads the GPU before a run or an epoch, which it may, and what
    # fake tensors do in another way
    patch.setattr(residence, "free_memory", lambda device: 2**40)
    patch.setattr(trainer, "seed_generators", lambda seed, device: None)
    patch.setattr(bsd, "class_shares", _equal_shares)
    patch.setattr(TwinContrastive, "start_epoch", _start_epoch_without_a_fit)
    patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    patch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    patch.setattr(nn.Module, "_apply", _apply)
    patch.setattr(Tensor, "backward", _backward)
    deepcopy = lambda content: copy.deepcopy(content, {id(mode): mode})  # noqa: E731
    patch.setattr(optim, "copy", SimpleNamespace(deepcopy=deepcopy))
    with mode:
        yield


class Watch(TorchDispatchMode):
    """Fails on what makes a step on a GPU wait: reading it, or copying to it; and on a wrong device.

    Args:
        copies: how many tensors may be copied to the GPU.

    Attributes:
        kernels: how often each operation was called that launches a kernel, or a few.
        copied: how many tensors were copied to the GPU.
    """

    READS = (
        *("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"),
        *("_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave"),
    )
    NO_KERNEL = ("empty", "empty_strided", "empty_like", "new_empty", "detach", "scalar_tensor")
    WITHOUT_FAKES = ("_fused_sgd_", "_fused_adamw_", "_sample_dirichlet")

    def __init__(self, copies: int = 0):
        super().__init__()
        self.copies, self.copied = copies, 0
        self.kernels: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "prim":  # a tensor's device, its layout
            return func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        assert name not in self.READS, f"{func} reads the GPU"
        if name in ("index", "index_put", "index_put_"):
            kinds = [i.dtype for i in args[1] if i is not None]
            assert torch.bool not in kinds and torch.uint8 not in kinds, f"{func} reads its mask"
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if name in self.WITHOUT_FAKES:
            assert {t.device for t in given} == {GPU}, f"{func} of tensors elsewhere"
            made: Any = None if name.startswith("_fused") else torch.empty_like(given[0])
        else:
            made = func(*args, **(kwargs or {}))
        results = [t for t in tree_leaves(made) if isinstance(t, Tensor)]
        on_gpu = any(t.device == GPU for t in given), any(t.device == GPU for t in results)
        # a number that is a kernel's argument is a tensor of the host without dimensions
        on_host = [any(t.is_cpu and t.ndim > 0 for t in each) for each in (given, results)]
        assert not (on_gpu[0] and any(t.is_cpu for t in results)), f"{func} copies to the host"
        if on_host[0] and any(on_gpu):
            self.copied += 1
            assert self.copied <= self.copies, f"{func} copies from the host"
        elif self.copies == 0:
            assert not any(on_host), f"{func} is the host's work"
        if any(on_gpu) and name not in self.NO_KERNEL and not is_view(func):
            self.kernels[name] += 1
        return made


def is_view(func: Any) -> bool:
    """Whether an operation returns another look at its input, and does nothing on the device."""
    returned = [r.alias_info for r in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in returned)


def _equal_shares(labels: Tensor, num_classes: int, balanced: int | None) -> tuple[Tensor, int]:
    return torch.full((num_classes,), 1 / num_classes, device=labels.device), 320 * num_classes


def _start_epoch_without_a_fit(self: TwinContrastive, epoch: int) -> None:
    self.warming_up = epoch < self.warmup_epochs


def _apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Module._apply, with new parameters: torch cannot exchange the content of fake ones."""
    for child in self.children():
        child._apply(fn)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            new = nn.Parameter(fn(parameter.detach()), parameter.requires_grad)
            self._parameters[name] = new
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self


def _backward(loss: Tensor) -> None:
    """Tensor.backward in Python: torch's own engine starts a thread for each GPU, and there is none."""
    order = _from_the_loss(loss.grad_fn)
    arrived: dict[Any, dict[int, Tensor]] = {}

    def send(node: Any, slot: int, gradient: Tensor | None) -> None:
        if node is None or gradient is None:
            return
        wanted = node._input_metadata[slot]  # the engine undoes broadcasting and autocast
        gradient = gradient.sum_to_size(wanted.shape).to(wanted.dtype)
        slots = arrived.setdefault(node, {})
        slots[slot] = gradient if slot not in slots else slots[slot] + gradient

    with torch.no_grad():
        send(loss.grad_fn, 0, torch.ones_like(loss))
        for node in order:
            slots = arrived.pop(node, None)
            if slots is None:
                continue
            if hasattr(node, "variable"):  # a leaf
                leaf, gradient = node.variable, slots[0]
                for hook in (leaf._backward_hooks or {}).values():
                    gradient = changed if (changed := hook(gradient)) is not None else gradient
                leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
                continue
            outputs = node(*(slots.get(slot) for slot in range(len(node._input_metadata))))
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            for (next_node, slot), gradient in zip(node.next_functions, outputs, strict=True):
                send(next_node, slot, gradient)


def _from_the_loss(root: Any) -> list[Any]:
    """The nodes of the graph, each before those that it sends gradients to."""
    done: list[Any] = []
    seen, stack = {root}, [(root, iter(root.next_functions))]
    while stack:
        node, others = stack[-1]
        for other, _ in others:
            if other is not None and other not in seen:
                seen.add(other)
                stack.append((other, iter(other.next_functions)))
                break
        else:
            done.append(node)
            stack.pop()
    return done[::-1]
