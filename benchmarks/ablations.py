"""What each part of the method is worth: variants of `bsd_plus`, one change each, in one table.

    python benchmarks/ablations.py --runs runs/ablations --jobs 2 --out results/ablations [key=value …]

Every variant changes one thing of a recipe and is trained on each data set with each seed, in a process of
its own; key=value holds for all of them (data.root=DIR). Runs that are finished are not repeated: the same
command continues. OUT.csv has a row a run, OUT.md the means and the paired differences to the recipe as it
is. Ideas that are not in the product are the classes below: each shows what it takes to try one without
touching the package.

--variants, --data and --seeds choose some; --list says which there are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from common import Row, rounded, write_csv
from torch import Tensor

from noisybsd import sweep, train, training
from noisybsd.compare.sections import paired_difference
from noisybsd.config import load_config
from noisybsd.engine import trainer
from noisybsd.methods.bsd import PosteriorTargets
from noisybsd.methods.parts import Batch, Task, cross_entropy
from noisybsd.methods.plain import CrossEntropy
from noisybsd.methods.posterior import Posterior
from noisybsd.methods.registry import LOSSES, TARGET_RULES
from noisybsd.models.networks import Network

ALWAYS = ("tracking.wandb=disabled", "device=cpu")
DIGITS = "recipe=digits_sym40"
DATA = {
    "digits, symmetric 80 %": (DIGITS, "noise.name=symmetric", "noise.rate=0.8"),
    "digits, asymmetric 40 %": (DIGITS, "noise.name=asymmetric", "noise.rate=0.4"),
    "digits, symmetric 50 %": (DIGITS, "noise.name=symmetric", "noise.rate=0.5"),
    "digits, symmetric 20 %": (DIGITS, "noise.name=symmetric", "noise.rate=0.2"),
    "CIFAR-10N worst, 4,000 images": ("recipe=small_cifar10n",),
    "digits, long-tailed, symmetric 50 %": (  # made by longtail.py
        *(DIGITS, "data.name=own", "data.root=build/longtail", "data.size=8"),
        *("noise.name=symmetric", "noise.rate=0.5"),
    ),
}


# --- ideas that are not in the product ---------------------------------------------------------------


class AfterTheLoss(PosteriorTargets):
    """A prediction enters the belief after the step that learns from it, not before."""

    def observe(self, index: Tensor, probs: Tensor) -> None:
        self.pending = index, probs

    def targets(self, index: Tensor) -> Tensor:
        targets = super().targets(index)
        super().observe(*self.pending)
        return targets


class Delayed(PosteriorTargets):
    """Nothing is observed in the first five epochs."""

    waiting = False

    def start_epoch(self, epoch: int) -> None:
        super().start_epoch(epoch)
        self.waiting = epoch < 5

    def observe(self, index: Tensor, probs: Tensor) -> None:
        if not self.waiting:
            super().observe(index, probs)


class AutomaticC(PosteriorTargets):
    """After three epochs c of every sample becomes 2 c a, a its neighbours' belief in its label.

    Where all neighbours agree the label stands longer, where none does it goes at once.
    """

    def __init__(self, task: Task, *, prior_strength: float = 8.0, discount: float = 0.8):
        super().__init__(task, prior_strength=prior_strength, discount=discount)
        self.neighbour_weight = 0.0  # they are no evidence
        self.register_buffer("labels", task.labels, persistent=False)
        self.register_buffer("told", torch.zeros((), dtype=torch.bool))

    def observe_neighbours(self, votes: Tensor) -> None:
        if not self.told:
            assert isinstance(self.posterior, Posterior)
            given = self.labels[:, None]
            mass = self.posterior.alpha.gather(1, given) * 2 * votes.gather(1, given)
            self.posterior.alpha.scatter_(1, given, mass.clamp_min(1e-3))
            self.told.fill_(True)


class EmaSensor(PosteriorTargets):
    """The network's moving average makes the observations, of the same views."""

    trainer: ClassVar[trainer.Trainer]
    inputs: ClassVar[Tensor]

    @classmethod
    def note(cls, network: Network, arguments: tuple[Tensor]) -> None:
        cls.inputs = arguments[0]

    @torch.no_grad()
    def observe(self, index: Tensor, probs: Tensor) -> None:
        assert self.trainer.ema is not None
        logits, _ = self.trainer.ema.network.eval()(self.inputs)
        super().observe(index, logits.unflatten(0, (len(probs), -1)).softmax(dim=-1))


