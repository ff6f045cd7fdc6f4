"""scikit-learn's digits with classes of unequal size, as image files: what alignment does there.

    python benchmarks/longtail.py --ratio 10 --out build/longtail

Class k keeps ratio^(-k/9) of its training images, so that the last has a tenth (Cao et al. 2019, "Learning
Imbalanced Datasets with Label-Distribution-Aware Margin Loss", section 4); the test images stay
balanced. screen.py has the variants: --data "digits, long-tailed, symmetric 50 %". As image files they
have three channels and ImageNet's normalisation: not to be compared with runs on data.name=digits.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from noisybsd.data.dataset import load_dataset
from noisybsd.settings import DataConfig, NoiseConfig


def kept(labels: np.ndarray, ratio: float) -> np.ndarray:
    """Which of the samples (N,) stay: the first ones of every class. Returns their indices, in order."""
    classes = int(labels.max()) + 1
    chosen = []
    for k in range(classes):
        of_class = np.flatnonzero(labels == k)
        chosen.append(of_class[: round(len(of_class) * ratio ** (-k / (classes - 1)))])
    return np.sort(np.concatenate(chosen))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ratio", type=float, default=10, help="of the largest class to the least")
    parser.add_argument("--out", type=Path, default=Path("build/longtail"))
    known = parser.parse_args()
    digits = load_dataset(DataConfig(name="digits"), NoiseConfig(), seed=0)
    for name, split in (("train", digits.train), ("test", digits.test)):
        shutil.rmtree(known.out / name, ignore_errors=True)  # of another ratio
        labels = np.asarray(split.labels)
        samples = kept(labels, known.ratio) if name == "train" else np.arange(len(labels))
        for i in samples:
            folder = known.out / name / str(labels[i])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(split.images[i]).squeeze()).save(folder / f"{i:04d}.png")
        print(f"{name}: {np.bincount(labels[samples]).tolist()} images of the classes")


if __name__ == "__main__":
    main()
