"""From a folder of photos to a label report on a laptop: `recipe=own_quick`, and cleanlab on its features.

Photos of five animals from CIFAR-10, as PNG files in a folder for each class. A share of them is moved to
the folder of another class, at random. Test images keep their class. For each seed, the recipe runs as a
user runs it. Logistic regression learns the same frozen features of the same training images:
cross-validated, for cleanlab's ranking; on all given labels, and on those that cleanlab leaves, for test
accuracy.

  python benchmarks/own_images.py --cifar data --out results/own_quick.csv
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from common import write_csv
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from noisybsd.data.dataset import load_dataset
from noisybsd.data.splits import Split
from noisybsd.engine.saved import load_run_config, load_trainer
from noisybsd.settings import DataConfig, NoiseConfig

ANIMALS = {"bird": 2, "cat": 3, "deer": 4, "dog": 5, "horse": 7}


def write_photos(folder: Path, split: Split, count: int, moved: float, seed: int) -> dict[str, str]:
    """`count` photos of each animal, `moved` of all in a wrong folder. Returns the true class of each."""
    random = np.random.default_rng(seed)
    chosen = {
        name: random.choice(np.flatnonzero(split.labels == k), count, replace=False)
        for name, k in ANIMALS.items()
    }
    truth = {f"{i:05d}.png": name for name, rows in chosen.items() for i in rows.tolist()}
    wrong = set(random.choice(sorted(truth), round(moved * len(truth)), replace=False).tolist())
    for file, name in truth.items():
        others = [other for other in ANIMALS if other != name]
        place = folder / (str(random.choice(others)) if file in wrong else name)
        place.mkdir(parents=True, exist_ok=True)
        image = split.images[int(file[:5])].permute(1, 2, 0).numpy()
        Image.fromarray(image).save(place / file)
    return truth


def found(scores: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """How well low scores (N,) point at wrong labels (N,) bool."""
    first = np.argsort(scores)[: wrong.sum()]
    return {
        "auroc": round(float(roc_auc_score(wrong, -scores)), 4),
        "precision": round(float(wrong[first].mean()), 4),
    }


def one(
    cifar: Path, seed: int, count: int, moved: float, settings: list[str]
) -> list[dict[str, object]]:
    data = DataConfig(name="cifar10", root=str(cifar), verify=False)
    source = load_dataset(data, NoiseConfig(), 0)
    with tempfile.TemporaryDirectory() as place:
        photos, run = Path(place, "photos"), Path(place, "run")
        truth = write_photos(photos / "train", source.train, count, moved, seed)
        write_photos(photos / "test", source.test, 200, 0.0, seed)
        start = time.perf_counter()
        where = [f"data.root={photos}", f"run.dir={run}", f"network.cache={place}/cache"]
        command = ["noisybsd.train", "recipe=own_quick", *where, f"seed={seed}", *settings]
        for program in (command, ["noisybsd.report", f"run={run}"]):
            subprocess.run([sys.executable, "-m", *program], check=True)
        seconds = time.perf_counter() - start
        results = json.loads((run / "results.json").read_text())
        table = pyarrow.parquet.read_table(run / "labels.parquet").to_pydict()
        trainer = load_trainer(run, load_run_config(run, []))
    assert trainer is not None
    paths = [Path(path) for path in table["path"]]
    wrong = np.array([path.parent.name != truth[path.name] for path in paths])
    common = {"seed": seed, "images": len(wrong), "wrong": round(float(wrong.mean()), 4)}
    ours = found(np.array(table["rank"]), wrong)
    last = round(100 * results["test_accuracy_last"], 2)
    rows = [{"method": "own_quick", **common, "accuracy": last, **ours, "seconds": round(seconds)}]

    train, test = trainer.dataset.train, trainer.dataset.test
    assert train.embeddings is not None and test.embeddings is not None
    x, test_x = (split.embeddings[:, 0].float().numpy() for split in (train, test))
    assert [Path(path) for path in train.paths or []] == paths
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    probs = cross_val_predict(regression, x, train.labels, cv=5, method="predict_proba")
    scores = get_label_quality_scores(train.labels, probs)
    issues = find_label_issues(train.labels, probs)
    regression.fit(x, train.labels)
    plain = round(100 * float(regression.score(test_x, test.labels)), 2)
    rows.append({"method": "logistic regression", **common, "accuracy": plain})
    regression.fit(x[~issues], train.labels[~issues])
    cleaned = round(100 * float(regression.score(test_x, test.labels)), 2)
    rows.append({"method": "cleanlab", **common, "accuracy": cleaned, **found(scores, wrong)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", type=Path, required=True, help="folder of CIFAR-10's files")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--count", type=int, default=400, help="photos of each of five animals")
    parser.add_argument(
        "--moved", type=float, default=0.25, help="share of photos in a wrong folder"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("settings", nargs="*", help="key=value for the recipe")
    args = parser.parse_args()
    rows = [
        row
        for seed in map(int, args.seeds.split(","))
        for row in one(args.cifar, seed, args.count, args.moved, args.settings)
    ]
    write_csv(args.out, rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
