"""Train: `python -m noisybsd.train recipe=NAME key=value …`.

Carries a run through: opens its directory, trains epoch after epoch, saves, and ends with results.json or
with a sentence on why not.
"""

from __future__ import annotations

import logging
import shlex
import sys
import time
from typing import Any

from noisybsd.checkpoint import save_checkpoint
from noisybsd.config import Config, describe_keys, describe_methods, describe_recipes, load_config
from noisybsd.data import Dataset, load_dataset
from noisybsd.environment import pick_device
from noisybsd.errors import UserError, command
from noisybsd.labels import record
from noisybsd.rundir import RunDirectory, append_jsonl, open_run, write_json, write_jsonl
from noisybsd.stopping import Stopped, StopSignal
from noisybsd.tracking import Tracker
from noisybsd.trainer import NonFiniteLoss, Trainer

log = logging.getLogger("noisybsd")


def train(config: Config, run: RunDirectory) -> dict[str, Any]:
    """Train to the end in `run`, and return the results that were also written there."""
    device = pick_device(config)
    dataset = load_dataset(config.data, config.noise, config.seed)
    _check_fits(config, dataset)
    trainer = Trainer(config, dataset, device)
    if run.state is not None:
        trainer.load_state(run.state)
        run.state = None
    with (
        Tracker(
            config,
            run.path,
            wandb_id=trainer.wandb_id,
            total_steps=trainer.total_steps,
            first_step=trainer.step_number,
        ) as tracker,
        StopSignal(tracker.stopping) as stop,
    ):
        _announce(trainer, run)
        tracker.start_wandb(trainer.history)
        results = None
        try:
            # rows past the checkpoint belong to a part of the run that is trained again
            write_jsonl(run.metrics, trainer.history)
            while trainer.epoch < config.epochs:
                _one_epoch(trainer, run, tracker, stop)
            results = trainer.results()
            record(trainer, run.path)
            write_json(run.results, results)  # last, for it says that the run is finished
        finally:
            trainer.loader.close()
            tracker.finish(results)
    return results


def _one_epoch(trainer: Trainer, run: RunDirectory, tracker: Tracker, stop: StopSignal) -> None:
    begin = time.perf_counter()
    try:
        trainer.train_epoch(tracker, stop)
    except Stopped:
        trainer.seconds += time.perf_counter() - begin
        save_checkpoint(trainer.state(), run.checkpoint)
        raise
    metrics = trainer.end_epoch()
    trainer.seconds += time.perf_counter() - begin
    metrics["seconds"] = trainer.seconds
    metrics["images_per_second"] = trainer.images_seen / trainer.train_seconds
    trainer.history.append(metrics)
    append_jsonl(run.metrics, metrics)
    tracker.epoch(metrics)
    last = trainer.epoch == trainer.config.epochs
    if last or stop.received or trainer.epoch % trainer.config.run.checkpoint_every == 0:
        save_checkpoint(trainer.state(), run.checkpoint)
    if stop.received and not last:
        raise Stopped(stop.received)


def _check_fits(config: Config, dataset: Dataset) -> None:
    n = len(dataset.train.labels)
    if config.batch_size > n:
        raise UserError(f"batch_size={config.batch_size} is more than the {n} training images")
    if config.neighbours.k >= n:
        raise UserError(f"neighbours.k={config.neighbours.k} must be below the {n} training images")


def _announce(trainer: Trainer, run: RunDirectory) -> None:
    config, data = trainer.config, trainer.dataset
    log.info(
        "recipe %s, method %s, seed %d: %s, %s training images, %d classes; %s on %s%s",
        config.recipe,
        config.method,
        config.seed,
        data.name,
        f"{len(data.train.labels):,}",
        trainer.num_classes,
        config.network.name,
        trainer.device,
        ", bf16" if trainer.amp else "",
    )
    log.info("run directory %s", run.path)
    if trainer.step_number:
        log.info("continuing after epoch %d, step %d", trainer.epoch, trainer.step_number)


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
        ("calibration error (ECE)", f"{results['test_ece_last']:.4f}"),
        ("labels wrong in training", percent("noise_rate")),
        ("labels right after correction", percent("label_correction_accuracy")),
        ("AUROC of finding wrong labels", "unknown" if auroc is None else f"{auroc:.4f}"),
        ("time", f"{results['seconds']:.0f} s, {results['images_per_second']:,.0f} images/s"),
        ("which labels are wrong", f"python -m noisybsd.report run={shlex.quote(str(run.path))}"),
        ("results", str(run.results)),
    ]
    return "\n".join(f"{name:<32}{value}" for name, value in filter(None, lines))


USAGE = """\
usage: python -m noisybsd.train recipe=NAME [key=value …]

Train an image classifier on partly wrong labels. A recipe says data, network, schedule and method;
key=value changes any of its settings, e.g.

  python -m noisybsd.train recipe=digits_sym40
  python -m noisybsd.train recipe=cifar10n_worst data.root=data seed=1 method=ce
"""


@command
def main(arguments: list[str]) -> int:
    if not arguments or {"-h", "--help", "help"} & set(arguments):
        print(USAGE)
        print(f"recipes:\n{describe_recipes()}\n")
        print(f"methods, each a loss to targets + a contrastive term:\n{describe_methods()}\n")
        print(f"keys, with their defaults:\n{describe_keys()}")
        return 0 if arguments else 2
    config = load_config(arguments)
    run = open_run(config)
    if run.results.exists():
        print(f"this run is finished: {run.results}\nrun.dir=NEW trains it anew")
        return 0
    try:
        results = train(config, run)
    except Stopped as stopped:
        print(f"stopped by {stopped}, saved. To continue:\n  {_continue_command(run)}")
        return 128 + stopped.number
    except NonFiniteLoss as error:
        good = run.checkpoint if run.checkpoint.exists() else "none yet"
        print(f"error: {error}\nlast good checkpoint: {good}", file=sys.stderr)
        return 1
    print(summary(results, run))
    return 0


def _continue_command(run: RunDirectory) -> str:
    settings = [f"recipe={run.path / 'config.yaml'}", f"run.resume={run.path}"]
    return shlex.join(["python", "-m", "noisybsd.train", *settings])


if __name__ == "__main__":
    sys.exit(main())
