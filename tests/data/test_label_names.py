"""Tables of labels that name their images: in manifests and in label files, or refused."""

from __future__ import annotations

import os
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from helpers import trees
from helpers.trees import load

from noisybsd.data.dataset import Dataset
from noisybsd.errors import UserError

CLASSES = "abc"
ROWS = [(f"{c}/{c}{i:03d}.png", c) for c in CLASSES for i in range(4)]
random.Random(1).shuffle(ROWS)


def number(name: str) -> str:
    return str(CLASSES.index(name))


def table(
    path: Callable[[str], str] = str,
    label: Callable[[str], str] = number,
    header: str | None = "path,label",
    separator: str = ",",
    end: str = "\n",
) -> str:
    """A table of all images in no order; all labels are those of the images' folders."""
    lines = [f"{path(p)}{separator}{label(c)}" for p, c in ROWS]
    head = [] if header is None else [header.replace(",", separator)]
    return end.join([*head, *lines, ""])


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve images in folders of three classes, below the working directory."""
    for i, (path, _) in enumerate(sorted(ROWS)):
        trees.picture(tmp_path / "imgs" / path, i)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "imgs"


def use(content: str | bytes, key: str, name: str = "t.csv") -> Dataset:
    """The dataset with this table as its labels or manifest."""
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return load("own", Path("imgs"), size=28, **{key: name})


def are_right(data: Dataset) -> bool:
    """Whether every image has the label of its folder, in whatever order the classes are."""
    pairs = [
        (path, data.class_names[label])
        for split in (data.train, data.test)
        for path, label in zip(split.paths or [], split.labels, strict=True)
    ]
    return len(pairs) == 12 and all(name in (path[0], number(path[0])) for path, name in pairs)


BOTH = pytest.mark.parametrize("key", ["labels", "manifest"])


@BOTH
@pytest.mark.parametrize(
    "column",
    [
        *("path", "Path", "filepath", "file_path", "image_path", "img_path", "file", "filename"),
        *("file_name", "File Name", "fname", "image", "img", "images", "image_name", "name", "key"),
    ],
)
def test_a_column_of_paths_by_any_usual_name(photos: Path, key: str, column: str) -> None:
    data = use(table(header=f"{column},label"), key)
    assert are_right(data)
    assert key == "manifest" or data.notes["labels_matched_by"] == "name"


@BOTH
@pytest.mark.parametrize("column", ["image_id", "id", "ID", "imageId", "name", "file"])
def test_a_column_of_names_without_folder_and_suffix(photos: Path, key: str, column: str) -> None:
    assert are_right(use(table(lambda p: Path(p).stem, header=f"{column},label"), key))


@BOTH
@pytest.mark.parametrize(
    "column",
    ["label", "Label", "labels", "class", "Class", "class_name", "category", "target", "y"],
)
def test_a_column_of_labels_by_any_usual_name(photos: Path, key: str, column: str) -> None:
    assert are_right(use(table(header=f"path,{column}"), key))


@BOTH
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_separator_and_end_of_line(photos: Path, key: str, separator: str, end: str) -> None:
    quoted = table(lambda p: f'"{p}"', separator=separator, end=end)
    assert are_right(use(table(separator=separator, end=end), key))
    assert are_right(use("\ufeff" + quoted, key))
    assert are_right(use(quoted.replace(separator, f"{separator} "), key))
    assert are_right(use(quoted.encode("utf-16"), key))


@BOTH
def test_what_a_spreadsheet_leaves_of_cleared_rows_and_columns(photos: Path, key: str) -> None:
    rows = [f"{row};;" for row in table(separator=";").splitlines()]
    assert are_right(use("\r\n".join([*rows, ";;;", ";;;", ""]), key))


@BOTH
@pytest.mark.parametrize(
    "path",
    [
        lambda p: p.replace("/", "\\"),
        lambda p: f"./{p}",
        lambda p: f"imgs/{p}",
        lambda p: f"imgs\\{p}".replace("/", "\\"),
        lambda p: str(Path.cwd() / "imgs" / p),
        lambda p: p.upper(),
        lambda p: p.split("/")[1],
        lambda p: p.removesuffix(".png"),
    ],
)
def test_paths_as_they_are_written_elsewhere(
    photos: Path, key: str, path: Callable[[str], str]
) -> None:
    assert are_right(use(table(path), key))


@pytest.mark.parametrize(
    "change",
    [
        lambda p: unicodedata.normalize("NFC", p),
        lambda p: p.upper() if p.startswith("b") else p,
        lambda p: f"imgs/{p}" if p.startswith("b") else p,
    ],
)
def test_some_paths_as_they_are_written_elsewhere(
    photos: Path, change: Callable[[str], str]
) -> None:
    """As a list of a folder that came from macOS, where only some folders have accents."""
    accent = unicodedata.normalize("NFD", "é")
    (photos / "b").rename(photos / f"b{accent}")
    rows = [(f"b{accent}{p[1:]}" if c == "b" else p, number(c)) for p, c in ROWS]
    text = "path,label\n" + "".join(f"{change(p)},{label}\n" for p, label in rows)
    assert are_right(use(text, "manifest"))


def test_a_missing_image_is_not_replaced_by_one_that_is_called_alike(photos: Path) -> None:
    (photos / "old/a").mkdir(parents=True)
    (photos / "a/a000.png").rename(photos / "old/a/a000.png")
    with pytest.raises(UserError, match=r"imgs/a/a000\.png: No such file"):
        use(table(), "manifest")


@BOTH
def test_a_table_without_a_header(photos: Path, key: str) -> None:
    assert are_right(use(table(header=None), key))
    swapped = "".join(f"{number(c)};{p}\n" for p, c in ROWS)
    assert are_right(use(swapped, key))


@BOTH
def test_names_of_classes_and_numbers_as_floats_are_labels(photos: Path, key: str) -> None:
    assert are_right(use(table(label=str), key))
    assert are_right(use(table(label=lambda c: f" {c} "), key))
    assert are_right(use(table(label=lambda c: f"{number(c)}.0"), key))


@BOTH
def test_parquet_with_an_index_that_pandas_shuffled(photos: Path, key: str) -> None:
    columns = {
        "label": [number(c) for _, c in ROWS],
        "filename": [p for p, _ in ROWS],
        "__index_level_0__": list(range(12)),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), "t.parquet")
    assert are_right(load("own", photos, size=28, **{key: "t.parquet"}))


def test_a_table_with_names_and_an_index_is_matched_by_names(photos: Path) -> None:
    text = ",path,label\n" + "".join(f"{i},{p},{c}\n" for i, (p, c) in enumerate(ROWS))
    assert are_right(use(text, "labels"))


def test_a_column_that_holds_names_is_known_by_what_is_in_it(photos: Path) -> None:
    assert are_right(use(table(header="picture,label"), "labels"))
    with pytest.raises(UserError, match=r"t\.csv: no column path: has picture, label"):
        use(table(header="picture,label"), "manifest")


def test_other_files_that_name_images(photos: Path) -> None:
    paths, labels = [p for p, _ in ROWS], [CLASSES.index(c) for _, c in ROWS]
    np.savez("t.npz", path=np.array(paths), label=np.array(labels))
    torch.save(dict(zip(paths, labels, strict=True)), "t.pt")
    torch.save({"files": paths, "label": torch.tensor(labels)}, "u.pt")
    torch.save({"files": paths, "label": [c for _, c in ROWS]}, "v.pt")
    trees.lines(Path("t.txt"), (f"{p} {c}" for p, c in ROWS))
    for name in ("t.npz", "t.pt", "u.pt", "v.pt", "t.txt"):
        assert are_right(load("own", photos, size=28, labels=name)), name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (table(lambda p: f"x/{p}"), r"t\.csv: column path: no training image is called 'x/"),
        (table(lambda p: f"/data/{p}"), "no training image is called '/data/"),
        (table(lambda p: f"C:\\imgs\\{p}"), r"no training image is called 'C:"),
        (table(header="id,label"), None),
        (table(lambda p: str(ROWS.index((p, p[0]))), header="id,label"), "column id: no training"),
        (
            "path,label\na/a000.png,0\n",
            "names 1 of 12 training images, not 'a/a001.png', 'a/a002.png'",
        ),
        (table() + "a/a000.png,1\n", r"line 14: 'a/a000.png' is already on line"),
        (table(label=lambda c: f"{c}{c}"), r"line 2: class got '(\w)\1', did you mean"),
        (
            table(label=lambda c: f"{number(c)},zebra", header="path,label,clean_label"),
            "line 2: clean_label: class got 'zebra'; valid: a, b, c, or a number",
        ),
        (
            table(label=lambda c: "1").replace(",1\n", ",b\n", 4).replace(",b\n", ",1\n", 3),
            "line 5: 'b' is the name of a class, but '1' on line 2 is a number; valid: names in all",
        ),
        (table(label=lambda c: "7"), "label 7 is out of range, valid: 0 to 2"),
        (table(label=lambda c: "nan"), "line 2: label is 'nan', which stands for a missing value"),
        (table(label=lambda c: "0.5"), "line 2: label is '0.5', a number that is not whole"),
        (
            table(label=lambda c: "é").encode("latin-1"),
            "line 2: not readable as text: save it as UTF-8",
        ),
    ],
)
def test_what_names_no_image_or_no_class_is_refused(
    photos: Path, text: str | bytes, message: str | None
) -> None:
    if message is None:
        assert are_right(use(text, "labels"))
        return
    with pytest.raises(UserError, match=message):
        use(text, "labels")


def test_a_name_that_may_be_two_images_is_refused(photos: Path) -> None:
    trees.picture(photos / "b/a000.png", 99)
    with pytest.raises(UserError, match=r"'a000.png' may mean 'a/a000.png' and 'b/a000.png'"):
        use(table(lambda p: Path(p).name), "labels")


def test_labels_without_names_are_taken_by_position_and_it_is_said(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = use("label\n" + "".join(f"{number(c)}\n" for _, c in sorted(ROWS)), "labels")
    assert are_right(data) and data.notes["labels_matched_by"] == "position"
    assert "t.csv names no images: label i is taken as that of training image i" in caplog.text
    caplog.clear()
    rows = [f"{i},{number(c)}" for i, (_, c) in enumerate(sorted(ROWS))]
    data = use("\n".join(["index,label", *reversed(rows)]), "labels")
    assert are_right(data) and data.notes["labels_matched_by"] == "index" and not caplog.text


def test_names_are_refused_where_the_images_have_none(tmp_path: Path) -> None:
    labels = load("digits", tmp_path).train.labels
    path = trees.lines(
        tmp_path / "t.csv", ["id,label", *(f"{i},{c}" for i, c in enumerate(labels))]
    )
    with pytest.raises(
        UserError, match=r"t\.csv: column id names images, but those of this dataset"
    ):
        load("digits", tmp_path, labels=str(path))


def test_a_number_that_is_also_the_name_of_another_class_is_refused(tmp_path: Path) -> None:
    trees.folders(tmp_path / "imgs", ["1", "2", "3"], n=4)
    paths = sorted(str(p.relative_to(tmp_path / "imgs")) for p in tmp_path.rglob("*.*"))
    rows = [f"{path},{1 + i % 2}" for i, path in enumerate(paths)]
    path = trees.lines(tmp_path / "t.csv", ["path,label", *rows])
    with pytest.raises(
        UserError, match=r"line 2: '1' is the name of class 0 and the number of class '2'"
    ):
        load("own", tmp_path / "imgs", labels=str(path))
    trees.lines(path, ["path,label", *rows[:-1], f"{paths[-1]},3"])  # no number: they are names
    data = load("own", tmp_path / "imgs", labels=str(path), test_fraction=0.25)
    assert data.test.labels.max() == 2


# --- values in manifests ------------------------------------------------------------------------


def manifest_of(labels: list[Any], **more: list[Any]) -> Dataset:
    columns = {"path": [p for p, _ in sorted(ROWS)], "label": labels, **more}
    pyarrow.parquet.write_table(pyarrow.table(columns), "t.parquet")
    return load("own", Path("imgs"), size=28, manifest="t.parquet")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "row 4: label is nan, which stands for a missing value"),
        (None, "row 4: label is None, which stands for a missing value"),
        (0.5, r"row 4: label is '0\.5', a number that is not whole"),
        (-1.0, "row 4: label is '-1.0', a negative number"),
    ],
)
def test_values_that_are_no_class_are_refused_by_row(
    photos: Path, value: Any, message: str
) -> None:
    labels: list[Any] = [float(i // 4) for i in range(12)]
    labels[3] = value
    with pytest.raises(UserError, match=message):
        manifest_of(labels)


def test_lists_are_refused_by_row(photos: Path) -> None:
    with pytest.raises(UserError, match=r"row 1: label is a list, \['a', 'b'\]"):
        manifest_of([["a", "b"]] * 12)


def test_floats_and_truth_values_are_classes(photos: Path) -> None:
    assert manifest_of([float(5 * (i // 4)) for i in range(12)]).class_names == ("0", "5", "10")
    assert manifest_of([i % 2 == 0 for i in range(12)]).class_names == ("False", "True")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", "dog", "7"], r"label holds names and numbers: '7 \(row 3\)', '7 \(row 6\)'"),
        (["0", "1", "00"], "classes '0' and '00' differ only in how they write a number"),
        (["cat", "dog", "Cat"], "classes 'cat' and 'Cat' differ only in case"),
        (
            ["dog", *(unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))],
            r"classes 'caf\\xe9' and 'cafe\\u0301' differ only in how an accented letter",
        ),
    ],
)
def test_classes_that_likely_are_a_mistake_are_named(
    photos: Path, labels: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        manifest_of(labels * 4)


def test_white_space_around_a_class_is_none_of_it(photos: Path) -> None:
    assert manifest_of(["cat ", "cat", " dog"] * 4).class_names == ("cat", "dog")


@pytest.mark.parametrize("split", ["Train", "training"])
@pytest.mark.parametrize("other", ["Test", "valid", "dev", "eval"])
def test_splits_by_their_usual_names(photos: Path, split: str, other: str) -> None:
    splits = [split if i % 4 else other for i in range(12)]
    data = manifest_of([c for _, c in sorted(ROWS)], split=splits)
    assert len(data.train) == 9 and len(data.test) == 3


def test_validation_rows_beside_test_rows_are_named(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = ["train", "train", "val", "test"] * 3
    data = manifest_of([c for _, c in sorted(ROWS)], split=splits)
    assert len(data.train) == 6 and len(data.test) == 3
    assert "not used: 3 images of the split val" in caplog.text


def test_clean_labels_of_some_rows_count_for_these_alone(photos: Path) -> None:
    labels = [c for _, c in sorted(ROWS)]
    clean: list[Any] = [None] * 12
    clean[0], clean[5], clean[6] = "b", "b", "c"
    data = manifest_of(labels, clean_label=clean, split=["train"] * 12)
    whole = (
        {
            path: clean
            for split in (data.train, data.test)
            for path, clean in zip(split.paths or [], split.clean_labels.tolist(), strict=True)  # type: ignore[union-attr]
        }
        if data.train.clean_labels is not None and data.test.clean_labels is not None
        else {}
    )
    expected = [-1 if c is None else CLASSES.index(c) for c in clean]
    for (path, _), value in zip(sorted(ROWS), expected, strict=True):
        assert whole.get(path, value) == value
    assert data.train.labels.tolist() == [CLASSES.index(p[0]) for p in data.train.paths or []]
    assert "known for" in data.notes["clean_labels"]


def test_paths_that_are_no_text_are_read_from_a_list(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    for i in range(4):
        trees.picture(tmp_path / f"{i}.png", i)
    trees.picture(tmp_path / name, 4)
    table = pyarrow.table(
        {"path": [*(f"{i}.png".encode() for i in range(4)), b"caf\xe9.png"], "label": [*"ababa"]}
    )
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    data = load("own", tmp_path, manifest="t.parquet")
    assert name in [*(data.train.paths or []), *(data.test.paths or [])]
