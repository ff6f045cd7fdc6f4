"""What a run leaves, for comparison: two runs are the same if nothing but times differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from noisybsd.runs.checkpoint import load_checkpoint

Files = dict[str, Any]

# all that may differ between an undisturbed run and one that was interrupted: times; where it is and
# whom it tells; the commit of a checkout in which somebody works meanwhile
MAY_DIFFER = {
    *("seconds", "train_seconds", "images_per_second", "waited_seconds"),
    *("run", "tracking", "wandb_id"),
    "git_commit",
}


def strict(text: str) -> Any:
    """Parse JSON; NaN and Infinity are not JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {text}")

    return json.loads(text, parse_constant=refuse)


def rows(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [strict(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def comparable(value: Any) -> Any:
    """Tensors as their bits; what may differ left out."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().view(-1).numpy().tobytes()
    if isinstance(value, dict):
        return {k: comparable(v) for k, v in value.items() if k not in MAY_DIFFER}
    return [comparable(v) for v in value] if isinstance(value, list | tuple) else value


def outcome(run: Path) -> Files:
    """All that a finished run leaves: weights, EMA, posterior, bank, monitor, …, metrics, results."""
    assert not list(run.glob(".*.tmp"))
    files = {
        "checkpoint.pt": load_checkpoint(run / "checkpoint.pt"),
        "metrics.jsonl": rows(run),
        "results.json": strict((run / "results.json").read_text("utf-8")),
    }
    return comparable(files)


def modules(run: Path) -> Files:
    """Weights and per-sample state alone."""
    return comparable(load_checkpoint(run / "checkpoint.pt")["modules"])


def assert_same(actual: Any, expected: Any, path: str = "") -> None:
    """Name what differs, instead of printing two checkpoints."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        assert actual.keys() == expected.keys(), path
        for key in expected:
            assert_same(actual[key], expected[key], f"{path}/{key}")
    elif actual != expected:
        raise AssertionError(f"{path} differs")
