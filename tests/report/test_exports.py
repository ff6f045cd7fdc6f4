"""The label table in other tools, as docs/library.md has it; each where the tool is installed."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from PIL import Image

from noisybsd import label_table


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pyarrow.Table:
    monkeypatch.chdir(tmp_path)
    paths = [str(tmp_path / f"{i}.png") for i in range(6)]
    for path in paths:
        Image.new("RGB", (8, 8)).save(path)
    probs = np.eye(3)[[0, 1, 2, 0, 1, 2]] * 0.7 + 0.1
    made = label_table([0, 1, 2, 0, 1, 0], probs, class_names=["cat", "dog", "emu"], paths=paths)
    pyarrow.parquet.write_table(made, "labels.parquet")
    return made


def test_pandas(table: pyarrow.Table) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet("labels.parquet")
    assert frame.sort_values("rank").index[0] == 5
    assert frame["given_name"].tolist() == table["given_name"].to_pylist()


def test_csv(table: pyarrow.Table) -> None:
    pyarrow.csv.write_csv(table.drop_columns("neighbours"), "labels.csv")
    with Path("labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["given_name"] for row in rows] == table["given_name"].to_pylist()


def test_hugging_face_datasets(table: pyarrow.Table) -> None:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset("parquet", data_files="labels.parquet", cache_dir="cache")[
        "train"
    ]
    assert loaded["suggested_name"][:] == table["suggested_name"].to_pylist()


def test_spotlight(table: pyarrow.Table) -> None:
    spotlight = pytest.importorskip("renumics.spotlight")
    viewer = spotlight.show(
        table.to_pandas(), dtype={"path": spotlight.Image}, no_browser=True, wait=False
    )
    try:
        assert len(viewer.df) == 6
    finally:
        viewer.close()


def test_fiftyone(table: pyarrow.Table) -> None:
    """Its samples; a dataset needs a MongoDB."""
    fiftyone = pytest.importorskip("fiftyone")
    samples = [
        fiftyone.Sample(
            filepath=r["path"],
            ground_truth=fiftyone.Classification(label=r["given_name"]),
            suggested=fiftyone.Classification(label=r["suggested_name"]),
            rank=r["rank"],
        )
        for r in table.to_pylist()
    ]
    assert [sample.rank for sample in samples] == table["rank"].to_pylist()
    assert samples[5].suggested.label == "emu"


def test_lightly_studio(table: pyarrow.Table, tmp_path: Path) -> None:
    lightly_studio = pytest.importorskip("lightly_studio")
    dataset = lightly_studio.ImageDataset.create()
    dataset.add_images_from_path(path=tmp_path, embed=False)
    rows = {row["path"]: row for row in table.drop_columns("neighbours").to_pylist()}
    dataset.update_metadata([(s.sample_id, rows[s.file_path_abs]) for s in dataset])
    for sample in dataset:
        assert sample.metadata["rank"] == rows[sample.file_path_abs]["rank"]
        assert sample.metadata["suggested_name"] == rows[sample.file_path_abs]["suggested_name"]
