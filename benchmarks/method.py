"""The pictures of docs/method.md, drawn from real runs: what beliefs do while a network learns.

    python benchmarks/method.py recipe=digits_sym40 device=cpu --out docs/method-digits
    python benchmarks/method.py recipe=small_cifar10n data.root=data device=cpu --out docs/method-cifar10n

Trains the recipe twice, as it is and with method=ce, and writes OUT.svg and OUT.csv: a row for each epoch,
with the mean belief in the true class of samples whose label is right or wrong, the mean share of a whole
visit, test accuracy and the memorised share of both runs. Clean labels are needed, for the pictures alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from common import write_csv
from matplotlib.figure import Figure

from noisybsd.config import Config, load_config
from noisybsd.data.dataset import load_dataset
from noisybsd.engine.trainer import Trainer
from noisybsd.methods.bsd import PosteriorTargets
from noisybsd.methods.posterior import Posterior, override_time
from noisybsd.runs.environment import pick_device
from noisybsd.runs.signals import StopSignal
from noisybsd.runs.tracking import NoTracker

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#808080"


def trained(config: Config) -> tuple[Trainer, list[torch.Tensor], list[float]]:
    """A run; where it holds a posterior also its means (N,K) after each epoch, the prior first, and
    the mean weight of a visit in each epoch."""
    dataset = load_dataset(config.data, config.noise, config.seed)
    trainer = Trainer(config, dataset, pick_device(config))
    beliefs: list[torch.Tensor] = []
    weights: list[float] = []
    seen: list[torch.Tensor] = []
    if isinstance(trainer.rule, PosteriorTargets):
        posterior = trainer.rule.posterior
        assert isinstance(posterior, Posterior)
        observe = posterior.observe

        def noted(
            index: torch.Tensor, evidence: torch.Tensor, weight: torch.Tensor | None = None
        ) -> None:
            seen.append(evidence.new_ones(()) if weight is None else weight.mean())
            observe(index, evidence, weight)

        posterior.observe = noted  # type: ignore[method-assign]
        beliefs.append(posterior.mean().cpu())
    with StopSignal(print) as stop:
        for _ in range(config.epochs):
            trainer.train_epoch(NoTracker(), stop)
            trainer.history.append(trainer.end_epoch())
            if beliefs:
                beliefs.append(posterior.mean().cpu())
                weights.append(float(torch.stack(seen).mean()))
                seen.clear()
    trainer.close()
    return trainer, beliefs, weights


def draw(ours: Trainer, theirs: Trainer, beliefs: torch.Tensor, weights: list[float]) -> Figure:
    """Four panels from the beliefs (T+1,N,K) of `ours` and the histories of both."""
    given = ours.labels.cpu()
    clean = torch.as_tensor(ours.dataset.train.clean_labels)
    rows, wrong = torch.arange(len(given)), given != clean
    of_given, of_true = beliefs[:, rows, given], beliefs[:, rows, clean]  # (T+1,N)
    left = ours.monitor.left_epoch.cpu() + 1
    epochs = np.arange(len(beliefs))
    figure = Figure(figsize=(10, 7), layout="constrained")
    one, two, three, four = figure.subplots(2, 2).flat

    overridden = rows[wrong & (left > 0) & (of_true[-1] > 0.5)]
    kept = rows[~wrong & (left == 0)][0]
    missed = rows[wrong & (left == 0)]
    if len(overridden):  # none in a short run
        typical = overridden[(left[overridden] - left[overridden].float().median()).abs().argmin()]
        one.plot(epochs, of_given[:, typical], color=ORANGE, label="wrong label: belief in it")
        one.plot(
            epochs, of_true[:, typical], color=BLUE, label="the same sample: in its true class"
        )
    one.plot(epochs, of_given[:, kept], color=GREEN, label="right label: belief in it")
    if len(missed):
        one.plot(
            epochs, of_given[:, missed[0]], color=GREY, ls="--", label="wrong label, not found"
        )
    one.set(title="the belief of single samples", ylabel="posterior mean", ylim=(0, 1.02))

    for part, colour, name in (
        (~wrong, GREEN, "label right"),
        (wrong, ORANGE, "label wrong"),
    ):
        middle, low, high = (of_true[:, part].quantile(q, dim=1) for q in (0.5, 0.25, 0.75))
        two.plot(
            epochs, middle, color=colour, label=f"belief in the true class, {name} (quartiles)"
        )
        two.fill_between(epochs, low, high, color=colour, alpha=0.2, lw=0)
    two.plot(epochs[1:], weights, color=GREY, ls=":", label="mean share of a whole visit")
    two.set(title="all samples", ylim=(0, 1.02))

    options = ours.config.options
    bins = np.arange(0.5, len(beliefs) + 0.5)
    three.hist(left[wrong & (left > 0)], bins, color=ORANGE, label="label wrong")
    three.hist(left[~wrong & (left > 0)], bins, color=GREEN, label="label right", alpha=0.8)
    earliest = override_time(float(options["prior_strength"]), float(options["discount"]))
    three.axvline(
        earliest, color="black", lw=1, label=f"earliest: override time, {earliest} visits"
    )
    never = int((left[wrong] == 0).sum())
    three.set(
        title=f"when belief left the label ({never} of {int(wrong.sum())} wrong ones: never)",
        ylabel="samples",
    )

    for run, colour in ((ours, BLUE), (theirs, "black")):
        name = run.config.method
        table = {
            key: [row[key] for row in run.history]
            for key in ("test_accuracy", "memorised_fraction")
        }
        four.plot(epochs[1:], table["test_accuracy"], color=colour, label=f"{name}: test accuracy")
        four.plot(
            epochs[1:],
            table["memorised_fraction"],
            color=colour,
            ls=":",
            label=f"{name}: wrong labels memorised",
        )
    four.set(title="test accuracy and memorisation", ylim=(0, 1.02))
    for axes in (one, two, three, four):
        axes.set_xlabel("epoch")
        axes.legend(fontsize=7, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def table(
    ours: Trainer, theirs: Trainer, beliefs: torch.Tensor, weights: list[float]
) -> list[dict[str, Any]]:
    given = ours.labels.cpu()
    clean = torch.as_tensor(ours.dataset.train.clean_labels)
    of_true = beliefs[1:, torch.arange(len(given)), clean]
    about = {
        "recipe": ours.config.recipe,
        "seed": ours.config.seed,
        "samples": len(given),
        "pixels_verified": ours.dataset.notes["pixels_verified"],
    }
    return [
        {
            **about,
            "epoch": epoch + 1,
            "belief_in_true_class_label_right": float(of_true[epoch][given == clean].mean()),
            "belief_in_true_class_label_wrong": float(of_true[epoch][given != clean].mean()),
            "visit_weight": weights[epoch],
            **{
                f"{run.config.method}_{key}": run.history[epoch][key]
                for run in (ours, theirs)
                for key in ("test_accuracy", "memorised_fraction")
            },
        }
        for epoch in range(len(weights))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="without suffix")
    known, settings = parser.parse_known_args()
    ours, beliefs, weights = trained(load_config(settings))
    theirs, _, _ = trained(load_config([*settings, "method=ce"]))
    stacked = torch.stack(beliefs)
    rows = table(ours, theirs, stacked, weights)
    short = [
        {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows
    ]
    write_csv(known.out.with_suffix(".csv"), short, ours.device)
    with matplotlib.rc_context({"svg.hashsalt": "noisybsd", "font.size": 9}):
        figure = draw(ours, theirs, stacked, weights)
        figure.savefig(known.out.with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
