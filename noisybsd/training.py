"""A training run from its first to its last line.

Opens the run's directory, trains epoch after epoch, saves, and ends with results.json or with a sentence
on why not. On many processes (`torchrun`) all train alike; the first one alone has the run
directory and talks to the user.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from noisybsd import distributed
from noisybsd.config import Config, load_config
from noisybsd.data.dataset import Dataset
from noisybsd.data.votes import votes_told
from noisybsd.engine.calibration import ENOUGH
from noisybsd.engine.data import run_dataset
from noisybsd.engine.trainer import NonFiniteLoss, Trainer
from noisybsd.engine.warm_start import start_from
from noisybsd.errors import (
    UserError,
    first_line,
    is_out_of_gpu_memory,
    is_out_of_memory,
    shown,
)
from noisybsd.files import append_jsonl, user_path, write_json, write_jsonl
from noisybsd.processes import follow_parent
from noisybsd.report.collect import record
from noisybsd.runs.checkpoint import save_checkpoint
from noisybsd.runs.directory import RunDirectory, differences, load_initial, open_run
from noisybsd.runs.environment import pick_device
from noisybsd.runs.records import read_results
from noisybsd.runs.results import RunRecord, data_notes, run_results
from noisybsd.runs.signals import Stopped, StopSignal
from noisybsd.runs.tracking import Earlier, NoTracker, Tracker

log = logging.getLogger("noisybsd")


def train(config: Config, run: RunDirectory | None) -> dict[str, Any]:
    """Train to the end, and return the results.

    Args:
        run: where all is written; None on all processes but the first.
    """
    device = pick_device(config)
    if config.compile:
        _check_compiler(device)
    with Earlier() as earlier:
        with distributed.one_first("data"):
            dataset = run_dataset(config)
        _check_fits(config, dataset)
        _check_same_data(config, dataset)
        trainer = Trainer(config, dataset, device)
    state = distributed.from_first(None if run is None else run.state)
    kept = RunRecord(state)
    if state is not None:
        where = distributed.from_first(None if run is None else str(run.source))
        trainer.load_state(state, where)
        if state["world_size"] != distributed.world_size():
            trainer.begin_epoch_anew()
        _check_step(trainer, where)
        if state["config"]["epochs"] < config.epochs:
            kept.extended_after.append(trainer.epoch)
    if run is not None:
        run.state = None
        if run.grows:
            run.record(config)
    # on every process now, for this decodes what stays in memory, and Ctrl-C still ends it at once
    total_steps = trainer.total_steps
    with (
        _open_tracker(trainer, run, kept.wandb_id, total_steps) as tracker,
        StopSignal(tracker.stopping) as stop,
    ):
        tracker.note(earlier.records)
        if run is not None:
            _announce(trainer, run, state)
        if state is None and config.run.init is not None:
            _start_from(trainer, config.run.init, run)
        del state
        tracker.start_wandb(trainer.history)
        results = None
        try:
            if run is not None:
                # rows past the checkpoint belong to a part of the run that is trained again
                write_jsonl(run.metrics, trainer.history)
            checkpoints = Checkpoints(trainer, kept, run)
            while trainer.epoch < config.epochs:
                _one_epoch(trainer, tracker, stop, checkpoints)
            results = _results(trainer, kept)
            _check_place(run)
            record(trainer, None if run is None else run.path)
            if run is not None:
                write_json(run.results, results)  # last, for it says that the run is finished
        finally:
            trainer.close()
            tracker.finish(results)
    return results


def _start_from(trainer: Trainer, init: str, run: RunDirectory | None) -> None:
    """Let the new run begin with what another has learned; the first process reads that."""
    found = ("", {}) if run is None else load_initial(user_path(init, "run.init"))
    source, state = distributed.from_first(found)
    start_from(trainer, state, source)


def _open_tracker(
    trainer: Trainer, run: RunDirectory | None, wandb_id: str, total_steps: int
) -> Tracker:
    if run is None:
        return NoTracker()
    return Tracker(
        trainer.config,
        run.path,
        wandb_id=wandb_id,
        total_steps=total_steps,
        first_step=trainer.step_number,
        quicker=_quicker(trainer),
    )


def _quicker(trainer: Trainer) -> str:
    """The way to go for whoever trains a whole network on own images without a GPU."""
    config = trainer.config
    if trainer.device.type != "cpu" or config.network.frozen or config.data.name != "own":
        return ""
    return "; recipe=own_quick takes minutes without a GPU: it trains on the features of a frozen network"


class Checkpoints:
    """Writes the checkpoints of a run. All processes take part; the first one, which has `run`, writes."""

    def __init__(self, trainer: Trainer, kept: RunRecord, run: RunDirectory | None):
        self.trainer, self.kept, self.run = trainer, kept, run
        self.written = time.monotonic()  # or begun, before the first one

    def due(self) -> bool:
        """Whether `run.checkpoint_seconds` have gone by since the last one, by the first process's clock."""
        passed = time.monotonic() - self.written
        due = self.run is not None and passed >= self.trainer.config.run.checkpoint_seconds
        return distributed.largest(int(due)) == 1

    def write(self) -> None:
        state = self.trainer.state() | self.kept.state(self.trainer.loader.skipped)
        if self.run is not None:
            save_checkpoint(state, self.run.checkpoint)
        self.written = time.monotonic()


