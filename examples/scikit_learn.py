"""Which labels are wrong, by a scikit-learn classifier: digits, 20 % of whose labels are made wrong.

python examples/scikit_learn.py

The classifier judges each image without having learned from it: by cross-validation.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import noisybsd


def main(out: str = "report.html") -> dict[str, float]:
    digits = noisybsd.load_dataset("digits").train
    given = noisybsd.inject_noise(digits.labels, "symmetric", 0.2, seed=0)
    pixels = digits.images.flatten(1).numpy() / 255

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    probs = cross_val_predict(classifier, pixels, given, cv=5, method="predict_proba")

    issues = noisybsd.find_label_issues(given, probs)
    embeddings = PCA(16, random_state=0).fit_transform(pixels)
    table = noisybsd.label_table(given, probs, embeddings=embeddings)
    noisybsd.write_report(table, out, images=digits.images)
    Path(out).with_suffix(".csv").write_text(
        table.to_pandas().sort_values("rank").to_csv(index=False)
    )

    wrong = given != digits.labels
    rate = noisybsd.noise_rate(given, probs)
    return {
        "labels wrong": float(wrong.mean()),
        "estimated": rate.estimate,
        "of the issues, wrong": float(wrong[issues].mean()),
        "of the wrong labels, found": float(np.mean(issues[wrong])),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name:<28} {value:.1%}")