class EmaSensorTrainer(trainer.Trainer):
    def __init__(self, *args: Any):
        super().__init__(*args)
        EmaSensor.trainer = self
        self.network.register_forward_pre_hook(EmaSensor.note)


class WeakView(CrossEntropy):
    """The strong view is for the contrastive term alone."""

    def forward(self, batch: Batch) -> Tensor:
        return cross_entropy(batch.logits[0], batch.targets)


class StrongView(CrossEntropy):
    """The weak view observes; the classifier learns from the strong one alone."""

    def forward(self, batch: Batch) -> Tensor:
        return cross_entropy(batch.logits[1], batch.targets)


class MixupBeside(CrossEntropy):
    """Mixed images, with targets mixed likewise, beside the plain ones: 12 passes instead of 6."""

    mixup = "beside"

    def forward(self, batch: Batch) -> Tensor:
        assert batch.mixup is not None
        plain, mixed = batch.logits.chunk(2)
        targets = batch.mixup(batch.targets)
        return cross_entropy(plain, batch.targets) + cross_entropy(mixed, targets)


class MatchedPrior(CrossEntropy):
    """+ KL(labels' histogram || mean prediction of the batch), as in Tanaka et al. 2018, equation 4."""

    weight = 1.0

    def __init__(self, task: Task):
        super().__init__(task)
        counts = torch.bincount(task.labels, minlength=task.num_classes)
        self.register_buffer("prior", counts.clamp_min(1) / len(task.labels))

    def forward(self, batch: Batch) -> Tensor:
        mean = batch.logits.softmax(dim=-1).mean(dim=(0, 1))
        divergence = (self.prior * (self.prior.log() - mean.clamp_min(1e-6).log())).sum()
        return super().forward(batch) + self.weight * divergence


def with_constants(**constants: Any) -> type[PosteriorTargets]:
    """The rule with other values of its class's constants."""
    return type("Variant", (PosteriorTargets,), constants)


SOFT_TARGETS = {"TARGET_TEMPERATURE": 1.0}
TO_THE_END = {"SOFTENS": (1.0, 2.0)}  # temperatures never rise
CONSTANTS: dict[str, dict[str, Any]] = {
    "worth_by_predictions": {"EVIDENCE_SHARE": 0.0},
    "worth_by_evidence": {"EVIDENCE_SHARE": 1.0},
    "t_1": {"EVIDENCE_TEMPERATURE": 1.0},
    "t_0.5": {"EVIDENCE_TEMPERATURE": 0.5},
    "t_0.33": {"EVIDENCE_TEMPERATURE": 0.33},
    "as_believed": SOFT_TARGETS,
    "targets_0.1": {"TARGET_TEMPERATURE": 0.1},
    "sharp_to_the_end": TO_THE_END,
    "as_it_was": {"EVIDENCE_TEMPERATURE": 0.33, **SOFT_TARGETS, **TO_THE_END},
}
TARGET_RULES |= {name: with_constants(**values) for name, values in CONSTANTS.items()}
TARGET_RULES |= {
    "automatic_c": AutomaticC,
    "ema_sensor": EmaSensor,
    "after_the_loss": AfterTheLoss,
    "delayed": Delayed,
}
LOSSES |= {
    "matched_prior": MatchedPrior,
    "mixup_beside": MixupBeside,
    "strong_view": StrongView,
    "weak_view": WeakView,
}


# --- the variants -------------------------------------------------------------------------------------