def _one_epoch(
    trainer: Trainer,
    tracker: Tracker,
    stop: StopSignal,
    checkpoints: Checkpoints,
) -> None:
    begin, waited = time.perf_counter(), trainer.loader.waited_seconds
    try:
        trainer.train_epoch(tracker, stop)
    except Stopped:
        trainer.seconds += time.perf_counter() - begin
        _check_place(checkpoints.run)
        checkpoints.write()
        raise
    metrics = trainer.end_epoch()
    trainer.seconds += time.perf_counter() - begin
    metrics["seconds"] = trainer.seconds
    metrics["waited_seconds"] = trainer.loader.waited_seconds - waited  # of this epoch, for images
    metrics["images_per_second"] = trainer.images_seen / trainer.train_seconds
    trainer.history.append(metrics)
    _check_place(checkpoints.run)
    if checkpoints.run is not None:
        append_jsonl(checkpoints.run.metrics, metrics)
    tracker.epoch(metrics)
    last = trainer.epoch == trainer.config.epochs
    received = distributed.largest(stop.received)
    if checkpoints.due() or last or received:
        checkpoints.write()
    if received and not last:
        raise Stopped(received)


def _results(trainer: Trainer, kept: RunRecord) -> dict[str, Any]:
    """results.json. All processes take part."""
    data = trainer.dataset
    about = {
        "precision": trainer.precision,
        "dataset": data.name,
        "train_samples": len(data.train.labels),
        "test_samples": len(data.test.labels),
        "calibration_samples": len(trainer.never_learned or ()),
        "data_sha256": data.sha256,
        "data": data_notes(data.notes, kept.skipped(trainer.loader.skipped)),
        "extended_after": kept.extended_after,
    }
    return run_results(
        trainer.config,
        trainer.history,
        trainer.reliability_diagrams(),
        about,
        trainer.device,
        images_seen=trainer.images_seen,
        network_passes=trainer.network_passes,
        train_seconds=trainer.train_seconds,
        seconds=trainer.seconds,
    )


def _check_step(trainer: Trainer, where: str | None) -> None:
    """Refuse a checkpoint whose step is in no epoch, or not in the one after its history."""
    done, steps = trainer.epoch, trainer.loader.steps_per_epoch
    if done > trainer.config.epochs or not 0 <= trainer.step_number - done * steps <= steps:
        raise UserError(
            f"{where}: damaged: step {trainer.step_number} after {done} of "
            f"{trainer.config.epochs} epochs of {steps} steps"
        )


def _check_place(run: RunDirectory | None) -> None:
    if run is not None:
        run.check_place()


def _check_fits(config: Config, dataset: Dataset) -> None:
    n, processes = len(dataset.train.labels), distributed.world_size()
    if config.batch_size > n:
        fits = 2 ** (n.bit_length() - 1)
        raise UserError(
            f"batch_size={config.batch_size} is more than the {n} training images"
            + (f"; use batch_size={fits}" if fits > 1 else "")
        )
    if len(dataset.test) < processes:
        raise UserError(
            f"{processes} processes cannot share {len(dataset.test)} test images; use fewer processes"
        )
    if dataset.calibration is not None and len(dataset.calibration) < processes:
        raise UserError(
            f"data.calibration={config.data.calibration}: holds out {len(dataset.calibration)} images for "
            f"{processes} processes; use a larger share"
        )
    if config.neighbours.k >= n:
        raise UserError(f"neighbours.k={config.neighbours.k} must be below the {n} training images")


def _check_compiler(device: torch.device) -> None:
    """Compile a little function: what is missing for it is missing for a network too."""
    try:
        # what was compiled before, and lies in a cache, needs no compiler
        options: dict[str, Any] = {"fx_graph_cache": False}
        torch.compile(lambda x: x.sin() + 1, options=options)(torch.ones(8, device=device))
    except Exception as error:  # a tool that is missing shows in many ways
        reason = first_line(error)[:300]
        raise UserError(
            f"compile=true: torch cannot compile for {device.type} on this machine; it needs a C++ compiler "
            f"(g++) with Python's headers, and Triton for a GPU. Use compile=false. ({reason})"
        ) from None


