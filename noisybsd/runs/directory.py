"""The run directory: where a run lives, which run to continue, and that two never share one."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from noisybsd.config import Config, read_record, refuse_earlier, save_config
from noisybsd.errors import UserError, shown
from noisybsd.files import (
    identity,
    is_temporary,
    kind_of,
    naming,
    open_file,
    remove_temporaries,
    user_path,
    write_atomically,
)
from noisybsd.runs.records import check_config

log = logging.getLogger("noisybsd")

# settings that may differ between the parts of one run: where things are, not what is computed; run.init
# may not
_PLACE = (
    *("run", "tracking", "device", "data.root", "data.download", "data.workers", "data.storage"),
    "network.cache",
)

FOLDS = "out_of_fold"  # folder in a run directory: the label table with what sibling runs held out

# settings that a command on a run may be given otherwise than training was
MAY_DIFFER = (
    *("data.root", "data.manifest", "data.embeddings", "data.labels"),
    *("network.weights", "network.cache"),
    *("data.download", "data.workers", "data.on_error"),
    *("device", "precision", "neighbours.k"),
)

# what a run, its sweep and the commands on it write there
_FILES = (
    *(".lock", "log.txt", "console.txt", "failed.txt", "slurm_job.txt", "config.yaml"),
    *("checkpoint.pt", "checkpoint.previous.pt", "checkpoint.aside.pt", "metrics.jsonl"),
    *("results.json", "labels.parquet", "labels.csv", "pred_probs.npz", "labels_metrics.json"),
    *("report.html", "evaluation.json", "wandb", FOLDS),
    *("model.onnx", "model.pt2", "model.safetensors"),
)


@dataclass
class RunDirectory:
    """An opened run directory, locked until `lock` is closed or the process ends."""

    path: Path
    state: dict[str, Any] | None  # the checkpoint to continue from
    lock: BinaryIO
    identity: tuple[int, int]
    source: Path | None = None  # the checkpoint's file
    grows: bool = False  # the run is to have more epochs than it was made for
    new: bool = False  # this process has put the first file there

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self.results.exists() and not self.grows

    def record(self, config: Config) -> None:
        """Write config.yaml. A run that grows is from here on the longer run, and not finished."""
        if self.grows:
            self.results.unlink(missing_ok=True)
            self.grows = False
        record = self.path / "config.yaml"
        header = f"rerun: python -m noisybsd.train recipe={shown(record)}"
        write_atomically(record, lambda file: save_config(config, Path(file.name), header))

    def take_away(self) -> None:
        """Remove the directory of a new run that has failed before it began, with configuration and log."""
        ours = {"config.yaml", ".lock", "log.txt"}
        with contextlib.suppress(OSError):
            still_there = self.new and identity(self.path) == self.identity
            if still_there and {path.name for path in self.path.iterdir()} <= ours:
                for name in ours:
                    (self.path / name).unlink(missing_ok=True)
                self.path.rmdir()

    def check_place(self) -> None:
        """Refuse to write where this run does not live any more.

        Raises:
            UserError: the directory was removed, or another one is in its place.
        """
        with naming(f"run.dir={self.path}: cannot be written"):
            there = identity(self.path)
        if there != self.identity:
            raise UserError(
                f"run.dir={self.path}: is another directory than when this run started; its files are "
                "where that one went"
            )


def open_run(config: Config) -> RunDirectory:
    """Find or make the directory of this run and lock it, as `run.dir` and `run.resume` say.

    Raises:
        UserError: another process uses it, it holds a run of another configuration, or there is no
            usable checkpoint in it.
    """
    resume = config.run.resume
    if resume not in ("auto", "none"):
        return _continue_from(user_path(resume, "run.resume"), config)
    if config.run.dir is not None:
        path = user_path(config.run.dir, "run.dir")
        if resume == "none" and _names(path, f"run.dir={path}"):
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


def load_initial(path: Path) -> tuple[str, dict[str, Any]]:
    """The checkpoint that `run.init=path` names, itself or by its run directory: its file and its content.

    Raises:
        UserError: there is no usable checkpoint.
    """
    kind = kind_of(path, f"run.init={path}")
    if kind is None:
        raise UserError(
            f"run.init={path}: no such file or directory; valid: a run directory or a checkpoint"
        )
    found = _latest(path / "checkpoint.pt", None if kind == "folder" else path)
    if found is None:
        raise UserError(f"run.init={path}: has no checkpoint")
    check_config(found[1]["config"], f"{found[0]}: config")
    return str(found[0]), found[1]


def load_run_state(directory: Path) -> dict[str, Any] | None:
    """The latest usable checkpoint of the run in `directory`, None if it has not written one.

    Raises:
        UserError: there are checkpoints, none of them usable.
    """
    found = _latest(directory / "checkpoint.pt")
    return None if found is None else found[1]


def no_checkpoint(directory: Path) -> UserError:
    """The error that a command needs the checkpoint of the run in `directory`, and there is none."""
    if _is_there(directory / "results.json"):
        return UserError(
            f"run={directory}: is finished, but its checkpoint.pt is gone; {_anew(directory)}"
        )
    return UserError(
        f"run={directory}: has no checkpoint yet; training writes one after an epoch, or when it is stopped "
        "by Ctrl-C"
    )


def _anew(directory: Path) -> str:
    """What to do where the run in `directory` has lost its checkpoint."""
    # the record leaves run.dir and run.resume out, so that this works whatever the run was given
    record = shown(directory / "config.yaml")
    return (
        "put a copy of it back, or train the run anew in another directory: "
        f"python -m noisybsd.train recipe={record} run.dir=NEW"
    )


def _latest(checkpoint: Path, source: Path | None = None) -> tuple[Path, dict[str, Any]] | None:
    """Which checkpoint is the latest usable one, or else `source`, and its content."""
    # here, for it imports torch, which a sweep and a comparison do not need
    from noisybsd.runs.checkpoint import load_checkpoint, load_latest, previous

    if source is not None:
        return source, load_checkpoint(source)
    found = load_latest(checkpoint, log.warning)
    if found is None and (checkpoint.exists() or previous(checkpoint).exists()):
        raise UserError(
            f"{checkpoint}: no usable checkpoint (see above); {_anew(checkpoint.parent)}"
        )
    if found is not None and found[0] != checkpoint:
        log.warning("using the checkpoint before it, %s", found[0])
    return found


def _claim(
    path: Path, config: Config, source: Path | None = None, *, may_grow: bool = False
) -> RunDirectory:
    """Lock `path`, check that it is this run's (or new), and load its checkpoint if it has one.

    Args:
        source: the checkpoint to load; default: the latest usable one.
        may_grow: accept a run of fewer epochs.
    """
    refuse_foreign(path, f"run.dir={path}")
    lock = lock_run(path)
    with naming(f"run.dir={path}: cannot be a run directory"):
        run = RunDirectory(path, None, lock, identity(path))
    record = path / "config.yaml"
    recorded = read_record(record) if _is_there(record) else None
    if recorded is not None and has_begun(path):
        grown = as_long_as(config, recorded)
        run.grows = may_grow and grown != recorded
        _check_same(f"run.dir={path}", grown if may_grow else recorded, config)
    remove_temporaries(path)
    if _is_there(run.results) and not run.grows:
        return run
    found = _latest(run.checkpoint, source)
    if found is not None:
        source, run.state = found
        run.source = source
        check_config(run.state["config"], f"{source}: config")
        refuse_earlier(run.state["config"], str(source))
        _check_same(str(source), as_long_as(config, run.state["config"]), config)
        if run.checkpoint.exists() and not source.samefile(run.checkpoint):
            # or else the next checkpoint would keep it in the place of the good one before it
            run.checkpoint.replace(run.checkpoint.with_suffix(".aside.pt"))
    if run.grows and run.state is None:
        raise UserError(f"run.resume={path}: has no checkpoint to go on from; {_anew(path)}")
    if recorded is None or (not run.grows and list(differences(recorded, config))):
        run.new = recorded is None
        run.record(config)
    return run


def _is_there(path: Path) -> bool:
    """Whether a file of a run directory is there."""
    return kind_of(path, str(path)) is not None


def has_begun(path: Path) -> bool:
    """Whether the run in `path` got as far as its first epoch, and not only to an error in its settings."""
    return any(
        _is_there(path / name)
        for name in _FILES
        if name.startswith(("checkpoint", "metrics", "results"))
    )


def refuse_foreign(path: Path, what: str) -> None:
    """Refuse a directory that holds files, and no run of noisybsd: nothing of others is touched.

    Raises:
        UserError: begins with `what`.
    """
    names = _names(path, what)
    if "config.yaml" in names:
        check_config(read_record(path / "config.yaml"), f"{what}: config.yaml")
        return
    foreign = [name for name in names if name not in _FILES and not is_temporary(name)]
    if foreign:
        more = f" and {len(foreign) - 1} more" * (len(foreign) > 1)
        raise UserError(
            f"{what}: holds {shown(foreign[0])}{more}, and no run (config.yaml); use a new or an empty "
            "directory"
        )


def _names(path: Path, what: str) -> list[str]:
    """The names in the directory `path`, sorted; none if there is no such directory."""
    with naming(f"{what}: cannot be a run directory"):
        try:
            return sorted(entry.name for entry in path.iterdir())
        except FileNotFoundError:
            return []


def lock_run(path: Path) -> BinaryIO:
    """Make the directory `path` if need be, and lock it until the process ends."""
    with naming(f"run.dir={path}: cannot be a run directory"):
        path.mkdir(parents=True, exist_ok=True)
        lock = open_file(path / ".lock", "ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise InUse(f"run.dir={path} is in use by another process") from None
        return lock


def _check_same(place: str, there: dict[str, Any], config: Config) -> None:
    changed = list(differences(there, config))
    if changed:
        lines = "\n".join(changed)
        longer = not list(differences(as_long_as(config, there), config))
        use = (
            f"run.resume={place.removeprefix('run.dir=')} to make it longer"
            if longer
            else "its settings"
        )
        raise UserError(
            f"{place} holds a run of another configuration; use {use}, or train in a new directory\n{lines}"
        )


def _continue_from(path: Path, config: Config) -> RunDirectory:
    """Continue the run directory `path`, or its checkpoint file `path` in particular."""
    kind = kind_of(path, f"run.resume={path}")
    if kind is None:
        raise UserError(
            f"run.resume={path}: no such file or directory; valid: auto, none, or the path of a run "
            "directory or of a checkpoint in one"
        )
    directory = path if kind == "folder" else path.parent
    with naming(f"run.dir={config.run.dir}"):
        elsewhere = config.run.dir is not None and (
            Path(config.run.dir).resolve() != directory.resolve()
        )
    if elsewhere:
        raise UserError(f"run.dir={config.run.dir}: run.resume={path} continues in {directory}")
    if not _is_there(directory / "config.yaml"):
        raise UserError(f"run.resume={path}: {directory} is not a run directory, no config.yaml")
    return _claim(directory, config, None if kind == "folder" else path, may_grow=True)


def _unfinished(config: Config) -> Iterator[Path]:
    """Unfinished runs of the same configuration in the default place, the newest first."""
    parent = Path("runs") / config.recipe
    for record in sorted(parent.glob("*/config.yaml"), reverse=True):
        try:
            if _is_there(record.parent / "results.json"):
                continue
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


def as_long_as(config: Config, record: dict[str, Any]) -> dict[str, Any]:
    """A run's record with the epochs of `config`, if these are more: the run was made longer since."""
    epochs = record["epochs"]
    longer = isinstance(epochs, int) and epochs < config.epochs
    return {**record, "epochs": config.epochs} if longer else record


def is_place(key: str) -> bool:
    """Whether the setting `key` says where things are, and not what is computed."""
    inside = any(key == part or key.startswith(f"{part}.") for part in _PLACE)
    return inside and key != "run.init"


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
