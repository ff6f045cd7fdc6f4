"""A screen of ideas: variants of `bsd_plus`, one change each, with paired seeds, in one table.

    python benchmarks/screen.py --runs runs/screen --jobs 2 --out results/screen [key=value …]

Every variant changes one thing of a recipe and is trained on each data set with each seed, in a process of
its own; key=value holds for all of them (data.root=DIR). Runs that are finished are not repeated: the same
command continues. OUT.csv has a row a run, OUT.md the means and the paired differences to the recipe as it
is. Ideas that are not in the product are the classes below: each shows what it takes to try one without
touching the package.

--variants, --data and --seeds choose some; --list says which there are. The data sets whose names begin with
"all of CIFAR-10N" take a quarter of an hour and more a run on one CPU core, or a minute on a GPU; "half of
CIFAR-10N" takes half as long.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from common import ABOUT, Row, rounded, write_csv
from torch import Tensor, nn
from torchvision import transforms

from noisybsd import launch, sweep, train, training
from noisybsd.compare.sections import paired_difference
from noisybsd.config import load_config
from noisybsd.data.augment import RandAugment
from noisybsd.data.views import VIEWS, randaugment
from noisybsd.engine import trainer
from noisybsd.errors import UserError
from noisybsd.methods.bsd import PosteriorTargets, sharpened
from noisybsd.methods.contrastive import CONTRASTIVE
from noisybsd.methods.parts import Batch, Task, cross_entropy, one_hot, zeros
from noisybsd.methods.plain import CrossEntropy
from noisybsd.methods.posterior import Posterior
from noisybsd.methods.registry import LOSSES, TARGET_RULES
from noisybsd.models.networks import Network
from noisybsd.runs.directory import is_place

ALWAYS = ("tracking.wandb=disabled", "device=cpu")
UNSAID = ("device", "data.verify")  # the table says the hardware
DIGITS = "recipe=digits_sym40"
# all epochs: a third of them misorders, and half of the images does not (results/cifar10n_cpu.md)
CPU = ("recipe=cifar10n_worst_cpu",)
GPU = ("recipe=cifar10n_worst_fast",)
# target rules alone: a linear head on features that no run changes. Its order is not that of whole runs.
FROZEN = (
    *("recipe=own_quick", "data.name=cifar10n", "data.labels=worst", "network.size=112"),
    *("epochs=20", "batch_size=256"),
)
DATA = {
    "all of CIFAR-10N worst, 16 epochs, width 64": GPU,
    "all of CIFAR-10N worst, 16 epochs, width 16": CPU,
    "half of CIFAR-10N worst, 16 epochs, width 16": (*CPU, "data.limit=25000"),
    # what a long run shows and a short one does not: memorisation, and what views teach in time
    "half of CIFAR-10N worst, 50 epochs, width 16": (*CPU, "data.limit=25000", "epochs=50"),
    "all of CIFAR-10N worst, linear head on frozen features": FROZEN,
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


class FadingLabel(PosteriorTargets):
    """The given label is learned at first, and fades into what prediction and label say together.

    Over the first `FADES` of the run the target goes from the label to q ~ a^(1/T) P(g | k), and T from 1 to
    `LAST_TEMPERATURE` over the whole run. No belief is kept from visit to visit.
    """

    FADES, LAST_TEMPERATURE = 0.8, 0.5

    def start_epoch(self, epoch: int) -> None:
        if not hasattr(self, "faded"):  # at first: as if half of the labels were right
            assert self.label_noise is not None
            joint = self.label_noise.joint
            joint.copy_(0.5 * self.label_noise.histogram.diag() + 0.5 * joint)
        done = epoch / self.epochs
        self.faded = min(1.0, done / self.FADES)
        self.temperature = 1 + (self.LAST_TEMPERATURE - 1) * done

    def observe(self, index: Tensor, probs: Tensor) -> None:
        assert isinstance(self.posterior, Posterior)
        evidence = sharpened(self._align(probs)[0], self.temperature)
        evidence = self._condition_on_label(index, evidence, probs[0])
        self.posterior.alpha.index_copy_(0, index, evidence)

    def targets(self, index: Tensor) -> Tensor:
        assert self.label_noise is not None
        given = one_hot(self.label_noise.labels[index], len(self.label_noise.joint))
        return given.lerp(self.posterior.mean(index), self.faded)


class PooledTarget(PosteriorTargets):
    """The target pools belief and prediction for the weak view, as the label report does at the end."""

    def observe(self, index: Tensor, probs: Tensor) -> None:
        super().observe(index, probs)
        self.prediction = probs[0] if self.alignment is None else self.alignment(probs[0])

    def targets(self, index: Tensor) -> Tensor:
        pool = (self.posterior.mean(index) * self.prediction).sqrt()
        return sharpened(pool / pool.sum(dim=1, keepdim=True), self.target_temperature)


class UniformAlignment(PosteriorTargets):
    """Predictions are divided by their running share, as if all classes were equally frequent."""

    def start_epoch(self, epoch: int) -> None:
        super().start_epoch(epoch)
        assert self.alignment is not None
        self.alignment.histogram.fill_(1 / len(self.alignment.histogram))


class BankGate(PosteriorTargets):
    """A sample counts as much as its neighbours agree with what is believed of it, after SSR.

    Its target is scaled by the neighbours' mean belief in the believed class over that in their favourite
    class. Source: Feng et al. 2022, arXiv 2111.11288, section 3.2, whose gate is 0 or 1.
    """

    def observe(self, index: Tensor, probs: Tensor) -> None:
        weight, self.neighbour_weight = self.neighbour_weight, 0.0  # neighbours are no evidence
        super().observe(index, probs)
        self.neighbour_weight = weight

    def targets(self, index: Tensor) -> Tensor:
        targets, votes = super().targets(index), self.votes[index]
        believed = votes.gather(1, targets.argmax(dim=1, keepdim=True))
        largest = votes.amax(dim=1, keepdim=True)
        # no neighbours were searched so far: every sample counts
        return targets * torch.where(largest > 0, believed / largest.clamp_min(1e-12), 1.0)


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
        trainer = self.trainer
        with torch.autocast(trainer.device.type, trainer.amp, enabled=trainer.amp is not None):
            logits, _ = trainer.ema.network.eval()(self.inputs)
        super().observe(index, logits.float().unflatten(0, (len(probs), -1)).softmax(dim=-1))


class FadingLabelEma(EmaSensor, FadingLabel):
    """Both: the weight average predicts, and the label fades."""


class EmaSensorTrainer(trainer.Trainer):
    """Shows `EmaSensor` what the network sees."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        EmaSensor.trainer = self
        self.network.register_forward_pre_hook(EmaSensor.note)


