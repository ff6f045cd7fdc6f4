"""Training on many processes: the process group, and the few exchanges that the rest needs.

`torchrun --nproc-per-node W -m noisybsd.train …` starts W processes, the ranks. Each passes its share of
a batch through the network. Then the ranks exchange logits and embeddings (`gather`), and every one of
them computes the loss over the joint batch and keeps the state of all samples, as a single process would.
So losses, target rules, metrics and checkpoints know nothing of ranks, and are what they are without.

Without a process group, nothing here does anything.

Dimensions: W ranks, b images of one rank, B = W b images of the joint batch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from noisybsd.errors import UserError, brief, first_line

log = logging.getLogger("noisybsd")

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)  # the longest that a rank waits for another in an exchange
_DAYS = timedelta(days=7)  # for a download, which another rank sees to
_CHUNK = 2**30  # bytes of one broadcast

_store: dist.Store | None = None  # a few words that all ranks share; torchrun's own


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this rank writes the files and talks to the user."""
    return rank() == 0


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes that torchrun has started, if it has.

    An error that many ranks run into is told by one of them: the others end silently, with the same
    exit code. So do those that fail because another one is gone.

    Raises:
        UserError: the environment names other processes, but not how to reach them.
    """
    global _store
    if "RANK" not in os.environ or _number("WORLD_SIZE", 1, default=1) == 1:
        yield
        return
    missing = {"LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} - os.environ.keys()
    if missing:
        raise UserError(
            f"RANK and WORLD_SIZE are set, but not {', '.join(sorted(missing))}: {_REMEDY}"
        )
    size, here = _number("WORLD_SIZE", 1), _number("LOCAL_WORLD_SIZE", 1)
    for name, below in (("RANK", size), ("LOCAL_RANK", here), ("MASTER_PORT", 2**16)):
        _number(name, 0, below - 1)
    try:
        _store, number, size = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, store=_store, rank=number, world_size=size, timeout=TIMEOUT
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"MASTER_ADDR={os.environ['MASTER_ADDR']}, MASTER_PORT={os.environ['MASTER_PORT']}: the other "
            f"processes cannot be reached there ({first_line(error)[:200]}): {_REMEDY}"
        ) from None
    if number > 0:
        log.setLevel(logging.ERROR)
    try:
        yield
    except (UserError, KeyboardInterrupt) as error:
        if _tells():
            _leave_for_torchrun(str(error))
            raise
        raise SystemExit(2 if isinstance(error, UserError) else 130) from None
    except RuntimeError as error:
        if not _is_loss_of_a_rank(error):
            raise
        if _tells():
            print(
                f"error: process {number} of {size}: another process of this run is gone, or has not "
                f"answered for {TIMEOUT.total_seconds():.0f} s ({first_line(error)[:200]})\n"
                "error: what ended it is said elsewhere, if it could say so; the same command continues "
                "the run from its last checkpoint",
                file=sys.stderr,
            )
        raise SystemExit(1) from None
    finally:
        dist.destroy_process_group()
        _store = None


_REMEDY = (
    "start many processes with torchrun, e.g. torchrun --nproc-per-node 8 -m noisybsd.train …, or unset RANK "
    "and WORLD_SIZE"
)


def _number(name: str, least: int, most: int | None = None, *, default: int | None = None) -> int:
    """The number in an environment variable that torchrun sets.

    Raises:
        UserError: it is no number, or out of range.
    """
    text = os.environ.get(name, str(default))
    valid = f"at least {least}" if most is None else f"{least} to {most}"
    if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= (most or int(text)):
        raise UserError(
            f"environment variable {name}: got {brief(text)}; valid: a number, {valid}. {_REMEDY}"
        )
    return int(text)


def _tells() -> bool:
    """Whether this rank is the one that tells the user of its error: the first that asks is."""
    assert _store is not None
    try:
        return _store.add("told", 1) == 1
    except RuntimeError:  # the process that kept the store is gone
        return True


def _leave_for_torchrun(text: str) -> None:
    """Torchrun ends with a summary of its own, and repeats there what it finds in this file."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        told = {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps({"message": told}))


def _is_loss_of_a_rank(error: RuntimeError) -> bool:
    signs = ("Connection closed by peer", "Connection reset", "Broken pipe", "Timed out", "timeout")
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)


def own_device(device: torch.device) -> torch.device:
    """This rank's own GPU of its machine, where `device` is a GPU.

    Raises:
        UserError: the machine has fewer GPUs than ranks.
    """
    if world_size() == 1 or device.type != "cuda":
        return device
    here, present = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if here > present:
        raise UserError(
            f"torchrun --nproc-per-node={here}: more processes than GPUs on this machine, which has "
            f"{present}; use --nproc-per-node={present}, or device=cpu"
        )
    own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(own)
    return own


@contextlib.contextmanager
def one_first(what: str) -> Iterator[None]:
    """One process of each machine goes through the block before the others, which wait.

    For what is fetched or made once and then lies on disk. `what` names the block, which is entered
    once.
    """
    if world_size() == 1:
        yield
        return
    assert _store is not None
    done = f"{what} on {os.environ.get('GROUP_RANK', 0)}"
    if os.environ["LOCAL_RANK"] != "0":
        _store.wait([done], _DAYS)
        yield
        return
    try:
        yield
    finally:  # where it failed, the others run into the same error
        _store.set(done, "")


