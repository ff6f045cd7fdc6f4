"""Small runs, and what watches them."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# 4 steps an epoch
TINY = (
    "recipe=digits_sym40",
    "method=bsd_plus",
    "device=cpu",
    "data.limit=128",
    "batch_size=32",
    "epochs=3",
    "network.width=4",
    "network.embedding_dim=8",
    "neighbours.k=5",
    "neighbours.start_epoch=1",
    "neighbours.engine=torch",
    "tracking.wandb=disabled",
    "run.checkpoint_seconds=0",
)
# papers' schedules are shares of the run: let them begin in its second epoch; and no network is sure by then
SOONER = {
    "selc": ["options.warmup=0.5"],
    "tcl": ["options.warmup=0.5"],
    "ssr": ["options.theta_r=0.15"],
    "ssr_plus": ["options.theta_r=0.15"],
}


class NoTracker:
    def step(self) -> None:
        pass


class NoReadback(TorchDispatchMode):
    """Fails on what waits for the device or makes a shape depend on values."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.FORBIDDEN, f"{func} reads back"
        if name in ("index", "index_put", "index_put_"):
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{func} by a mask reads back"
        return func(*args, **(kwargs or {}))
