"""A saved run, read back: its configuration, and a trainer as its latest checkpoint has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noisybsd.config import Config, build_config, parse_overrides, read_record, refuse_earlier
from noisybsd.engine.data import run_dataset
from noisybsd.engine.trainer import Trainer
from noisybsd.errors import UserError, brief, shown
from noisybsd.files import kind_of, user_path
from noisybsd.runs.directory import MAY_DIFFER, as_long_as, differences, has_begun, load_run_state
from noisybsd.runs.environment import pick_device
from noisybsd.runs.records import check_config


def run_argument(arguments: list[str]) -> tuple[Path, list[str]]:
    """The directory that `run=DIR` names, and the other arguments.

    Raises:
        UserError: there is not exactly one.
    """
    runs = [a.removeprefix("run=") for a in arguments if a.startswith("run=")]
    if len(runs) != 1:
        given = ", ".join(map(brief, arguments))
        raise UserError(
            f"give one run=DIR, got {len(runs)}{f' in {given}' if given else ''}; --help says more"
        )
    return user_path(runs[0], "run"), [a for a in arguments if not a.startswith("run=")]


def load_run_config(directory: Path, overrides: list[str]) -> Config:
    """The configuration of the run in `directory`, with `key=value` overrides of where things are.

    Raises:
        UserError: not a run directory, or an override of something the run's result depends on.
    """
    record = directory / "config.yaml"
    if kind_of(record, f"run={directory}") is None:
        inside = ", ".join(shown(f"run={path}") for path in _runs_in(directory))
        raise UserError(
            f"run={directory}: not a run directory, it has no config.yaml"
            + (f"; the newest runs in it: {inside}" if inside else "")
        )
    for override in overrides:
        key = override.split("=", 1)[0]
        if key not in MAY_DIFFER:
            raise UserError(f"{key}: cannot differ from the run's; valid: {', '.join(MAY_DIFFER)}")
    recorded = read_record(record)
    check_config(recorded, str(record))
    return build_config(recorded, parse_overrides(overrides))


def _runs_in(folder: Path, most: int = 3) -> list[Path]:
    """The newest runs in a folder, or in folders in it, that have got as far as an epoch."""
    found = [
        record
        for pattern in ("*/config.yaml", "*/*/config.yaml")
        for record in folder.glob(pattern)
        if has_begun(record.parent)
    ]
    found.sort(key=lambda record: record.stat().st_mtime, reverse=True)
    return [record.parent for record in found[:most]]


def is_runs_data(directory: Path, config: Config) -> bool:
    """Whether the data that `config` names are those that the run in `directory` was trained on."""
    state = load_run_state(directory)
    try:
        dataset = run_dataset(config)
    except UserError:
        return False
    return state is not None and dataset.is_of(state["data_sha256"])


def load_state(directory: Path, config: Config) -> dict[str, Any] | None:
    """The latest checkpoint of the run in `directory`; None if it has not written one.

    Args:
        config: the run's, from `load_run_config`.

    Raises:
        UserError: no checkpoint can be used, or it is another run's.
    """
    state = load_run_state(directory)
    if state is None:
        return None
    checkpoint = directory / "checkpoint.pt"
    check_config(state["config"], f"{checkpoint}: config")
    refuse_earlier(state["config"], str(checkpoint))
    free = tuple(f"{key}: " for key in MAY_DIFFER)
    changed = differences(as_long_as(config, state["config"]), config)
    if lines := "\n".join(line for line in changed if not line.startswith(free)):
        raise UserError(f"{checkpoint}: is another run's; config.yaml has other settings\n{lines}")
    return state


def load_trainer(directory: Path, config: Config) -> Trainer | None:
    """The same as a trainer.

    Raises:
        UserError: also if the data are not there, or not those of the run.
    """
    state = load_state(directory, config)
    if state is None:
        return None
    if config.neighbours.k > 0 and "bank" not in state["modules"]:
        raise UserError(
            f"neighbours.k={config.neighbours.k}: this run kept no embeddings to search among, "
            "its neighbours.k is 0"
        )
    dataset = run_dataset(config)
    trainer = Trainer(config, dataset, pick_device(config))
    trainer.load_state(state, directory / "checkpoint.pt")
    return trainer
