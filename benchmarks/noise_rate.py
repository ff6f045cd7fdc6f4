"""How often the interval of `noisybsd.noise_rate` holds the true share of wrong labels: made-up data.

    python benchmarks/noise_rate.py --out results/noise_rate.csv

Each repetition draws N samples of K classes from Gaussian clusters and a share of wrong labels, and asks for
the share of wrong labels of three kinds of probabilities:

    predictions     out-of-sample, of a logistic regression in five-fold cross-validation on the given labels
    belief          the exact posterior of the class, given the sample and its label
    sharp belief    the same, squared and normalised: a belief that is too sure

Columns, a row for each setting and kind:
    samples, classes, distance, noise, rate     of the data; distance of the clusters, 3: hardly any overlap
    kind                                        of probabilities
    repetitions, truth, estimate                how many, and the means of both shares
    coverage                                    the share of repetitions whose interval holds the truth
    width                                       the mean width of the interval
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
from common import Row, rounded, write_csv
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

import noisybsd
from noisybsd.data.noise import NOISE_MODELS

CLASSES = 5


def repetition(samples: int, distance: float, noise: str, rate: float, seed: int) -> list[Row]:
    random = np.random.default_rng(seed)
    clean = random.integers(0, CLASSES, samples)
    centres = distance * np.eye(CLASSES) / np.sqrt(2)
    x = centres[clean] + 0.5 * random.standard_normal((samples, CLASSES))
    given = noisybsd.inject_noise(clean, noise, rate, seed=seed, num_classes=CLASSES)
    matrix = NOISE_MODELS[noise].probabilities(rate, CLASSES)
    log_likelihood = -((x[:, None] - centres) ** 2).sum(2) / (2 * 0.5**2)
    posterior = normalised(
        np.exp(log_likelihood - log_likelihood.max(1, keepdims=True)) * matrix.T[given]
    )
    network = LogisticRegression(max_iter=200)
    predictions = cross_val_predict(network, x, given, cv=5, method="predict_proba")
    truth = float((given != clean).mean())
    found = {
        "predictions": noisybsd.noise_rate(given, predictions),
        "belief": noisybsd.noise_rate(given, belief=posterior),
        "sharp belief": noisybsd.noise_rate(given, belief=normalised(posterior**2)),
    }
    return [
        {
            "kind": kind,
            "truth": truth,
            "estimate": rate.estimate,
            "coverage": rate.low <= truth <= rate.high,
            "width": rate.high - rate.low,
        }
        for kind, rate in found.items()
    ]


def normalised(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum(1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--samples", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    cells = itertools.product(
        options.samples, (3.0, 1.5), (("symmetric", 0.1), ("symmetric", 0.4), ("pairflip", 0.3))
    )
    for samples, distance, (noise, rate) in cells:
        found = [
            row
            for seed in range(options.repetitions)
            for row in repetition(samples, distance, noise, rate, seed)
        ]
        for kind in dict.fromkeys(row["kind"] for row in found):
            mine = [row for row in found if row["kind"] == kind]
            rows.append(
                {
                    "samples": samples,
                    "classes": CLASSES,
                    "distance": distance,
                    "noise": noise,
                    "rate": rate,
                    "kind": kind,
                    "repetitions": len(mine),
                    **{
                        key: rounded(float(np.mean([row[key] for row in mine])), 3)
                        for key in ("truth", "estimate", "coverage", "width")
                    },
                }
            )
    write_csv(options.out, rows)


if __name__ == "__main__":
    main()