class AutoAugment(RandAugment):
    """CIFAR-10's learned policies: one of 25 pairs of operations for each image, each with its probability.

    The pairs and magnitudes are torchvision's (Cubuk et al. 2019, arXiv 1805.09501, table 7). As in
    `RandAugment` what moves pixels comes first, and outside of the image it reads the border.
    """

    BINS = 10

    table: Tensor

    def __init__(self) -> None:
        super().__init__(count=2)
        policy = transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10)
        space = policy._augmentation_space(self.BINS, (1, 1))  # translations as a share of the side
        self.pairs = [
            [self.as_drawn(*operation, space) for operation in p] for p in policy.policies
        ]
        self.register_buffer("table", torch.tensor(self.pairs), persistent=False)  # (25,2,4)

    @classmethod
    def as_drawn(
        cls, name: str, probability: float, bin: int | None, space: dict[str, Any]
    ) -> tuple[float, float, float, float]:
        """Number of the kind, its probability, and the magnitudes of `RandAugment` for either sign."""
        kind = "solarize" if name == "Invert" else re.sub("(?=[XY])", "_", name).lower()
        magnitudes, signed = space[name]
        size = 0.0 if bin is None else float(magnitudes[bin])  # inverted: above 0

        def drawn(x: float) -> float:
            if kind in cls.ENHANCE:  # x: the factor's distance from 1
                return (0.95 + x) / 0.9
            if kind.startswith("shear"):
                return (math.atan(x) / math.atan(0.3) + 1) / 2
            if kind in cls.MOVE:
                return (x / (30.0 if kind == "rotate" else 0.3) + 1) / 2
            return {"posterize": (x - 4) / 4, "solarize": x / 256}.get(kind, 0.0)

        return cls.KINDS.index(kind), probability, drawn(size), drawn(-size if signed else size)

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        drawn = torch.randint(len(self.table), batch_shape[:1], device=self.device)
        chosen = self.table[drawn]  # (B,2,4)
        applied, negative = torch.rand(2, *chosen.shape[:2], device=self.device)
        kind = torch.where(applied < chosen[..., 1], chosen[..., 0], 0.0).long()  # 0: identity
        return {
            "kind": kind,
            "magnitude": torch.where(negative < 0.5, chosen[..., 2], chosen[..., 3]),
        }