# --- exchanges; all ranks take part, in the same order -----------------------------------------------


class _Gather(torch.autograd.Function):
    """(b,...) of each rank -> (W,b,...). The gradient is that of the sum of all ranks' losses."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        joint = rows.new_empty(world_size() * len(rows), *rows.shape[1:])
        dist.all_gather_into_tensor(joint, rows.contiguous())
        return joint.unflatten(0, (world_size(), -1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[rank()]


def gather(x: Tensor, dim: int = 0) -> Tensor:
    """All ranks' `x`, of one shape, joined along `dim`, rank by rank. Does not wait for the device.

    Gradients flow back to every rank's own part, as of the sum of all ranks' losses. If all compute the
    same loss, that is W times its gradient, and the mean over ranks that DistributedDataParallel takes
    of parameters' gradients is the gradient of that loss.
    """
    return x if world_size() == 1 else torch.cat(_Gather.apply(x).unbind(), dim)


def gather_rows(rows: Tensor) -> Tensor:
    """All ranks' rows (n,...), one after the other; n may differ from rank to rank. No gradient."""
    if world_size() == 1:
        return rows
    counts = each(len(rows))
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    joint = _Gather.apply(padded)
    return torch.cat([part[:count] for part, count in zip(joint, counts, strict=True)])


def share(count: int) -> slice:
    """The part of `count` items in a row that is this rank's; `gather_rows` puts parts together."""
    return slice(count * rank() // world_size(), count * (rank() + 1) // world_size())


def each(value: T) -> list[T]:
    """The plain `value` of every rank, by rank."""
    values: list[Any] = [value] * world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def largest(value: int) -> int:
    """The largest of the ranks' values. The host waits for the others, not for the device."""
    if world_size() == 1:
        return value
    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def from_first(content: T) -> T:
    """What rank 0 gives, on every rank: plain values and CPU tensors, nested, in the same memory order."""
    if world_size() == 1:
        return content
    outline = [tree_map_only(Tensor, lambda t: t.to("meta"), content) if is_first() else None]
    dist.broadcast_object_list(outline)

    def exchange(tensor: Tensor) -> Tensor:
        # a fused optimiser wants its state in the order of the weights, channels_last
        dense = torch.empty_like(tensor, device="cpu")
        if not tensor.is_meta:  # a slice of a larger one has gaps
            dense = tensor if tensor.stride() == dense.stride() else dense.copy_(tensor)
        in_memory = dense.as_strided((dense.numel(),), (1,))
        for part in in_memory.view(torch.uint8).split(_CHUNK):
            dist.broadcast(part, src=0)
        return dense

    return tree_map_only(Tensor, exchange, content if is_first() else outline[0])


def copy_first_(x: Tensor) -> None:
    """Make `x` what it is on rank 0. Does not wait for the device."""
    if world_size() > 1:
        dist.broadcast(x, src=0)


def average_gradients_(parameters: Iterable[nn.Parameter]) -> None:
    """Average gradients over the ranks: of parameters outside the network, which `parallel` minds.

    All ranks compute the same loss, and these gradients are equal but for what a device's order of
    summation changes: this keeps the parameters from drifting apart by that.
    """
    if world_size() > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= world_size()


# --- the network --------------------------------------------------------------------------------------


def parallel(network: nn.Module) -> nn.Module:
    """The network as the step calls it: its gradients are averaged over the ranks as they come."""
    if world_size() == 1:
        return network
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`broadcast_buffers`", FutureWarning
        )  # no other name of old
        # batch norm's statistics are those of the joint batch, and so the same on every rank
        return DistributedDataParallel(
            network, broadcast_buffers=False, gradient_as_bucket_view=True
        )


def joint_batch_norm(network: nn.Module) -> None:
    """Let every batch norm normalise by the joint batch."""
    if world_size() == 1:
        return
    on_cpu = next(network.parameters()).device.type == "cpu"
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            # what it holds stays, and so do its names in a checkpoint
            module.__class__ = _JointBatchNorm if on_cpu else nn.SyncBatchNorm
            module.process_group = None  # type: ignore[assignment]  # that of all, for SyncBatchNorm


class _JointBatchNorm(_BatchNorm):
    """Batch norm over the joint batch on the CPU, where torch's SyncBatchNorm does not run."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """x (b,C,...) to the same shape."""
        if not self.training:
            return super().forward(input)
        x = input.float()
        var, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)  # (C,) each
        means, variances = _Gather.apply(torch.stack([mean, var])).unbind(1)  # (W,C) each
        # Var = E[Var of a rank] + Var[mean of a rank], since all have equally many values
        mean, var = means.mean(0), variances.mean(0) + means.var(0, correction=0)
        self._track(mean.detach(), var.detach(), world_size() * x.numel() // x.shape[1])
        scale = self.weight * (var + self.eps).rsqrt()
        shape = (-1, *[1] * (x.ndim - 2))
        y = (x - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * count / (count - 1), self.momentum)
