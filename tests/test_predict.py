"""The command `predict`: a row for each image, and a sentence where there can be none."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from helpers import trees
from helpers.own_run import own_run
from PIL import Image

from noisybsd.data import progress
from noisybsd.engine import predictions
from noisybsd.engine.classifier import load
from noisybsd.predict import main
from noisybsd.train import main as train


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_run(tmp_path_factory.mktemp("own"))


@pytest.fixture
def ask(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[dict[str, str]]]:
    """`predict` of the run on own images, in an empty working directory: the rows of out.csv."""
    monkeypatch.chdir(tmp_path)

    def ask(images: Path | str, *more: str) -> list[dict[str, str]]:
        arguments = [f"run={own / 'run'}", f"images={images}", "out=out.csv", "device=cpu"]
        assert main([*arguments, *more]) == 0
        with Path("out.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    return ask


def test_a_folder_gives_a_row_for_each_image(
    own: Path, ask: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ask(own / "photos/test", "probabilities=true", "threshold=0.5001")
    paths = [row["path"] for row in rows]
    assert len(paths) == 11 and paths == sorted(paths) and "cat/large.jpg" in paths
    known = load(own / "run").predict([own / "photos/test" / path for path in paths])
    assert [row["class"] for row in rows] == known.classes
    for name, values in known.columns(0.5001, probabilities=True).items():
        if name not in ("class", "unsure"):
            found = np.array([row[name] for row in rows], np.float32)
            np.testing.assert_array_equal(found, values)  # every digit that float32 has
    unsure = known.unsure(0.5001)
    assert [row["unsure"] for row in rows] == ["true" if each else "false" for each in unsure]
    assert {row["error"] for row in rows} == {""}
    assert (
        f"11 images classified, {unsure.sum()} of them unsure: out.csv" in capsys.readouterr().out
    )


def test_parquet_has_the_same_columns_with_their_types(own: Path, ask: Callable[..., Any]) -> None:
    folder = own / "photos/test/dog"
    rows = ask(folder)
    arguments = [f"run={own / 'run'}", f"images={folder}", "out=out.parquet", "weights=average"]
    assert main(arguments) == 0
    table = pyarrow.parquet.read_table("out.parquet")
    assert {field.name: str(field.type) for field in table.schema} == {
        "path": "string",
        "class": "string",
        "confidence": "float",
        "unsure": "bool",
        "error": "string",
    }
    assert table["path"].to_pylist() == [row["path"] for row in rows]
    confidence = np.array([row["confidence"] for row in rows], np.float32)
    np.testing.assert_array_equal(table["confidence"].to_numpy(), confidence)


def test_images_that_cannot_be_used_have_a_row_with_the_reason(
    ask: Callable[..., Any], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    trees.folders(Path("new"), ["a"], n=3)
    Path("new/a/001.jpg").write_bytes(Path("new/a/001.jpg").read_bytes()[:50])
    Path("new/b.png").write_bytes(b"")
    Path("new/notes.txt").write_text("no image")
    Path("new/loop").symlink_to("../new")
    rows = {row["path"]: row for row in ask("new")}
    assert list(rows) == ["a/000.png", "a/001.jpg", "a/002.png", "b.png"]
    assert rows["b.png"] == {
        "path": "b.png",
        "class": "",
        "confidence": "",
        "unsure": "",
        "error": "is empty (zero bytes)",
    }
    assert rows["a/001.jpg"]["class"] == "" and "cannot be" in rows["a/001.jpg"]["error"]
    assert rows["a/002.png"]["class"] in ("cat", "dog") and rows["a/002.png"]["error"] == ""
    out = capsys.readouterr().out
    assert "2 images classified" in out and "images that cannot be used: 2, see the column" in out
    assert "b.png: is empty" in out
    assert (
        "left out: 1 ending in .txt" in caplog.text and "new/loop: a symbolic link" in caplog.text
    )


def test_one_file(own: Path, ask: Callable[..., Any]) -> None:
    shutil.copy(own / "photos/test/dog/000.png", "picture")  # the suffix does not matter
    (row,) = ask("picture")
    assert row["path"] == "picture" and row["class"]


def test_names_in_any_encoding(own: Path, ask: Callable[..., Any]) -> None:
    source = (own / "photos/test/dog/000.png").read_bytes()
    names = ['a,"b"\n.png', "ü ش.png", os.fsdecode(b"caf\xe9.png")]
    folder = Path(os.fsdecode(b"f\xe9"))
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(source)
    found = {row["path"] for row in ask(folder)}
    assert found == {'a,"b"\n.png', "ü ش.png", r"caf\udce9.png"}
    (row,) = ask(folder / names[2])
    assert row["path"] == r"caf\udce9.png" and row["class"]


def test_tables_of_images(ask: Callable[..., Any]) -> None:
    trees.folders(Path("new"), ["a", "b"], n=2)
    Path("new/list.csv").write_text("id;file\n1;b/001.jpg\n2;a/000.png\n3;a/gone.png\n")
    rows = ask("new/list.csv")
    assert [row["path"] for row in rows] == ["b/001.jpg", "a/000.png", "a/gone.png"]
    assert rows[0]["class"] and rows[2]["class"] == ""
    assert rows[2]["error"] == "cannot be read: No such file or directory"
    # paths from elsewhere; a list without a header; Parquet
    Path("list.csv").write_text("b/001.jpg\na/000.png\n")
    assert ask("list.csv", "root=new") == rows[:2]
    Path("new/windows.csv").write_text("path\r\nb\\001.jpg\r\na\\000.png\r\n")
    assert ask("new/windows.csv") == [
        row | {"path": row["path"].replace("/", "\\")} for row in rows[:2]
    ]
    shutil.copy("new/a/000.png", "new/b\\001.jpg")  # of this system, on which it is a letter
    assert ask("new/windows.csv")[0]["confidence"] == rows[1]["confidence"]
    absolute = str(Path("new/a/000.png").absolute())
    pyarrow.parquet.write_table(pyarrow.table({"path": [absolute] * 2}), "list.parquet")
    assert ask("list.parquet") == [rows[1] | {"path": absolute}] * 2


def test_many_images_are_written_as_they_come(
    own: Path, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of some thousand rows at a time, in the order of the images."""
    Path("many").mkdir()
    for i in range(30):
        Image.new("RGB", (20, 20), (8 * i, 0, 0)).save(f"many/{i:02d}.png")
    Path("many/07.png").write_bytes(b"x")
    whole = ask("many")
    stream = type(load(own / "run")).stream
    monkeypatch.setattr(
        "noisybsd.engine.classifier.Classifier.stream",
        lambda self, images, threads: stream(self, images, batch_size=4, threads=1),
    )
    monkeypatch.setattr(predictions, "WRITTEN_AT_ONCE", 10)
    told = [
        [(row["path"], row["class"], row["error"]) for row in rows] for rows in (whole, ask("many"))
    ]
    assert told[0] == told[1]
    assert main([f"run={own / 'run'}", "images=many", "out=out.parquet"]) == 0
    file = pyarrow.parquet.ParquetFile("out.parquet")
    rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert rows == [12, 12, 6]
    assert file.read()["path"].to_pylist() == [row["path"] for row in whole]


