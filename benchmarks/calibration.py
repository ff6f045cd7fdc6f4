"""Which temperature suits finished runs, fitted in five ways on the images that data.calibration held out.

    python benchmarks/calibration.py runs/sweep/* --out results/calibration.csv

Columns:
    recipe, method, epochs      which runs
    seeds                       how many
    network                     weights, or average: their moving average
    images                      held out to calibrate on
    fit                         none: T = 1; noisy labels: as if they were right; likelihood: the product's;
                                accuracy: confidence equal to accuracy in 15 bins of equally many images, by
                                Penso and Goldberger 2024: the trace of M P^-1, with M the joint frequency of
                                prediction and given label; clean labels: the best to hope for
    matrix                      P as the belief has it, or as it is
    t_lowest, t_highest         T of the runs, in [0.25, 10]
    accuracy, ece, nll          on the test images, means over the runs
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from common import Row, rounded, write_csv
from torch import Tensor

from noisybsd.engine.calibration import HIGHEST, LOWEST, fit_temperature, transition
from noisybsd.engine.metrics import prediction_metrics
from noisybsd.engine.saved import load_run_config, load_trainer

BINS = 15
KEYS = ("recipe", "method", "epochs", "network", "fit", "matrix")
MEASURED = ("accuracy", "ece", "nll")


def by_accuracy(logits: Tensor, labels: Tensor, noise: Tensor, bins: int = BINS) -> float:
    """T that makes confidence and noise-corrected accuracy as equal as can be over bins of equal mass."""
    right = torch.linalg.inv(noise)[labels, logits.argmax(dim=1)]  # (M,), its mean is the accuracy

    def error(temperature: float) -> float:
        confidence = (logits.double() / temperature).softmax(dim=1).amax(dim=1)
        gap = (right - confidence)[confidence.argsort(stable=True)]
        return float(sum(part.sum().abs() for part in gap.tensor_split(bins)))

    return float(min(np.geomspace(LOWEST, HIGHEST, 371), key=error))


def rows_of(run: Path) -> Iterator[Row]:
    config = load_run_config(run, [])
    trainer = load_trainer(run, config)
    assert trainer is not None and trainer.dataset.calibration is not None
    train, split, belief = trainer.dataset.train, trainer.dataset.calibration, trainer.rule.belief()
    assert belief is not None and train.clean_labels is not None and split.clean_labels is not None
    seen, classes = trainer.monitor.visits > 0, trainer.num_classes
    clean, right = torch.from_numpy(split.clean_labels), torch.eye(classes, dtype=torch.float64)
    truth = F.one_hot(torch.from_numpy(train.clean_labels), classes)
    matrices = {
        "belief": transition(belief[seen], trainer.labels[seen]),
        "true": transition(truth, trainer.labels),
    }
    for suffix, network in trainer.networks().items():
        network.temperature = 1.0
        logits, _, given = trainer.predict(network, split)
        tested, _, labels = trainer.predict_test(network)
        fits = [
            ("none", None, 1.0),
            ("noisy labels", None, fit_temperature(logits, given, right)),
            ("clean labels", None, fit_temperature(logits, clean, right)),
        ]
        for name, noise in matrices.items():
            fits.append(("likelihood", name, fit_temperature(logits, given, noise)))
            fits.append(("accuracy", name, by_accuracy(logits, given, noise)))
        for fit, name, temperature in fits:
            measured = prediction_metrics(tested / temperature, labels)
            yield {
                **{key: getattr(config, key) for key in ("recipe", "method", "epochs")},
                "network": "average" if suffix else "weights",
                "fit": fit,
                "matrix": name,
                "images": len(given),
                "temperature": temperature,
                **{key: measured[key] for key in MEASURED},
            }


def over_seeds(rows: Iterable[Row]) -> Iterator[Row]:
    """A row for all runs that differ in nothing but the seed."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in KEYS), []).append(row)
    for key, group in groups.items():
        temperatures = [row["temperature"] for row in group]
        yield {
            **dict(zip(KEYS, key, strict=True)),
            "seeds": len(group),
            "images": round(fmean(row["images"] for row in group)),
            "t_lowest": rounded(min(temperatures), 3),
            "t_highest": rounded(max(temperatures), 3),
            **{name: rounded(fmean(row[name] for row in group), 3) for name in MEASURED},
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="CSV to write; default: only print")
    known = parser.parse_args()
    write_csv(known.out, [*over_seeds(row for run in known.runs for row in rows_of(run))])


if __name__ == "__main__":
    main()
