"""What each part of the method is worth: variants of `bsd_supcon` on digits, in one table.

    python benchmarks/ablations.py --runs runs/ablations --jobs 2 --out results/ablations

Every variant changes one thing of recipe=digits_sym40 and is trained on each noise with each seed, in a
process of its own. Runs that are finished are not repeated: the same command continues. OUT.csv has a row
a run, OUT.md the means and the paired differences to the recipe as it is. Ideas that are not in the
product are the classes below: each shows what it takes to try one without touching the package.

--variants, --noises and --seeds choose some; --list says which there are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from common import Row, rounded, write_csv
from torch import Tensor

from noisybsd import objectives, train, trainer
from noisybsd.compare import paired_difference
from noisybsd.networks import Network
from noisybsd.objectives import CrossEntropy, PosteriorTargets
from noisybsd.parts import Batch, Task, cross_entropy

NOISES = {
    "symmetric 80 %": ("noise.name=symmetric", "noise.rate=0.8"),
    "asymmetric 40 %": ("noise.name=asymmetric", "noise.rate=0.4"),
    "symmetric 20 %": ("noise.name=symmetric", "noise.rate=0.2"),
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
        self.waiting = epoch < 5

    def observe(self, index: Tensor, probs: Tensor) -> None:
        if not self.waiting:
            super().observe(index, probs)


class AlignedToBelief(PosteriorTargets):
    """Aligned towards the running mean of the belief, which starts as the labels' histogram."""

    def targets(self, index: Tensor) -> Tensor:
        targets = super().targets(index)
        assert self.align is not None
        self.align.histogram.lerp_(targets.mean(dim=0), 0.02)
        return targets


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
        histogram = torch.bincount(task.labels, minlength=task.num_classes).float()
        self.register_buffer("prior", histogram / histogram.sum())

    def forward(self, batch: Batch) -> Tensor:
        mean = batch.logits.softmax(dim=-1).mean(dim=(0, 1))
        divergence = (self.prior * (self.prior.log() - mean.clamp_min(1e-6).log())).sum()
        return super().forward(batch) + self.weight * divergence


# --- the variants -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """One change of the recipe: settings, or a part put in place of the product's."""

    settings: tuple[str, ...] = ()
    rule: type[PosteriorTargets] | None = None
    loss: type[CrossEntropy] | None = None
    trainer: type[trainer.Trainer] | None = None


def keys(*settings: str) -> Variant:
    return Variant(settings)


BASE = "the recipe as it is"
VARIANTS: dict[str, Variant] = {
    BASE: Variant(),
    "cross-entropy": keys("method=ce"),
    "the paper's recursion": keys(
        "posterior.temperature=1", "posterior.agreement_temperature=null", "posterior.align=false"
    ),
    # what keeps all classes alive
    "not aligned": keys("posterior.align=false"),
    "aligned to the belief": Variant(rule=AlignedToBelief),
    "matched prior instead": Variant(("posterior.align=false",), loss=MatchedPrior),
    # how long the label lasts: 5 or 13 visits instead of 9; how long evidence does, at 8
    "c = 10": keys("posterior.prior_strength=10"),
    "c = 80": keys("posterior.prior_strength=80"),
    "c = 10, gamma = 0.95": keys("posterior.prior_strength=10", "posterior.discount=0.95"),
    "c = 477, gamma = 0.5": keys("posterior.prior_strength=477", "posterior.discount=0.5"),
    # how sharp evidence is
    "T = 1": keys("posterior.temperature=1"),
    "T = 0.5": keys("posterior.temperature=0.5"),
    # what is observed, and when
    "whole visits": keys("posterior.agreement_temperature=null"),
    "the views' mean is observed": keys("posterior.observe=mean"),
    "the weight average observes": Variant(rule=EmaSensor, trainer=EmaSensorTrainer),
    "observed after the loss": Variant(rule=AfterTheLoss),
    "observed from epoch 6 on": Variant(rule=Delayed),
    "neighbours, kappa = 1": keys("neighbours.weight=1"),
    # the contrastive half, and the views
    "no contrastive term": keys("contrastive.name=none"),
    "simclr": keys("contrastive.name=simclr"),
    "contrastive weight 0.3": keys("contrastive.weight=0.3"),
    "contrastive weight 3": keys("contrastive.weight=3"),
    "contrastive warm-up, 10 epochs": keys("contrastive.warmup_epochs=10"),
    "one view": keys("method=bsd"),
    "classified: weak view only": Variant(loss=WeakView),
    "classified: strong view only": Variant(loss=StrongView),
    "mixup": Variant(("augment.mixup=1",), loss=MixupBeside),
}