BASE = "the recipe as it is"
VARIANTS: dict[str, tuple[str, ...]] = {
    BASE: (),
    "cross-entropy": ("method=ce",),
    "selc": ("method=selc",),
    # the recipe's views without its targets
    "the given labels": ("targets=labels",),
    "the given labels, no contrastive term": ("targets=labels", "contrastive.name=none"),
    "the paper's recursion": ("method=bsd_supcon",),
    "the label in the prior alone": ("options.label_evidence=false",),
    "labels' worth by predictions": ("targets=worth_by_predictions",),
    "labels' worth by evidence alone": ("targets=worth_by_evidence",),
    # what keeps all classes alive
    "not aligned": ("options.align=false",),
    "matched prior instead": ("options.align=false", "loss=matched_prior"),
    # how long the prior lasts: 3 or 9 visits instead of 5; how long evidence does, at 5
    "c = 3": ("options.prior_strength=3",),
    "c = 25": ("options.prior_strength=25",),
    "c = 5, gamma = 0.95": ("options.prior_strength=5", "options.discount=0.95"),
    "c = 30, gamma = 0.5": ("options.prior_strength=30", "options.discount=0.5"),
    "automatic c": ("targets=automatic_c", "neighbours.weight=1", "neighbours.start_epoch=3"),
    # how sharp evidence is
    "T = 1": ("targets=t_1",),
    "T = 0.5": ("targets=t_0.5",),
    "T = 0.33": ("targets=t_0.33",),
    "targets as they are believed": ("targets=as_believed",),
    "sharp to the end": ("targets=sharp_to_the_end",),
    "targets at T = 0.1": ("targets=targets_0.1",),
    "as it was: label forgotten, soft targets": (
        *("targets=as_it_was", "options.label_evidence=false", "options.prior_strength=25"),
    ),
    # what is observed, and when
    "whole visits": ("options.weigh_visits=false",),
    "the weight average observes": ("targets=ema_sensor",),
    "observed after the loss": ("targets=after_the_loss",),
    "observed from epoch 6 on": ("targets=delayed",),
    "neighbours, kappa = 1": ("neighbours.weight=1",),
    # the contrastive half, and the views
    "no contrastive term": ("contrastive.name=none",),
    "simclr": ("contrastive.name=simclr",),
    "contrastive weight 0.3": ("contrastive.weight=0.3",),
    "contrastive weight 3": ("contrastive.weight=3",),
    "one view": ("method=bsd_plus_one_view",),
    "classified: weak view only": ("loss=weak_view",),
    "classified: strong view only": ("loss=strong_view",),
    "mixup": ("loss=mixup_beside", "augment.mixup=1"),
}


# --- the table ----------------------------------------------------------------------------------------

COLUMNS: dict[str, tuple[str, Callable[[float], float]]] = {
    "test_accuracy_last": ("accuracy %", lambda x: 100 * x),
    "test_ece_last": ("ECE", lambda x: x),
    "label_correction_accuracy": ("corrected %", lambda x: 100 * x),
    "noise_detection_auroc": ("AUROC", lambda x: x),
}


def rows_of(runs: list[Ablation]) -> list[Row]:
    rows = []
    for run in runs:
        if run.finished:
            results = json.loads((run.directory / "results.json").read_text())
            rows.append(
                {"data": run.data, "variant": run.variant, "seed": run.seed}
                | {key: rounded(results[key], 5) for key in COLUMNS}
                | {"network_passes": results["network_passes"]}
                | {"run_commit": results["git_commit"]}
            )
    return rows


