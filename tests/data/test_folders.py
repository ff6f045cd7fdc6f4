"""Which folders are splits and which are classes: by their names and what is in them, or refused."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from helpers import trees
from helpers.trees import load

from noisybsd.data.dataset import Dataset
from noisybsd.data.find import Found
from noisybsd.data.readers.folders import arrange
from noisybsd.errors import UserError


def counts(data: Dataset) -> tuple[list[int], list[int]]:
    """Images of each class to train on, and to test on."""
    return tuple(
        np.bincount(split.labels, minlength=len(data.class_names)).tolist()
        for split in (data.train, data.test)
    )


def found(*names: str, images: int = 6) -> Found:
    """So many images in each of these folders; a name that ends in `!` is an empty folder."""
    folders = [name.rstrip("!") for name in names]
    above = {"/".join(f.split("/")[:i]) for f in folders for i in range(1, 1 + f.count("/") + 1)}
    full = [name for name in names if not name.endswith("!")]
    paths = [f"{name}/{i}.png" for name in full for i in range(images)]
    return Found(sorted(paths), folders=sorted(above))


def arranged(*names: str) -> dict[str, dict[str, int]]:
    plan = arrange(found(*names), Path("root"))
    return {split: {k: len(v) for k, v in each.items()} for split, each in plan.splits.items()}


@pytest.mark.parametrize("base", ["", "photos/", "a/b/"])
@pytest.mark.parametrize("train", ["train", "Train", "training", "TRAINING", "train_set"])
@pytest.mark.parametrize("test", ["test", "Test", "testing", "eval", "evaluation"])
def test_splits_by_their_usual_names_at_any_depth(base: str, train: str, test: str) -> None:
    names = [f"{base}{split}/{name}" for split in (train, test) for name in ("cat", "dog")]
    assert arranged(*names) == {"train": {"cat": 6, "dog": 6}, "test": {"cat": 6, "dog": 6}}


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "dev"])
def test_validation_images_are_to_test_on_where_there_are_no_others(
    val: str, tmp_path: Path
) -> None:
    for name in ("train", val):
        trees.folders(tmp_path / name, n=3)
    data = load("own", tmp_path)
    assert counts(data) == ([3, 3], [3, 3])
    assert data.notes["notices"] == [f"the test images are those in {val}/"]
    trees.folders(tmp_path / "test", n=2)
    data = load("own", tmp_path)
    assert counts(data) == ([3, 3], [2, 2])
    assert data.notes["notices"] == [f"not used: {val}/ and its 6 images"]


def test_splits_within_the_folders_of_classes() -> None:
    names = [f"{name}/{split}" for name in ("cat", "dog") for split in ("Train", "test")]
    assert arranged(*names) == {"train": {"cat": 6, "dog": 6}, "test": {"cat": 6, "dog": 6}}


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["train", "car", "bus"], {"train", "car", "bus"}),
        (["Train", "test", "car"], {"Train", "test", "car"}),
        (["test", "other"], {"test", "other"}),
        (["valid", "invalid"], {"valid", "invalid"}),
        (["cat/siamese", "cat/persian", "dog/pug"], {"cat", "dog"}),
        (["photos/cat", "photos/dog"], {"cat", "dog"}),
        (["cat", "dog"], {"cat", "dog"}),
        (["a/test", "b/test"], {"a", "b"}),
    ],
)
def test_a_class_may_have_the_name_of_a_split(names: list[str], classes: set[str]) -> None:
    plan = arranged(*names)
    assert {*plan} == {"train"} and {*plan["train"]} == classes
    assert sum(plan["train"].values()) == 6 * len(names)


def test_a_class_called_train_in_a_folder_called_train() -> None:
    names = [f"{split}/{name}" for split in ("train", "test") for name in ("train", "car")]
    assert arranged(*names) == {"train": {"train": 6, "car": 6}, "test": {"train": 6, "car": 6}}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train", "test"], "the images of train/, test/ are in no folder of a class"),
        (["train/a", "train/b", "extra/a"], "train/ may be a split or a class beside extra/"),
        (
            ["train/a", "train/b", "unlabelled"],
            "train/ may be a split or a class beside unlabelled/",
        ),
        (["a", "b", "test/a", "test/b"], "test/ may be a split or a class beside a/, b/"),
        (["a/train", "a/test", "b"], "are in a/, but b/ has images outside of such folders"),
        (["x/train/a", "x/test/a", "y/train/a", "y/test/a"], "x/, y/ look like datasets.*root/x"),
        (
            ["train/a", "Training/a", "test/a"],
            "Training/, train/ are both folders of the train split",
        ),
        (["train/a", "test/a", "testing/a"], "test/, testing/ are both folders of the test split"),
        (["train/a", "train/b", "test!"], "test: no image in it; without that folder a share"),
    ],
)
def test_what_may_be_read_in_two_ways_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        arrange(found(*names), Path("root"))


def test_test_images_alone_are_not_trained_on(tmp_path: Path) -> None:
    trees.folders(tmp_path / "Testing", n=3)
    with pytest.raises(UserError, match=r"has Testing/ and no folder of training images, train/"):
        load("own", tmp_path)


def test_folders_and_images_that_are_not_used_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "test"):
        trees.folders(tmp_path / "ds" / split, n=3)
    trees.picture(tmp_path / "ds/extra/1.png")
    trees.picture(tmp_path / "ds/train/cover.png")
    trees.picture(tmp_path / "ds/train/@eaDir/1.png")
    trees.picture(tmp_path / "overview.png")
    trees.lines(tmp_path / "ds/train/cat/notes.txt", ["x"])
    data = load("own", tmp_path)
    assert counts(data) == ([3, 3], [3, 3])
    assert data.notes["notices"] == ["the images are those in ds/", "not used: ds/extra/"]
    assert data.notes["left_out"] == {
        "in @eaDir/ (a system folder)": 1,
        "ending in .txt (no format that is read)": 1,
        "in no folder of a class": 2,
    }
    told = "left out: 1 in @eaDir/ (a system folder), 1 ending in .txt (no format that is read), 2 in no"
    assert told in caplog.text and "not used: ds/extra/" in caplog.text


def test_unlabelled_test_images_are_named_and_a_share_is_held_out(tmp_path: Path) -> None:
    trees.folders(tmp_path / "train", n=10)
    for i in range(5):
        trees.picture(tmp_path / f"test/{i}.png", i)
    data = load("own", tmp_path)
    assert counts(data) == ([8, 8], [2, 2])
    assert data.notes["notices"] == ["not used: test/"]
    assert data.notes["left_out"] == {"in no folder of a class": 5}


def test_an_empty_class_is_named_beside_a_folder_of_splits(tmp_path: Path) -> None:
    trees.folders(tmp_path / "train", n=3)
    (tmp_path / "train/fish").mkdir()
    with pytest.raises(UserError, match="train/fish: no image in it; every class needs one"):
        load("own", tmp_path)


@pytest.mark.parametrize(
    ("names", "how"),
    [
        (["Cat", "cat"], "case"),
        (["cat ", "cat"], "white space"),
        ([unicodedata.normalize(form, "café") for form in ("NFC", "NFD")], "accented letter"),
        (["0", "00"], "how they write a number"),
    ],
)
def test_folders_that_likely_are_of_one_class_are_named(
    tmp_path: Path, names: list[str], how: str
) -> None:
    trees.folders(tmp_path, names, n=4)
    with pytest.raises(UserError, match=f"differ only in .*{how}"):
        load("own", tmp_path)
    if how != "white space":  # that a card of one's own lists them is the way out
        card = trees.card(tmp_path.parent, "own", classes=names)
        assert load(card, tmp_path).class_names == tuple(names)


def test_a_test_class_in_other_capitals_is_named(tmp_path: Path) -> None:
    trees.folders(tmp_path / "train", ["Cat", "Dog"], n=3)
    trees.folders(tmp_path / "test", ["cat", "Dog"], n=3)
    with pytest.raises(
        UserError, match=r"test/cat: class got 'cat', which differs from 'Cat' only"
    ):
        load("own", tmp_path)


def test_names_of_classes_that_are_no_text_can_be_written(tmp_path: Path) -> None:
    latin = os.fsdecode(b"caf\xe9")
    trees.folders(tmp_path, [latin, "dog"], n=4)
    data = load("own", tmp_path)
    assert data.class_names == (r"caf\udce9", "dog")
    assert data.train.paths is not None and data.train.paths[0].startswith(f"{latin}/")
    "\n".join(data.class_names).encode()


def test_floats_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    trees.folders(tmp_path, ["1.0", "2.0", "10.0"], n=2)
    assert load("own", tmp_path).class_names == ("1.0", "2.0", "10.0")
