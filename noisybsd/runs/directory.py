"""The run directory: where a run lives, which run to continue, and that two never share one."""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from noisybsd.config import Config, read_record, refuse_earlier, save_config
from noisybsd.errors import UserError
from noisybsd.files import remove_temporaries, write_atomically
from noisybsd.runs.checkpoint import load_checkpoint, load_latest, previous

log = logging.getLogger("noisybsd")

RESULTS_SCHEMA = 1  # version of results.json

# settings that may differ between the parts of one run: where things are, not what is computed
_PLACE = ("run", "tracking", "device", "data.root", "data.download", "data.workers", "data.storage")


@dataclass
class RunDirectory:
    """An opened run directory, locked until the process ends."""

    path: Path
    state: dict[str, Any] | None  # the checkpoint to continue from
    lock: TextIO

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def results(self) -> Path:
        return self.path / "results.json"


def open_run(config: Config) -> RunDirectory:
    """Find or make the directory of this run and lock it, as `run.dir` and `run.resume` say.

    Raises:
        UserError: another process uses it, it holds a run of another configuration, or there is no
            usable checkpoint in it.
    """
    resume = config.run.resume
    if resume not in ("auto", "none"):
        return _continue_from(Path(resume).expanduser(), config)
    if config.run.dir is not None:
        path = Path(config.run.dir).expanduser()
        if resume == "none" and path.is_dir() and any(path.iterdir()):
            raise UserError(f"run.dir={path} is not empty; run.resume=none needs a new directory")
        return _claim(path, config)
    if resume == "auto":
        for path in _unfinished(config):
            try:
                return _claim(path, config)
            except InUse:
                continue
    stem = Path("runs") / config.recipe / f"{time.strftime('%Y%m%d-%H%M%S')}-{config.seed}"
    for number in range(1, 1000):  # runs started within one second
        path = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        if not path.exists():
            try:
                return _claim(path, config)
            except InUse:  # by one that was faster
                continue
    raise UserError(f"run.dir: {stem} and its successors exist already")


class InUse(UserError):
    pass


def load_run_state(directory: Path) -> dict[str, Any] | None:
    """The latest usable checkpoint of the run in `directory`, None if it has not written one.

    Raises:
        UserError: there are checkpoints, none of them usable.
    """
    found = _latest(directory / "checkpoint.pt")
    return None if found is None else found[1]


def _latest(checkpoint: Path) -> tuple[Path, dict[str, Any]] | None:
    """Which checkpoint is the latest usable one, and its content."""
    found = load_latest(checkpoint, log.warning)
    if found is None and (checkpoint.exists() or previous(checkpoint).exists()):
        raise UserError(
            f"{checkpoint}: no usable checkpoint (see above); training again with run.resume=none starts "
            "a new run"
        )
    if found is not None and found[0] != checkpoint:
        log.warning("using the checkpoint before it, %s", found[0])
    return found


def _claim(path: Path, config: Config, source: Path | None = None) -> RunDirectory:
    """Lock `path`, check that it is this run's (or new), and load its checkpoint if it has one.

    Args:
        source: the checkpoint to load; default: the latest usable one.
    """
    run = RunDirectory(path, None, lock_run(path))
    remove_temporaries(path)
    record = path / "config.yaml"
    if record.exists():
        _check_same(f"run.dir={path}", read_record(record), config)
    if run.results.exists():
        return run
    found = _latest(run.checkpoint) if source is None else (source, load_checkpoint(source))
    if found is not None:
        source, run.state = found
        refuse_earlier(run.state["config"], str(source))
        _check_same(str(source), run.state["config"], config)
        if run.checkpoint.exists() and not source.samefile(run.checkpoint):
            # or else the next checkpoint would keep it in the place of the good one before it
            run.checkpoint.replace(run.checkpoint.with_suffix(".aside.pt"))
    if not record.exists():
        header = f"rerun: python -m noisybsd.train recipe={record}"
        write_atomically(record, lambda file: save_config(config, Path(file.name), header))
    return run


def lock_run(path: Path) -> TextIO:
    """Make the directory `path` if need be, and lock it until the process ends."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("a")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InUse(f"run.dir={path} is in use by another process") from None
    except OSError as error:
        raise UserError(f"run.dir={path}: cannot be a run directory: {error.strerror}") from None
    return lock


def _check_same(place: str, there: dict[str, Any], config: Config) -> None:
    changed = list(differences(there, config))
    if changed:
        lines = "\n".join(changed)
        raise UserError(
            f"{place} holds a run of another configuration; use its settings, or train in a new directory"
            f"\n{lines}"
        )


def _continue_from(path: Path, config: Config) -> RunDirectory:
    """Continue the run directory `path`, or its checkpoint file `path` in particular."""
    if not path.exists():
        raise UserError(
            f"run.resume={path}: no such file or directory; valid: auto, none, or the path of a run "
            "directory or of a checkpoint in one"
        )
    directory = path if path.is_dir() else path.parent
    if config.run.dir is not None and Path(config.run.dir).resolve() != directory.resolve():
        raise UserError(f"run.dir={config.run.dir}: run.resume={path} continues in {directory}")
    if not (directory / "config.yaml").exists():
        raise UserError(f"run.resume={path}: {directory} is not a run directory, no config.yaml")
    return _claim(directory, config, None if path.is_dir() else path)


def _unfinished(config: Config) -> Iterator[Path]:
    """Unfinished runs of the same configuration in the default place, the newest first."""
    parent = Path("runs") / config.recipe
    for record in sorted(parent.glob("*/config.yaml"), reverse=True):
        if (record.parent / "results.json").exists():
            continue
        try:
            same = not list(differences(read_record(record), config))
        except UserError:  # a damaged file of another run must not keep this one from starting
            continue
        if same:
            yield record.parent


def differences(record: dict[str, Any], config: Config) -> Iterator[str]:
    """One line for each setting that differs from the recorded configuration."""
    # a record from before a key existed was made with its present default
    defaults = flatten(Config.model_construct(recipe="").model_dump(mode="json"))
    there, here = defaults | flatten(record), flatten(config.model_dump(mode="json"))
    for key in sorted(there.keys() | here.keys()):
        if not is_place(key) and there.get(key) != here.get(key):
            yield f"{key}: {there.get(key)} there, {here.get(key)} here"


def is_place(key: str) -> bool:
    """Whether the setting `key` says where things are, and not what is computed."""
    return any(key == part or key.startswith(f"{part}.") for part in _PLACE)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