def test_how_far_it_is_is_told(
    ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.folders(Path("new"), ["a"], n=70)
    ask("new")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "TOLD_EVERY", 0.0)
    ask("new")
    assert "64 of 70 images, 0.0 min left" in capsys.readouterr().err
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal
    ask("new")
    err = capsys.readouterr().err
    assert "predicting" in err and "70/70" in err and "images, " not in err


def test_an_array_dataset_is_no_matter(
    tiny: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A run on digits classifies image files of any size and colour, also while it is not finished."""
    assert train(tiny("run.dir=run", "epochs=1", "data.limit=64")) == 0
    trees.folders(Path("new"), n=2)
    assert main(["run=run", "images=new", "out=out.csv", "probabilities=true"]) == 0
    header = Path("out.csv").read_text().splitlines()[0]
    assert header == ",".join(
        f'"{name}"'
        for name in (
            "path",
            "class",
            "confidence",
            "unsure",
            *(f"p_{i}" for i in range(10)),
            "error",
        )
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["images=nowhere"], "images=nowhere: there is no such file or folder"),
        (["images=empty"], "images=empty: no image in it"),
        (["images=texts"], "images=texts: no image in it, only 1 ending in .txt"),
        (["images=broken.png"], "not one of 1 images can be used; broken.png: is not an image"),
        (["images=no.csv"], "no.csv: no column path: has x"),
        (["images=out.csv"], "out.csv: line 2: path is empty, valid: the name of an image"),
        (["out=x.json"], "out: got 'x.json'; valid: a file that ends in .csv or .parquet"),
        (["out=new/x.csv"], "out: got 'new/x.csv'; there is no folder new; make it first"),
        (["out=texts/no.csv/x.csv"], "out: got 'texts/no.csv/x.csv'; there is no folder"),
        (["out=folder.csv"], "folder.csv: cannot be written: something that is no file is there"),
        (["run=texts"], "run=texts: not a run directory"),
        (["run="], "run: got ''; valid: a path"),
        (["threshold=2"], "threshold: got '2'; valid: a number from 0 to 1"),
        (["threshold=nan"], "threshold: got 'nan'"),
        (["probabilities=yes"], "probabilities: got 'yes'; valid: false, true"),
        (["workers=0.5"], "workers: got '0.5'; valid: a whole number from 1"),
        (["device=gpu"], "device: got 'gpu'"),
        (["weights=best"], "weights: got 'best'"),
        (["image=x"], "argument 'image=x': got 'image', did you mean images?"),
        (["images"], "argument 'images': got 'images'"),
        (["run=a", "run=b"], "run: given twice"),
        (["images=no.csv", "out=./no.csv"], "no.csv: is read as images, and would be overwritten"),
        (["root=texts", "images=texts"], "root=texts: goes with images=TABLE, got images=texts"),
    ],
)
def test_what_cannot_be_is_a_sentence_and_leaves_nothing(
    change: list[str],
    says: str,
    own: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "texts", "folder.csv"):
        Path(folder).mkdir()
    Path("texts/a.txt").write_text("")
    Path("broken.png").write_text("no image")
    Path("no.csv").write_text("x\n1\n")
    Path("out.csv").write_text("path,label\n,1\n")
    keys = [word.split("=")[0] for word in change]
    usual = [f"run={own / 'run'}", f"images={own / 'photos/test/dog'}", "out=result.csv"]
    before = sorted(Path().rglob("*"))
    assert main([*(word for word in usual if word.split("=")[0] not in keys), *change]) == 2
    error = capsys.readouterr().err
    assert f"error: {says}" in error and "Traceback" not in error
    assert sorted(Path().rglob("*")) == before


def test_what_is_missing_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["threshold=x"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: threshold: got 'x'; valid: a number from 0 to 1",
        "error: run=… is missing",
        "error: images=… is missing",
        "error: out=… is missing",
        "error: --help says more",
    ]


def test_a_failure_leaves_the_file_that_was_there(
    own: Path, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ask(own / "photos/test")

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("noisybsd.engine.classifier.Classifier._logits", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        ask(own / "photos/test/dog")
    assert len(Path("out.csv").read_text().splitlines()) == 1 + len(before)
    assert [path.name for path in Path().iterdir()] == ["out.csv"]


@pytest.mark.parametrize("command", ["predict", "export"])
def test_usage_comes_without_torch(command: str) -> None:
    code = (
        f"import sys; from noisybsd.{command} import main\n"
        "assert main([]) == 2 and main(['--help']) == 0 and 'torch' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert shown.stdout.count(f"usage: python -m noisybsd.{command} run=DIR") == 2
