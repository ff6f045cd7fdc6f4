"""A run on images with everything that own data may have, through to its results and its page."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from helpers.reported import hide_cleanlab
from PIL import Image

from noisybsd.report.duplicates import find_duplicates, summary
from noisybsd.report.findings import Findings
from noisybsd.report.write import load_run, report
from noisybsd.runs.checkpoint import load_checkpoint
from noisybsd.train import main as train
from noisybsd.training import summary as summary_of

LATIN = os.fsdecode(b"caf\xe9")
SETTINGS = (
    *("recipe=own", "data.size=16", "device=cpu", "epochs=2", "batch_size=8", "data.workers=0"),
    *(
        "network.name=small_cnn",
        "network.pretrained=false",
        "network.width=4",
        "augment.name=cifar",
    ),
    *("optimizer.warmup_epochs=0", "neighbours.k=3", "tracking.wandb=disabled"),
    *("data.on_error=skip", "data.storage=stream"),
)


def photograph(seed: int) -> np.ndarray:
    """A smooth picture (24,24,3), which no other seed resembles."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((24, 24), Image.Resampling.BICUBIC))


def images(root: Path) -> None:
    """Two classes of 14 images to train on and of 4 to test on, with copies among them."""
    for k, name in enumerate((LATIN, "dog")):
        for i in range(14):
            for split, seed in (("train", i), ("test", 50 + i)):
                if split == "train" or i < 4:
                    path = root / split / name / f"{i:02d}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(photograph(100 * k + seed)).save(path)
    dogs = root / "train/dog"
    Image.fromarray(photograph(3)).save(dogs / "copy.bmp")  # of train/<latin>/03.png
    Image.fromarray(photograph(151)).save(dogs / "tested.png")  # of test/dog/01.png
    Image.fromarray(photograph(107)).save(dogs / "nearly.jpg", quality=90)  # of train/dog/07.png
    (dogs / os.fsdecode(b"br\xf6ken.png")).write_bytes(b"no image")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on these images, whose labels are verified for every third, with its report."""
    root = tmp_path_factory.mktemp("own")
    images(root / "data")
    rows: list[dict[str, Any]] = []
    for path in sorted((root / "data").rglob("*.*")):
        split, name, _ = (relative := path.relative_to(root / "data")).parts
        wrong = len(rows) % 6 == 0
        rows.append(
            {
                "path": os.fsencode(relative),
                "label": "dog" if name == "dog" else "café",
                "split": split,
                "clean_label": (
                    ("café" if name == "dog" else "dog")
                    if wrong
                    else "dog"
                    if name == "dog"
                    else "café"
                )
                if len(rows) % 3 == 0
                else None,
            }
        )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), root / "list.parquet")
    with pytest.MonkeyPatch.context() as patch:
        hide_cleanlab(patch)
        data = (f"data.root={root / 'data'}", f"data.manifest={root / 'list.parquet'}")
        assert train([*SETTINGS, *data, f"run.dir={root / 'run'}"]) == 0
        report(root / "run", [])
    return root / "run"


def test_file_names_that_are_no_text_are_in_the_results(run: Path) -> None:
    results = json.loads((run / "results.json").read_text("utf-8"))
    (skipped,) = results["data"]["skipped"]
    assert r"dog/br\udcf6ken.png: is not an image" in skipped
    assert results["data"]["skipped_images"] == 1
    paths = pyarrow.parquet.read_table(run / "labels.parquet")["path"].to_pylist()
    assert r"train/caf\udce9/00.png" in paths
    assert r"train/caf\\udce9/00.png" in (run / "report.html").read_text("utf-8")


def test_the_end_of_a_run_says_what_its_test_labels_are(run: Path) -> None:
    results = json.loads((run / "results.json").read_text("utf-8"))
    place: Any = SimpleNamespace(path=run, results=run / "results.json")
    said = summary_of(results, place)
    assert "the test labels are           verified in part; the others as doubtful as in" in said
    results["data"]["test_labels"] = "noisy"
    assert "held out of the training images, as doubtful as theirs; the report" in summary_of(
        results, place
    )
    results["data"]["test_labels"] = "clean"
    assert "test labels" not in summary_of(results, place)


def test_class_folders_that_are_no_text_are_in_the_report(tmp_path: Path) -> None:
    images(tmp_path / "data")
    folder = f"run.dir={tmp_path / 'run'}"
    assert train([*SETTINGS, f"data.root={tmp_path / 'data'}", folder, "epochs=1"]) == 0
    report(tmp_path / "run", [])
    found = Findings.read(tmp_path / "run")
    assert found is not None and found.about["class_names"] == [r"caf\udce9", "dog"]
    assert r"caf\\udce9" in (tmp_path / "run/report.html").read_text("utf-8")


def test_metrics_are_of_the_verified_samples(run: Path) -> None:
    table = pyarrow.parquet.read_table(run / "labels.parquet").to_pylist()
    known = [row for row in table if row["clean"] is not None]
    wrong = [row for row in known if row["clean"] != row["given"]]
    assert 0 < len(wrong) < len(known) < len(table) / 2
    metrics = json.loads((run / "labels_metrics.json").read_text("utf-8"))
    seen = [row for row in known if row["visits"]]
    assert metrics["estimates"]["verified"] == len(seen)
    rate = sum(row["clean"] != row["given"] for row in seen) / len(seen)
    assert metrics["estimates"]["noise_rate_true"] == pytest.approx(rate)
    last = json.loads((run / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    assert last["noise_rate"] == pytest.approx(len(wrong) / len(known))
    results = json.loads((run / "results.json").read_text("utf-8"))
    assert results["noise_rate"] == last["noise_rate"]
    assert results["data"]["clean_labels"] == f"known for {len(known)} of {len(table)} images"
    assert results["data"]["test_labels"] == "partly verified"
    page = (run / "report.html").read_text("utf-8")
    assert f"among the {metrics['estimates']['verified']} whose right label is known" in page


def test_verified_labels_have_no_part_in_training(run: Path, tmp_path: Path) -> None:
    table = pyarrow.parquet.read_table(run.parent / "list.parquet")
    row = {"clean_label": table.column_names.index("clean_label")}
    without = table.drop_columns("clean_label")
    pyarrow.parquet.write_table(without, tmp_path / "list.parquet")
    assert row["clean_label"] == 3
    data = (f"data.root={run.parent / 'data'}", f"data.manifest={tmp_path / 'list.parquet'}")
    assert train([*SETTINGS, *data, f"run.dir={tmp_path / 'run'}"]) == 0
    one, other = (
        load_checkpoint(folder / "checkpoint.pt")["modules"] for folder in (run, tmp_path / "run")
    )
    for name in ("network", "ema", "rule", "bank"):
        for key, value in one[name].items():
            assert torch.equal(value, other[name][key]), (name, key)


def test_copies_are_named_with_their_labels_and_across_splits(run: Path) -> None:
    table = pyarrow.parquet.read_table(run / "labels.parquet").to_pylist()
    same = [each for each in table if each["identical_to"] is not None]
    assert {each["path"] for each in same} == {r"train/caf\udce9/03.png", "train/dog/copy.bmp"}
    assert {each["identical_to"] for each in same} == {same[0]["index"]}
    assert [each["path"] for each in table if each["in_test"]] == ["train/dog/tested.png"]
    found = json.loads((run / "labels_metrics.json").read_text("utf-8"))["duplicates"]
    assert found["identical"] == {
        "groups": 1,
        "images": 2,
        "with_different_labels": 1,
        "in_test": 1,
    }
    (pair,) = found["near"]
    assert {table[i]["path"] for i in pair["index"]} == {"train/dog/07.png", "train/dog/nearly.jpg"}
    assert 0.98 < pair["cosine"] <= 1
    page = (run / "report.html").read_text("utf-8")
    assert "Images that are there more than once" in page
    assert (
        "1 image is there more than once, 2 in all; 1 of them has different labels; 1 train" in page
    )
    assert "1 training image is a test image too; 1 pair of images differs by little" in page
    assert "identical, different labels" in page and "one image, also a test image" in page
    assert "nearly, cosine" in page and 'src="data:image/png;base64,' in page


def test_a_page_without_copies_says_nothing_of_them(run: Path) -> None:
    loaded = load_run(run, [])
    found = find_duplicates(loaded.findings, None)
    assert found.near == [] and found.looked_at == 0
    assert summary(found, loaded.findings.arrays["labels"])["near"] == []


@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_test_images_of_which_none_can_be_read(
    storage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images(tmp_path / "data")
    for path in (tmp_path / "data/test").rglob("*.png"):
        path.write_bytes(b"no image")
    places = (f"data.root={tmp_path / 'data'}", f"run.dir={tmp_path / 'run'}")
    assert train([*SETTINGS, *places, f"data.storage={storage}", "epochs=1"]) == 2
    told = capfd.readouterr().err
    assert "error: not one of the images to test on can be read; the last: " in told


def test_the_log_begins_with_how_the_data_were_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images(tmp_path / "data")
    (tmp_path / "data/test").rename(tmp_path / "data/Valid")
    places = (f"data.root={tmp_path / 'data'}", f"run.dir={tmp_path / 'run'}")
    assert train([*SETTINGS, *places, "epochs=1"]) == 0
    notice = "the test images are those in Valid/"
    assert capfd.readouterr().err.count(notice) == 1
    log = (tmp_path / "run/log.txt").read_text().splitlines()
    assert log[0].endswith(f" WARNING {notice}") and sum(notice in line for line in log) == 1
