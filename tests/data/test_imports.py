"""Images in other formats become a folder of image files and a manifest; real files of each format."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from helpers import trees
from helpers.trees import load
from PIL import Image

from noisybsd.config import load_config
from noisybsd.data import imports
from noisybsd.data.__main__ import main
from noisybsd.data.images import ImageFiles
from noisybsd.errors import UserError

CLASSES = ("cat", "dog")


def encoded(number: int, kind: str = "PNG") -> bytes:
    """An image file of one grey."""
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), (number,) * 3).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    if "datasets" in sys.modules:
        monkeypatch.setattr(sys.modules["datasets"].config, "HF_HUB_OFFLINE", True)


def run(*arguments: object) -> int:
    return main(["import", *map(str, arguments)])


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbers(split: Any) -> list[int]:
    assert isinstance(split.images, ImageFiles)
    return [trees.number_of(split.images.decode(i)) for i in range(len(split))]


def assert_is_read(out: Path) -> None:
    """Of images 0 to 5, cats and dogs by turns, the last two are to test on."""
    data = load("own", out, manifest="manifest.csv", size=8)
    assert data.class_names == CLASSES
    assert numbers(data.train) == [0, 1, 2, 3] and numbers(data.test) == [4, 5]
    assert data.train.labels.tolist() == [0, 1, 0, 1] and data.test.labels.tolist() == [0, 1]


# --- Hugging Face datasets --------------------------------------------------------------------------


def huggingface(count: int = 6, start: int = 0) -> Any:
    datasets = pytest.importorskip("datasets")
    features = {"img": datasets.Image(), "fine": datasets.ClassLabel(names=list(CLASSES))}
    features |= {"id": datasets.Value("int64"), "box": datasets.List(datasets.Value("int64"))}
    examples = [
        {"img": {"bytes": encoded(i), "path": None}, "fine": i % 2, "id": i, "box": [1, 2]}
        for i in range(start, start + count)
    ]
    return datasets.Dataset.from_list(examples, features=datasets.Features(features))


def test_a_huggingface_dataset_on_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import datasets

    both = {"train": huggingface(4), "validation": huggingface(2, start=4)}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "saved")
    assert run(f"hf={tmp_path / 'saved'}", f"out={tmp_path / 'out'}") == 0
    told = capsys.readouterr().out
    assert f"{tmp_path / 'out'}: 4 train, 2 val images; 0 left out" in told
    assert f"recipe=own data.root={tmp_path / 'out'} data.manifest=manifest.csv" in told
    assert_is_read(tmp_path / "out")
    first = rows(tmp_path / "out")[0]
    assert first == {
        "path": "images/00000/00000000.png",
        "label": "cat",
        "split": "train",
        "source": f"hf={tmp_path / 'saved'}: train, row 1",
    }
    assert (tmp_path / "out" / first["path"]).read_bytes() == encoded(0)  # as it was
    assert run(f"hf={tmp_path / 'saved'}", f"out={tmp_path / 'v'}", "splits=validation") == 0
    assert [row["split"] for row in rows(tmp_path / "v")] == ["val", "val"]


def test_a_folder_that_load_dataset_knows(tmp_path: Path) -> None:
    """As a name on the hub is: streamed, and found by its files."""
    (tmp_path / "repo").mkdir()
    huggingface(4).to_parquet(tmp_path / "repo/train-00000-of-00001.parquet")
    huggingface(2, start=4).to_parquet(tmp_path / "repo/test-00000-of-00001.parquet")
    assert run(f"hf={tmp_path / 'repo'}", f"out={tmp_path / 'out'}") == 0
    assert_is_read(tmp_path / "out")


def test_images_that_a_dataset_names_by_path(tmp_path: Path) -> None:
    for i in range(6):
        split = "train" if i < 4 else "test"
        trees.picture(tmp_path / "folder" / split / CLASSES[i % 2] / f"{i}.png", i)
    assert run(f"hf={tmp_path / 'folder'}", f"out={tmp_path / 'out'}") == 0
    data = load("own", tmp_path / "out", manifest="manifest.csv", size=8)
    assert sorted(numbers(data.train)) == [0, 1, 2, 3] and sorted(numbers(data.test)) == [4, 5]


def test_mistakes_in_huggingface_datasets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets = pytest.importorskip("datasets")
    out = f"out={tmp_path / 'out'}"
    unlabelled = huggingface().to_list()
    unlabelled[1]["fine"] = -1
    bad = datasets.Dataset.from_list(unlabelled, features=huggingface().features)
    bad.save_to_disk(tmp_path / "unlabelled")
    datasets.DatasetDict({"train": bad, "unsupervised": bad}).save_to_disk(tmp_path / "three")
    for source, message in (
        ("nobody/nothing", r"hf=nobody/nothing: "),
        (tmp_path / "unlabelled", "train, row 2: fine is -1, valid: 0 to 1; splits="),
        (tmp_path / "three", "whether the split 'unsupervised' is to train or to test on"),
    ):
        assert run(f"hf={source}", out) == 2
        assert message in capsys.readouterr().err
    assert run(f"hf={tmp_path / 'three'}", out, "splits=trian") == 2
    assert "splits: got 'trian', did you mean train?" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "out"))] == []


# --- Parquet ----------------------------------------------------------------------------------------


def parquet(path: Path, cells: Sequence[Any], **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"picture": pyarrow.array(cells), **columns}), path)
    return path


def test_parquet_files_by_split(tmp_path: Path) -> None:
    for name, part in (("train-0", (0, 1)), ("train-1", (2, 3)), ("test-0", (4, 5))):
        parquet(tmp_path / f"in/{name}.parquet", [encoded(i) for i in part], label=CLASSES)
    assert run(f"parquet={tmp_path / 'in'}", f"out={tmp_path / 'out'}") == 0
    assert sorted(row["label"] for row in rows(tmp_path / "out")) == ["cat"] * 3 + ["dog"] * 3
    data = load("own", tmp_path / "out", manifest="manifest.csv", size=8)
    assert numbers(data.train) == [0, 1, 2, 3] and numbers(data.test) == [4, 5]
    pattern = tmp_path / "in" / "train-*.parquet"
    assert run(f"parquet={pattern}", f"out={tmp_path / 'some'}") == 0
    assert len(rows(tmp_path / "some")) == 4


def test_parquet_of_huggingface_knows_its_classes_without_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huggingface().to_parquet(tmp_path / "a.parquet")
    monkeypatch.setattr(imports, "_library", None)
    assert run(f"parquet={tmp_path / 'a.parquet'}", f"out={tmp_path / 'out'}") == 0
    assert [row["label"] for row in rows(tmp_path / "out")] == [*CLASSES] * 3


def test_annotators_clean_labels_and_a_split_column_are_kept(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "a.parquet",
        [encoded(i) for i in range(4)],
        label_1=["cat", "cat", "dog", "dog"],
        label_2=["dog", None, "dog", "dog"],
        clean_label=[None, "cat", "dog", None],
        split=["train", "train", "train", "Validation"],
    )
    assert run(f"parquet={path}", f"out={tmp_path / 'out'}") == 0
    data = load("own", tmp_path / "out", manifest="manifest.csv", size=8)
    assert data.train.votes is not None and data.train.votes.tolist() == [[1, 1], [1, 0], [0, 2]]
    assert data.train.clean_labels is not None and data.train.clean_labels.tolist() == [-1, 0, 1]
    assert len(data.test) == 1
    named = parquet(tmp_path / "b.parquet", [encoded(1)], anna=["cat"], ben=["dog"], picture2=[b""])
    command = (f"parquet={named}", "image=picture", "label=anna,ben", f"out={tmp_path / 'b'}")
    assert run(*command) == 0
    (row,) = rows(tmp_path / "b")
    assert (row["label_1"], row["label_2"]) == ("cat", "dog")


@pytest.mark.parametrize(
    ("columns", "cells", "message"),
    [
        (
            {"note": ["x", "y"]},
            2,
            "row 1: which column holds the label is not clear: has picture, note",
        ),
        ({"label": ["cat", None]}, 2, "row 2: label is None, which stands for a missing value"),
        ({"label": [0.5, 1.0]}, 2, "row 1: label is '0.5', a number that is not whole"),
        (
            {"label": [1, 2], "class": [1, 2], "other": [b"x"] * 2},
            2,
            "column holds the image is not",
        ),
        ({"label": [1, 2]}, [encoded(0), b"no image"], r"row 2: picture is no image of a known"),
        (
            {"label": [1, 2]},
            [encoded(0), None],
            "row 2: picture is a NoneType, valid: the bytes of",
        ),
        ({"label": [1, 2]}, [{"bytes": None, "path": "/nowhere.png"}] * 2, "row 1: picture: "),
    ],
)
def test_mistakes_in_parquet_name_file_row_and_column(
    columns: Any, cells: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [encoded(i) for i in range(cells)] if isinstance(cells, int) else cells
    path = parquet(tmp_path / "a.parquet", cells, **columns)
    assert run(f"parquet={path}", f"out={tmp_path / 'out'}") == 2
    error = capsys.readouterr().err
    assert f"error: {path}: " in error and message in error
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.parquet"]


def test_images_that_cannot_be_used_may_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = parquet(tmp_path / "a.parquet", [encoded(0), b"no image", encoded(2)], label=[1, 2, 2])
    assert run(f"parquet={path}", f"out={tmp_path / 'out'}") == 2
    assert "on_error=skip leaves such images out" in capsys.readouterr().err
    assert run(f"parquet={path}", f"out={tmp_path / 'out'}", "on_error=skip") == 0
    told = capsys.readouterr().out
    assert "2 train images; 1 left out" in told and f"{path}: row 2: picture is no image" in told
    assert [row["path"][-5:] for row in rows(tmp_path / "out")] == ["0.png", "2.png"]
    none = parquet(tmp_path / "b.parquet", [b"x"], label=[1])
    assert run(f"parquet={none}", f"out={tmp_path / 'none'}", "on_error=skip") == 2
    assert "not one usable image" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_damaged_and_missing_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.parquet", "a.npz", "a.tar"):
        (tmp_path / name).write_bytes(b"damaged" * 100)
    (tmp_path / "empty").mkdir()
    for kind, name, message in (
        ("parquet", "a.parquet", "a.parquet: not readable as Parquet: "),
        ("npz", "a.npz", "a.npz: not readable as numpy arrays: "),
        ("webdataset", "a.tar", "a.tar: not readable as a shard: "),
        ("parquet", "b.parquet", "b.parquet: there is no such file"),
        ("parquet", "empty", "empty: there is no *.parquet in it"),
        ("webdataset", "b-{0..2}.tar", "b-0.tar: there is no such file"),
        ("npz", "b.npz", "b.npz: there is no such file"),
    ):
        assert run(f"{kind}={tmp_path / name}", f"out={tmp_path / 'out'}") == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- webdataset -------------------------------------------------------------------------------------


def shard(path: Path, *samples: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for i, sample in enumerate(samples):
            for suffix, content in sample.items():
                entry = tarfile.TarInfo(f"x/{i:03d}.{suffix}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return path


def test_webdataset_shards(tmp_path: Path) -> None:
    for number, part in ((0, (0, 1)), (1, (2, 3))):
        samples = [{"jpg": encoded(i, "JPEG"), "cls": CLASSES[i % 2].encode()} for i in part]
        shard(tmp_path / f"in/train-{number:03d}.tar", *samples)
    as_json = [
        {"png": encoded(i), "json": json.dumps({"label": CLASSES[i % 2]}).encode()} for i in (4, 5)
    ]
    shard(tmp_path / "in/test-000.tar", *as_json)
    source = f"webdataset={tmp_path / 'in'}/train-{{000..001}}.tar"
    assert run(source, f"out={tmp_path / 'train'}") == 0
    found = rows(tmp_path / "train")
    assert [row["label"] for row in found] == [*CLASSES] * 2
    assert found[0]["path"].endswith(".jpg") and found[0]["source"].endswith("train-000.tar: x/000")
    assert run(f"webdataset={tmp_path / 'in/test-000.tar'}", f"out={tmp_path / 'test'}") == 0
    assert [row["split"] for row in rows(tmp_path / "test")] == ["test", "test"]
    assert load("own", tmp_path / "train", manifest="manifest.csv", size=8).train.labels.tolist()


def test_mistakes_in_shards_name_the_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"png": encoded(1), "cls": b"1"}
    for bad, message in (
        ({"png": encoded(1), "cls": b"-1"}, "x/001: cls is '-1', a negative number"),
        ({"png": b"?", "cls": b"1"}, "x/001: png is no image of a known format"),
        ({"cls": b"1"}, "x/001: png is a NoneType"),
        ({"png": encoded(1), "cls": b"1", "json": b"["}, "x/001: json: "),
    ):
        path = shard(tmp_path / "a.tar", good, bad)
        assert run(f"webdataset={path}", f"out={tmp_path / 'out'}") == 2
        assert f"error: {path}: {message}" in capsys.readouterr().err


# --- .npz -------------------------------------------------------------------------------------------


def pixels(*counts: int, channels: int = 0) -> np.ndarray:
    """(N,9,8) or (N,9,8,C) uint8."""
    shape = (9, 8, channels) if channels else (9, 8)
    return np.stack([np.full(shape, i, np.uint8) for i in counts])


@pytest.mark.parametrize("channels", [0, 1, 3])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_with_splits(save: Any, channels: int, tmp_path: Path) -> None:
    labels = np.array(CLASSES * 2)
    save(
        tmp_path / "a.npz",
        x_train=pixels(0, 1, 2, 3, channels=channels),
        y_train=labels,
        x_test=pixels(4, 5, channels=channels),
        y_test=labels[:2, None],
    )
    assert run(f"npz={tmp_path / 'a.npz'}", f"out={tmp_path / 'out'}") == 0
    assert_is_read(tmp_path / "out")


def test_arrays_of_other_names_and_channels_first(tmp_path: Path) -> None:
    images = pixels(0, 1, 2, channels=3).transpose(0, 3, 1, 2)
    np.savez(tmp_path / "a.npz", scans=images, kinds=np.array([2, 0, 2]), note=np.zeros(1))
    assert (
        run(f"npz={tmp_path / 'a.npz'}", "image=scans", "label=kinds", f"out={tmp_path / 'out'}")
        == 0
    )
    found = rows(tmp_path / "out")
    assert [row["label"] for row in found] == ["2", "0", "2"]
    assert found[1]["source"] == f"{tmp_path / 'a.npz'}: scans[1]"
    with Image.open(tmp_path / "out" / found[1]["path"]) as image:
        assert image.size == (8, 9) and np.asarray(image).max() == 1


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": pixels(0)}, "which arrays hold images and labels is not clear: got a; image=NAME"),
        ({"images": pixels(0), "labels": [0, 1]}, "images: got 1 images and 2 labels"),
        (
            {"images": pixels(0) / 2, "labels": [0]},
            r"images: got float64 of shape \(1, 9, 8\), valid",
        ),
        ({"images": pixels(0), "labels": [0.5]}, r"labels: got float64 of shape \(1,\), valid"),
        ({"images": pixels(0), "labels": [-1]}, r"images\[0\]: label is '-1', a negative number"),
        ({"images": np.array([None]), "labels": [0]}, "images: got object"),
        ({"images": pixels(0), "labels": np.array([None])}, "Object arrays cannot be loaded"),
    ],
)
def test_mistakes_in_arrays(
    arrays: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    assert run(f"npz={tmp_path / 'a.npz'}", f"out={tmp_path / 'out'}") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'a.npz'}: ")
    assert re.search(message, error)


# --- the command ------------------------------------------------------------------------------------


def test_mistakes_in_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet(tmp_path / "a.parquet", [encoded(0)], label=[1])
    for arguments, message in (
        ([], "import: give one of hf=, parquet=, webdataset=, npz=, and out=FOLDER"),
        (["hf=a", "npz=b", "out=c"], "import: give one of"),
        (["parket=a", "out=c"], "import: got 'parket', did you mean parquet?"),
        (["npz=", "out=c"], "import: npz= is empty"),
        (["npz=a", "out=c", "on_error=no"], "import: on_error: got 'no'; valid: skip, stop"),
        ([f"parquet={tmp_path}", f"out={tmp_path}"], f"out={tmp_path}: is there already"),
    ):
        assert run(*arguments) == 2
        assert f"error: {message}" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"data\.hf: unknown key .*noisybsd\.data import hf=…"):
        load_config(["recipe=own", "data.hf=beans"])
    for name, extra in (("datasets", "hf"), ("webdataset", "webdataset")):
        monkeypatch.setitem(sys.modules, name, None)
        assert run(f"{extra}=a", f"out={tmp_path / 'out'}") == 2
        told = f"error: {extra}=…: needs {name}: pip install 'noisybsd[{extra}]'"
        assert told in capsys.readouterr().err