def autoaugment(size: int) -> nn.Module:
    """FixMatch's strong view, with AutoAugment in RandAugment's place."""
    crop, _, cutout = randaugment(size).children()
    return nn.Sequential(crop, AutoAugment(), cutout)


class WeakView(CrossEntropy):
    """The strong view is for the contrastive term alone."""

    def forward(self, batch: Batch) -> Tensor:
        return cross_entropy(batch.logits[0], batch.targets)


class StrongView(CrossEntropy):
    """The weak view observes; the classifier learns from the strong one alone."""

    def forward(self, batch: Batch) -> Tensor:
        return cross_entropy(batch.logits[1], batch.targets)


class RisingMask(CrossEntropy):
    """Classes whose probability rises are no negatives while the target is undecided, after DSS+.

    A class is left out of the softmax of both views where the prediction for the weak view is above its
    running mean, unless it is the target's favourite. Undecided: no class has 0.9 of the target.
    """

    MEAN, DECIDED = 0.3, 0.9

    mean: Tensor

    def __init__(self, task: Task):
        super().__init__(task)
        self.register_buffer("mean", zeros(task, task.num_classes))

    def forward(self, batch: Batch) -> Tensor:
        before, now = self.mean[batch.index], batch.logits[0].detach().softmax(dim=-1)
        self.mean.index_copy_(0, batch.index, before.lerp(now, self.MEAN))
        most, favourite = batch.targets.max(dim=1, keepdim=True)
        seen = before.sum(dim=1, keepdim=True) > 0
        left_out = (now > before) & seen & (most < self.DECIDED)
        left_out = left_out.scatter(1, favourite, False)
        targets = batch.targets.masked_fill(left_out, 0.0)
        targets = targets / targets.sum(dim=1, keepdim=True).clamp_min(1e-12)  # a probe's are zeros
        # -1e4 in place of -inf, which times a target of 0 is not a number
        return cross_entropy(batch.logits.masked_fill(left_out, -1e4), targets)


class MixupBeside(CrossEntropy):
    """Mixed images, with targets mixed likewise, beside the plain ones: 12 passes instead of 6."""

    mixup = "beside"

    def forward(self, batch: Batch) -> Tensor:
        assert batch.mixup is not None
        plain, mixed = batch.logits.chunk(2)
        targets = batch.mixup(batch.targets)
        return cross_entropy(plain, batch.targets) + cross_entropy(mixed, targets)