def _check_processes(config: Config) -> None:
    """Refuse a batch that they cannot share, and different arguments, as on two machines."""
    processes, size = distributed.world_size(), config.batch_size
    if size % processes:
        raise UserError(
            f"batch_size={size} is that of all processes together, and {processes} of them cannot share "
            f"it equally; use a multiple of {processes}, e.g. {size - size % processes + processes}"
        )
    first, *others = distributed.each(config.model_dump(mode="json"))
    for rank, other in enumerate(others, start=1):
        changed = list(differences(other, Config.model_validate(first)))
        if changed:
            lines = "\n".join(changed)
            raise UserError(
                f"process {rank} (there) was started with other settings than process 0 (here):\n{lines}"
            )


def _check_same_data(config: Config, dataset: Dataset) -> None:
    """Refuse data that are not the same on all machines."""
    first, *others = distributed.each(dataset.sha256)
    differing = [str(rank) for rank, other in enumerate(others, start=1) if other != first]
    if differing:
        raise UserError(
            f"data.root={config.data.root}: the images or labels that process {', '.join(differing)} of "
            f"{len(others) + 1} sees are not those of process 0 (sha256 {first[:12]}…)"
        )


def _announce(trainer: Trainer, run: RunDirectory, state: dict[str, Any] | None) -> None:
    config, data, processes = trainer.config, trainer.dataset, distributed.world_size()
    log.info(
        "recipe %s, method %s, seed %d: %s, %s training images, %d classes; %s on %s%s%s",
        config.recipe,
        config.method,
        config.seed,
        data.name,
        f"{len(data.train.labels):,}",
        trainer.num_classes,
        config.network.name,
        trainer.device.type + f" of {processes} processes" * (processes > 1),
        ", bf16" if trainer.amp else "",
        ", compiled" if config.compile else "",
    )
    if data.train.votes is not None:
        told = votes_told(data.train.votes)
        log.info("several labels for an image: %s among the %d to train on", told, len(data.train))
    if data.calibration is not None and len(data.calibration) < ENOUGH:
        log.warning(
            "data.calibration=%g: holds out %d images; with fewer than some hundreds the temperature is "
            "mostly chance",
            config.data.calibration,
            len(data.calibration),
        )
    if config.optimizer.warmup_epochs >= config.epochs:
        log.warning(
            "optimizer.warmup_epochs=%g is not below epochs=%d: the learning rate rises to the end, and "
            "reaches %.3g of optimizer.lr=%g",
            config.optimizer.warmup_epochs,
            config.epochs,
            trainer.lr(trainer.total_steps - 1),
            config.optimizer.lr,
        )
    near = config.neighbours
    if near.weight > 0 and max(near.start_epoch, 1) >= config.epochs:
        log.warning(
            "neighbours.start_epoch=%d: with epochs=%d no step uses what neighbours say",
            near.start_epoch,
            config.epochs,
        )
    encoder, head = trainer.network.encoder, trainer.network.projection
    if list(head.parameters()) and not list(encoder.parameters()):
        log.warning(
            "network.frozen=true: what compares embeddings trains the projection head alone, and no layer "
            "that the classifier shares; network.width=512 adds one"
        )
    log.info("run directory %s", run.path)
    if trainer.step_number:
        log.info("continuing after epoch %d, step %d", trainer.epoch, trainer.step_number)
    if state is None:
        return
    if (epochs := state["config"]["epochs"]) < config.epochs:
        log.warning(
            "made longer: %d epochs in place of %d. Learning rate and target rule follow the schedule of the "
            "longer run from here on; the next step's learning rate is %.3g",
            config.epochs,
            epochs,
            trainer.lr(trainer.step_number),
        )
    if state["precision"] != trainer.precision:
        log.warning("so far in %s, from here on in %s", state["precision"], trainer.precision)
    then = state["history"][-1]["step"] if state["history"] else 0
    again = state["step"] - then  # steps into an epoch
    if again and state["world_size"] != processes:
        log.warning(
            "interrupted within epoch %d on %d processes, now there are %d: it begins anew, %d steps "
            "are taken again",
            trainer.epoch + 1,
            state["world_size"],
            processes,
            again,
        )


_TEST_LABELS = {  # what the end of a run says of test labels that are not clean
    "noisy": "held out of the training images, as doubtful as theirs",
    "partly verified": "verified in part; the others as doubtful as in training",
    "unverified": "not verified",
}