def run_one(name: str, settings: list[str]) -> int:
    """Train one variant in this process."""
    variant = VARIANTS[name]
    if variant.rule is not None:
        objectives.TARGET_RULES["posterior"] = variant.rule
    if variant.loss is not None:
        objectives.LOSSES["cross_entropy"] = variant.loss
    if variant.trainer is not None:
        train.Trainer = variant.trainer  # type: ignore[misc]
    return train.main(settings)


# --- the table ----------------------------------------------------------------------------------------

COLUMNS: dict[str, tuple[str, Callable[[float], float]]] = {
    "test_accuracy_last": ("accuracy %", lambda x: 100 * x),
    "test_ece_last": ("ECE", lambda x: x),
    "label_correction_accuracy": ("corrected %", lambda x: 100 * x),
    "noise_detection_auroc": ("AUROC", lambda x: x),
}


def rows_of(runs: Path, variants: list[str], noises: list[str], seeds: list[int]) -> list[Row]:
    rows = []
    for noise in noises:
        for variant in variants:
            for seed in seeds:
                file = directory(runs, variant, noise, seed) / "results.json"
                if file.exists():
                    results = json.loads(file.read_text())
                    rows.append(
                        {"noise": noise, "variant": variant, "seed": seed}
                        | {key: rounded(results[key], 5) for key in COLUMNS}
                        | {"network_passes": results["network_passes"]}
                        | {"run_commit": results["git_commit"]}
                    )
    return rows


def write_markdown(path: Path, rows: list[Row]) -> None:
    lines = [
        "Variants of `bsd_supcon`, one change each: scikit-learn's digits, small_cnn, 60 epochs, batch 64 "
        "(recipe=digits_sym40). Last",
        "epoch, mean ± sample standard deviation over seeds; in brackets the paired difference of the "
        "accuracy to the recipe as it is, in points,",
        "with its 95 % t-interval, not corrected for the number of comparisons. Made by "
        "benchmarks/ablations.py, from ablations.csv.",
    ]
    for noise in dict.fromkeys(row["noise"] for row in rows):
        here = [row for row in rows if row["noise"] == noise]
        base = {r["seed"]: 100 * r["test_accuracy_last"] for r in here if r["variant"] == BASE}
        lines += ["", f"## {noise}", ""]
        lines.append("| variant | n | " + " | ".join(n for n, _ in COLUMNS.values()) + " |")
        lines.append("|---|---:|" + "---:|" * len(COLUMNS))
        for variant in dict.fromkeys(row["variant"] for row in here):
            mine = [row for row in here if row["variant"] == variant]
            cells = []
            for key, (_, scale) in COLUMNS.items():
                values = [scale(row[key]) for row in mine]
                digits = 2 if key == "test_accuracy_last" or "correction" in key else 4
                spread = statistics.stdev(values) if len(values) > 1 else float("nan")
                cells.append(f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}")
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


def directory(runs: Path, variant: str, noise: str, seed: int) -> Path:
    plain = f"{noise}, {variant}".replace(" %", "")
    return runs / f"{''.join(c if c.isalnum() else '-' for c in plain)}-{seed}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--out", type=Path, help="without suffix; default: only run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--variants", default="all", help="names, separated by semicolons")
    parser.add_argument("--noises", default="all", help="names, separated by semicolons")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--list", action="store_true", help="names of variants and noises")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    known, settings = parser.parse_known_args()
    if known.one:
        sys.exit(run_one(known.one, settings))
    if known.list:
        print("\n".join(["variants:", *VARIANTS, "", "noises:", *NOISES]))
        return
    variants, noises = (
        list(table) if asked == "all" else [name.strip() for name in asked.split(";")]
        for asked, table in ((known.variants, VARIANTS), (known.noises, NOISES))
    )
    seeds = [int(seed) for seed in known.seeds.split(",")]
    if unknown := {*variants, *noises} - {*VARIANTS, *NOISES}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; --list says what there is")

    def start(noise: str, variant: str, seed: int) -> None:
        place = directory(known.runs, variant, noise, seed)
        if (place / "results.json").exists():
            return
        place.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, __file__, "--one", variant, "recipe=digits_sym40", *NOISES[noise]),
            *(f"seed={seed}", f"run.dir={place}", "tracking.wandb=disabled", "device=cpu"),
            *(VARIANTS[variant].settings),
        ]
        with (place / "output.txt").open("w") as output:
            code = subprocess.run(command, stdout=output, stderr=output).returncode
        print(
            f"{noise}, {variant}, seed {seed}: {'done' if code == 0 else f'exit {code}'}",
            flush=True,
        )

    with ThreadPoolExecutor(known.jobs) as pool:
        todo = [(n, v, s) for n in noises for v in variants for s in seeds]
        list(pool.map(lambda task: start(*task), todo))
    rows = rows_of(known.runs, variants, noises, seeds)
    if known.out is not None:
        write_csv(known.out.with_suffix(".csv"), rows)
        write_markdown(known.out.with_suffix(".md"), rows)


if __name__ == "__main__":
    main()