def supcon_by_agreement(z: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """SupCon whose negatives weigh as much as the targets disagree: exp(z_i z_j / tau) (1 - <y_i, y_j>)."""
    y = targets.repeat(2, 1)
    count = len(targets)
    agreement = (y @ y.T).clamp(0, 1)
    own = torch.arange(2 * count, device=z.device)
    agreement[own, own.roll(count)] = 1.0  # the other view of the image: a positive in full
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    weights = (1 - agreement).clamp_min(1e-3)
    weights[own, own.roll(count)] = 1.0
    partition = (logits + weights.log()).logsumexp(1)
    positives = agreement.fill_diagonal_(0)
    similarity = (positives * logits.nan_to_num(neginf=0.0)).sum(1) / positives.sum(1)
    return (partition - similarity).mean()


def no_negatives(z: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Two views of an image attract each other, and nothing repels: minus their cosine similarity."""
    first, second = z.chunk(2)
    return -(first * second).sum(1).mean()


def with_constants(**constants: Any) -> type[PosteriorTargets]:
    """The rule with other values of its class's constants."""
    return type("Variant", (PosteriorTargets,), constants)


CONSTANTS: dict[str, dict[str, Any]] = {
    "as_believed": {"TARGET_TEMPERATURE": 1.0},
    "sharp_to_the_end": {"SOFTENS": (1.0, 2.0)},  # temperatures never rise
}
TARGET_RULES |= {name: with_constants(**values) for name, values in CONSTANTS.items()}
TARGET_RULES |= {
    "ema_sensor": EmaSensor,
    "bank_gate": BankGate,
    "fading_label": FadingLabel,
    "fading_label_ema": FadingLabelEma,
    "pooled_target": PooledTarget,
    "uniform_alignment": UniformAlignment,
}
VIEWS["cifar_autoaugment"] = (VIEWS["cifar"][0], autoaugment)
CONTRASTIVE |= {"supcon_by_agreement": supcon_by_agreement, "no_negatives": no_negatives}
LOSSES |= {
    "mixup_beside": MixupBeside,
    "rising_mask": RisingMask,
    "strong_view": StrongView,
    "weak_view": WeakView,
}


# --- the variants -------------------------------------------------------------------------------------


BASE = "the recipe as it is"
NEAR = ("neighbours.k=200", "neighbours.weight=1", "neighbours.start_epoch=1")
VARIANTS: dict[str, tuple[str, ...]] = {
    BASE: (),
    "cross-entropy": ("method=ce",),
    "elr": ("method=elr",),
    "sop_plus": ("method=sop_plus",),
    # the recipe's views without its targets
    "the given labels": ("targets=labels",),
    "the given labels, no contrastive term": ("targets=labels", "contrastive.name=none"),
    "the paper's recursion": ("method=bsd_supcon",),
    # the target rule
    "the label in the prior alone": ("options.label_evidence=false",),
    "not aligned": ("options.align=false",),
    "aligned to equal classes": ("targets=uniform_alignment",),
    "whole visits": ("options.weigh_visits=false",),
    "no probes": ("options.probe=false",),
    "c = 2, gamma = 0.5": ("options.prior_strength=2", "options.discount=0.5"),
    "targets as they are believed": ("targets=as_believed",),
    "sharp to the end": ("targets=sharp_to_the_end",),
    "the label fades": ("targets=fading_label",),
    "the weight average observes": ("targets=ema_sensor",),
    "the target pools the prediction": ("targets=pooled_target",),
    "neighbours gate": ("targets=bank_gate", *NEAR),
    "neighbours as evidence": NEAR,
    "the label fades, the weight average observes": ("targets=fading_label_ema",),
    # the contrastive half, and the views
    "no contrastive term": ("contrastive.name=none",),
    "simclr": ("contrastive.name=simclr",),
    "contrastive weight 1": ("contrastive.weight=1",),
    "contrastive weight 0.1": ("contrastive.weight=0.1",),
    "negatives by disagreement": ("contrastive.name=supcon_by_agreement",),
    "no negatives": ("contrastive.name=no_negatives",),
    "one view": ("method=bsd_plus_one_view",),
    "classified: weak view only": ("loss=weak_view",),
    "classified: strong view only": ("loss=strong_view",),
    "randaugment": ("augment.name=cifar_randaugment",),
    "randaugment, contrastive weight 0.1": (
        "augment.name=cifar_randaugment",
        "contrastive.weight=0.1",
    ),
    "autoaugment, contrastive weight 0.1": (
        "augment.name=cifar_autoaugment",
        "contrastive.weight=0.1",
    ),
    "rising classes are no negatives": ("loss=rising_mask",),
    "mixup": ("loss=mixup_beside", "augment.mixup=4"),
}


# --- the table ----------------------------------------------------------------------------------------

COLUMNS: dict[str, tuple[str, Callable[[float], float]]] = {
    "test_accuracy_last": ("accuracy %", lambda x: 100 * x),
    "test_accuracy_ema_last": ("weight average %", lambda x: 100 * x),
    "test_ece_last": ("ECE", lambda x: x),
    "label_correction_accuracy": ("corrected %", lambda x: 100 * x),
    "noise_detection_auroc": ("AUROC", lambda x: x),
}


def rows_of(runs: list[Trial]) -> list[Row]:
    rows = []
    for run in runs:
        if run.finished:
            results = json.loads((run.directory / "results.json").read_text())
            rows.append(
                {"data": run.data, "variant": run.variant, "seed": run.seed, "settings": run.told}
                | {key: rounded(results[key], 5) for key in COLUMNS}
                | {"network_passes": results["network_passes"]}
                | {"run_hardware": results["hardware"], "run_commit": results["git_commit"]}
                | {"run_torch": results["versions"]["torch"]}
            )
    return rows


def rows_of_others(path: Path, rows: list[Row]) -> list[Row]:
    """The rows of an earlier table whose runs are not among these, in the order of data and variants."""
    if not path.exists():
        return rows
    with path.open(newline="", encoding="utf-8") as file:
        earlier = list(csv.DictReader(file))
    here = {(row["data"], row["variant"], row["seed"]) for row in rows}
    kept: list[Row] = []
    for row in earlier:
        number = {key: float(row[key]) for key in (*COLUMNS, "network_passes") if row[key]}
        row = {**row, **dict.fromkeys(COLUMNS), **number, "seed": int(row["seed"])}
        if (row["data"], row["variant"], row["seed"]) not in here:
            kept.append({"settings": ""} | {key: row[key] for key in row if key not in ABOUT})
    order = {name: place for place, name in enumerate([*DATA, *VARIANTS])}
    last = len(order)
    return sorted(
        [*rows, *kept],
        key=lambda row: (
            order.get(row["data"], last),
            order.get(row["variant"], last),
            row["seed"],
        ),
    )


def write_markdown(path: Path, rows: list[Row]) -> None:
    lines = [
        "Variants of `bsd_plus`, one change each. Last epoch, mean ± sample standard deviation over "
        "seeds; in brackets the paired difference",
        "of the accuracy to the recipe as it is, with the same seed on the same hardware, in points, with "
        "its 95 % t-interval (of two seeds or more),",
        "not corrected for the number of comparisons. Passes: network passes per sample and epoch. Whole "
        "visits, the paper's among them, are not",
        "counted for more in a short run either (docs/method.md, step 4).",
        f"Made by benchmarks/screen.py, from {path.with_suffix('.csv').name}.",
    ]
    for data in dict.fromkeys(row["data"] for row in rows):
        here = [row for row in rows if row["data"] == data]
        # other hardware or other settings are another experiment
        pair = ("seed", "settings", "run_hardware", "run_torch")
        base = {
            tuple(row[key] for key in pair): 100 * row["test_accuracy_last"]
            for row in here
            if row["variant"] == BASE
        }
        made = dict.fromkeys(
            f"{row['run_hardware']}, torch {row['run_torch']}, commit {row['run_commit'][:7]}"
            f"{'-dirty' * row['run_commit'].endswith('-dirty')}"
            for row in here
        )
        command = [*DATA.get(data, ()), *dict.fromkeys(row["settings"] for row in here)]
        lines += ["", f"## {data}", "", f"`{' '.join(command).strip()}`; {'; '.join(made)}.", ""]
        names = ["variant", "seeds", *(name for name, _ in COLUMNS.values()), "passes"]
        lines.append("| " + " | ".join(names) + " |")
        lines.append("|---|---|" + "---:|" * (len(COLUMNS) + 1))
        for variant in dict.fromkeys(row["variant"] for row in here):
            mine = [row for row in here if row["variant"] == variant]
            cells = []
            for key, (_, scale) in COLUMNS.items():
                values = [scale(row[key]) for row in mine]
                digits = 2 if "accuracy" in key else 4
                spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.{digits}f}{spread}")
            paired = paired_difference(
                [
                    100 * row["test_accuracy_last"] - base[tuple(row[key] for key in pair)]
                    for row in mine
                    if tuple(row[key] for key in pair) in base and variant != BASE
                ]
            )
            if paired is not None:
                interval = "" if paired.low is None else f" [{paired.low:+.1f}, {paired.high:+.1f}]"
                cells[0] += f" ({paired.mean:+.1f}{interval})"
            seeds = ", ".join(str(row["seed"]) for row in mine)
            passes = "/".join(dict.fromkeys(f"{row['network_passes']:g}" for row in mine))
            lines.append(f"| {variant} | {seeds} | " + " | ".join([*cells, passes]) + " |")
    path.write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class Trial(launch.Run):
    """A run of this file's trainer, which knows the ideas."""

    data: str
    variant: str
    seed: int
    told: str  # what the command line sets for all runs, without what says where things are

    def command(self) -> list[str]:
        return [sys.executable, __file__, "--one", *self.arguments, f"run.dir={self.directory}"]


def trial(runs: Path, data: str, variant: str, seed: int, settings: list[str]) -> Trial:
    arguments = (*DATA[data], *VARIANTS[variant], f"seed={seed}", *ALWAYS)
    plain = f"{data} {variant}".replace(" %", "")
    name = "".join(c if c.isalnum() else "-" for c in plain)
    keys = {each: each.split("=")[0] for each in settings}
    told = " ".join(each for each, key in keys.items() if not is_place(key) and key not in UNSAID)
    return Trial((*arguments, *settings), runs / f"{name}-{seed}", data, variant, seed, told)


def trials(
    runs: Path, data: list[str], variants: list[str], seeds: list[int], settings: list[str]
) -> list[Trial]:
    """Every variant on each data set with each seed, but those that are another one there, or the recipe."""
    found = []
    for name in data:
        known = [load_config(trial(runs, name, BASE, 0, settings).arguments)]
        different = []
        for variant in variants:
            # a variant that these settings forbid is to fail alone, when its turn comes
            with contextlib.suppress(UserError):
                config = load_config(trial(runs, name, variant, 0, settings).arguments)
                if variant != BASE and config in known:
                    continue
                known.append(config)
            different.append(variant)
        # one seed of all variants first: a screen that is cut short has compared them
        found += [trial(runs, name, each, seed, settings) for seed in seeds for each in different]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/screen"))
    parser.add_argument("--out", type=Path, help="without suffix; default: only run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; 0: only the table")
    parser.add_argument("--variants", default="all", help="names, separated by semicolons")
    parser.add_argument("--data", default="all", help="names, separated by semicolons")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--list", action="store_true", help="names of variants and data")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    known, settings = parser.parse_known_args()
    if known.one:
        training.Trainer = EmaSensorTrainer  # type: ignore[misc]
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
    seeds = [int(seed) for seed in known.seeds.split(",")]
    runs = trials(known.runs, data, variants, seeds, settings)
    # a variant that these settings forbid has no record: it is to fail alone, when its turn comes
    recorded = [run for run in runs if known.jobs and (run.directory / "config.yaml").exists()]
    if mistakes := [
        line
        for run in recorded
        for line in sweep.another_configuration(run, load_config(run.arguments), "--runs")
    ]:
        parser.error("\n".join(mistakes))
    todo = [run for run in runs if not run.finished and known.jobs > 0]
    if busy := [run.name for run in todo if run.busy]:
        sys.exit(f"another process trains {', '.join(busy)}")
    if launch.run_here(todo, known.jobs, [], lambda line: print(line, flush=True)):
        sys.exit("stopped; the same command continues")
    rows = rows_of(runs)
    if known.out is not None:
        table = rows_of_others(known.out.with_suffix(".csv"), rows)
        write_csv(known.out.with_suffix(".csv"), table)
        write_markdown(known.out.with_suffix(".md"), table)
    if known.jobs > 0 and len(rows) < len(runs):
        sys.exit(f"{len(runs) - len(rows)} of {len(runs)} runs failed")


if __name__ == "__main__":
    main()