def write_markdown(path: Path, rows: list[Row], settings: list[str]) -> None:
    lines = [
        "Variants of `bsd_plus`, one change each. Last epoch, mean ± sample standard deviation over "
        "seeds; in brackets the paired difference",
        "of the accuracy to the recipe as it is, in points, with its 95 % t-interval, not corrected for "
        "the number of comparisons.",
        f"Made by benchmarks/ablations.py, from {path.with_suffix('.csv').name}; runs of commit "
        + ", ".join(dict.fromkeys(row["run_commit"][:7] for row in rows))
        + f"; for all of them {', '.join([*ALWAYS, *settings])}.",
    ]
    for data in dict.fromkeys(row["data"] for row in rows):
        here = [row for row in rows if row["data"] == data]
        base = {r["seed"]: 100 * r["test_accuracy_last"] for r in here if r["variant"] == BASE}
        lines += ["", f"## {data} ({', '.join(DATA[data])})", ""]
        lines.append("| variant | n | " + " | ".join(n for n, _ in COLUMNS.values()) + " |")
        lines.append("|---|---:|" + "---:|" * len(COLUMNS))
        for variant in dict.fromkeys(row["variant"] for row in here):
            mine = [row for row in here if row["variant"] == variant]
            cells = []
            for key, (_, scale) in COLUMNS.items():
                values = [scale(row[key]) for row in mine]
                digits = 2 if key == "test_accuracy_last" or "correction" in key else 4
                spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.{digits}f}{spread}")
            paired = paired_difference(
                [
                    100 * row["test_accuracy_last"] - base[row["seed"]]
                    for row in mine
                    if row["seed"] in base and variant != BASE
                ]
            )
            if paired is not None and paired.low is not None and paired.high is not None:
                cells[0] += f" ({paired.mean:+.1f} [{paired.low:+.1f}, {paired.high:+.1f}])"
            lines.append(f"| {variant} | {len(mine)} | " + " | ".join(cells) + " |")
    path.write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class Ablation(sweep.Run):
    """A run of this file's trainer, which knows the ideas."""

    data: str
    variant: str
    seed: int

    def command(self) -> list[str]:
        return [sys.executable, __file__, "--one", *self.arguments, f"run.dir={self.directory}"]


def ablation(runs: Path, data: str, variant: str, seed: int, settings: list[str]) -> Ablation:
    arguments = (*DATA[data], *VARIANTS[variant], f"seed={seed}", *ALWAYS)
    plain = f"{data} {variant}".replace(" %", "")
    name = "".join(c if c.isalnum() else "-" for c in plain)
    return Ablation((*arguments, *settings), runs / f"{name}-{seed}", data, variant, seed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--out", type=Path, help="without suffix; default: only run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--variants", default="all", help="names, separated by semicolons")
    parser.add_argument("--data", default="all", help="names, separated by semicolons")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--list", action="store_true", help="names of variants and data")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    known, settings = parser.parse_known_args()
    if known.one:
        training.Trainer = EmaSensorTrainer if "targets=ema_sensor" in settings else trainer.Trainer
        sys.exit(train.main(settings))
    if known.list:
        print("\n".join(["variants:", *VARIANTS, "", "data:", *DATA]))
        return
    variants, data = (
        list(table) if asked == "all" else [name.strip() for name in asked.split(";")]
        for asked, table in ((known.variants, VARIANTS), (known.data, DATA))
    )
    if unknown := {*variants, *data} - {*VARIANTS, *DATA}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; --list says what there is")
    runs = [
        ablation(known.runs, name, variant, int(seed), settings)
        for name in data
        for variant in variants
        for seed in known.seeds.split(",")
    ]
    # a variant that these settings forbid has no record: it is to fail alone, when its turn comes
    recorded = [run for run in runs if (run.directory / "config.yaml").exists()]
    if mistakes := [
        line
        for run in recorded
        for line in sweep.another_configuration(run, load_config(run.arguments), "--runs")
    ]:
        parser.error("\n".join(mistakes))
    todo = [run for run in runs if not run.finished]
    if busy := [run.name for run in todo if run.busy]:
        sys.exit(f"another process trains {', '.join(busy)}")
    if sweep.run_here(todo, known.jobs, [], lambda line: print(line, flush=True)):
        sys.exit("stopped; the same command continues")
    rows = rows_of(runs)
    if known.out is not None:
        write_csv(known.out.with_suffix(".csv"), rows)
        write_markdown(known.out.with_suffix(".md"), rows, settings)
    if len(rows) < len(runs):
        sys.exit(f"{len(runs) - len(rows)} of {len(runs)} runs failed")


if __name__ == "__main__":
    main()