def summary(results: dict[str, Any], run: RunDirectory) -> str:
    """What a run ends with on the console."""

    def percent(name: str) -> str:
        value = results.get(name)
        return "unknown (no clean labels)" if value is None else f"{value:.2%}"

    auroc = results["noise_detection_auroc"]
    lines = [
        ("test accuracy, last epoch", percent("test_accuracy_last")),
        ("  mean of the last 10", percent("test_accuracy_last10_mean")),
        ("  of the weight average", percent("test_accuracy_ema_last"))
        if results["test_accuracy_ema_last"] is not None
        else None,
        ("  best (an oracle)", percent("test_accuracy_best")),
        ("  the test labels are", f"{doubt}; the report estimates the accuracy on clean ones")
        if (doubt := _TEST_LABELS.get(results["data"]["test_labels"]))
        else None,
        ("calibration error (ECE)", f"{results['test_ece_last']:.4f}"),
        (
            f"  before calibration (T={results['temperature']:.2f})",
            f"{results['uncalibrated_ece_last']:.4f}",
        )
        if results["temperature"] is not None
        else None,
        ("labels wrong in training", percent("noise_rate")),
        ("labels right after correction", percent("label_correction_accuracy")),
        ("AUROC of finding wrong labels", "unknown" if auroc is None else f"{auroc:.4f}"),
        ("time", f"{results['seconds']:.0f} s, {results['images_per_second']:,.0f} images/s"),
        (
            "which labels are wrong",
            shown(f"python -m noisybsd.report run={shlex.quote(str(run.path))}"),
        ),
        ("results", shown(run.results)),
    ]
    return "\n".join(f"{name:<32}{value}" for name, value in filter(None, lines))


def run(arguments: list[str]) -> int:
    """Train as the arguments of `python -m noisybsd.train` say; returns the exit code."""
    follow_parent()
    with distributed.process_group():
        config = load_config(arguments)
        with _opened(config) as opened:
            return _train_in(config, opened)


def trained(config: Config) -> Path:
    """Train to the end, or find the run finished, and return its directory: for callers in Python.

    Raises:
        UserError: as the command's.
        KeyboardInterrupt: a signal stopped the run, and it is saved.
        NonFiniteLoss: the loss became NaN or infinite.
    """
    with distributed.process_group(), _opened(config) as run:
        path = distributed.from_first(None if run is None else str(run.path.absolute()))
        assert path is not None
        try:
            if not distributed.from_first(run is not None and run.finished):
                train(config, run)
        except Stopped as stopped:
            raise KeyboardInterrupt(f"stopped by {stopped}; saved in {path}") from None
    return Path(path)


@contextlib.contextmanager
def _opened(config: Config) -> Iterator[RunDirectory | None]:
    """The directory of the run, locked; None on all processes but the first."""
    _check_processes(config)
    run = open_run(config) if distributed.is_first() else None
    try:
        yield run
    except UserError:
        if run is not None:
            run.take_away()
        raise
    finally:
        if run is not None:
            run.lock.close()  # an error that somebody keeps would keep the lock too


def _train_in(config: Config, run: RunDirectory | None) -> int:
    if distributed.from_first(run is not None and run.finished):
        if run is not None:
            read_results(run.results)  # or it is damaged, and says so
            print(f"this run is finished: {shown(run.results)}\nrun.dir=NEW trains it anew")
            longer = f"recipe={run.path / 'config.yaml'} run.resume={run.path} epochs=MORE"
            print(shown(f"{longer} trains it longer"))
        return 0
    try:
        results = train(config, run)
    except Stopped as stopped:
        if run is not None:
            with contextlib.suppress(OSError):  # the terminal may be what was closed
                print(f"stopped by {stopped}, saved. To continue:\n  {_continue_command(run)}")
        return 128 + stopped.number
    except NonFiniteLoss as error:
        if run is not None:
            good = run.checkpoint if run.checkpoint.exists() else "none yet"
            print(f"error: {error}\nlast good checkpoint: {shown(good)}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if is_out_of_gpu_memory(error):
            raise UserError(
                f"the GPU is out of memory: {str(error).splitlines()[0]}\n"
                f"Lower batch_size (got {config.batch_size}) or data.size, or use data.storage=stream (got "
                f"{config.data.storage}), precision=bf16 (got {config.precision}), a smaller network.name, "
                "or more GPUs (torchrun); see also what else runs on this one"
            ) from None
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory: {str(error).splitlines()[0]}\n"
            f"Lower batch_size (got {config.batch_size}), data.size, network.width or "
            f"network.embedding_dim, or use data.storage=stream (got {config.data.storage})"
        ) from None
    if run is not None:
        print(summary(results, run))
    return 0


def _continue_command(run: RunDirectory) -> str:
    settings = [f"recipe={run.path / 'config.yaml'}", f"run.resume={run.path}"]
    launcher = ["python"]
    if distributed.world_size() > 1:
        here = os.environ.get("LOCAL_WORLD_SIZE", str(distributed.world_size()))
        launcher = ["torchrun", "--nproc-per-node", here]
    return shown(shlex.join([*launcher, "-m", "noisybsd.train", *settings]))
