"""Names of classes, splits and images as people write them."""

from __future__ import annotations

import os
import unicodedata
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noisybsd.data.names import (
    ImageNames,
    as_text,
    class_of,
    in_order,
    match,
    refuse_lookalikes,
    split_named,
    unknown_class,
)
from noisybsd.errors import UserError

CAFE = {form: unicodedata.normalize(form, "café") for form in ("NFC", "NFD")}


def test_bytes_that_are_no_text_are_written_as_escapes() -> None:
    assert as_text(os.fsdecode(b"caf\xe9/x.png")) == r"caf\udce9/x.png"
    assert as_text(Path("naïve/猫.png")) == "naïve/猫.png"


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train Train TRAIN training trainset train_set training-data"),
        ("val", "val valid Validation dev development"),
        ("test", "test Testing eval evaluation TEST"),
        (None, "trains tests cat evaluate values 1 validator contest"),
    ],
)
def test_splits_are_known_by_their_usual_names(split: str | None, names: str) -> None:
    assert {split_named(name) for name in names.split()} == {split}


# --- values of labels ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (" cat ", "cat"),
        ("polar bear\u00a0", "polar bear"),
        (b"cat", "cat"),
        ("007", "007"),
        ("7.0", "7"),
        ("7.", "7"),
        (7.0, "7"),
        (-0.0, "0"),
        (7, "7"),
        (np.int64(7), "7"),
        (np.float32(7), "7"),
        (Decimal("7.00"), "7"),
        (True, "True"),
        ("v1.5", "v1.5"),
        ("none", "none"),
        ("-foo", "-foo"),
    ],
)
def test_a_cell_names_a_class(value: Any, name: str) -> None:
    assert class_of(value) == name


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "is None, which stands for a missing value"),
        (float("nan"), "is nan, which stands for a missing value"),
        ("", "is '', which stands for a missing value"),
        ("  ", "which stands for a missing value"),
        ("nan", "is 'nan', which stands for a missing value"),
        ("NaN", "missing"),
        ("None", "missing"),
        ("<NA>", "missing"),
        (["a", "b"], "is a list"),
        ({"a": 1}, "is a dict"),
        (("a",), "is a tuple"),
        (0.5, "is '0.5', a number that is not whole"),
        ("1.50", "a number that is not whole"),
        ("1e3", "a number that is not whole"),
        (float("inf"), "a number that is not whole"),
        (-1, "is '-1', a negative number"),
        ("-1.0", "a negative number"),
    ],
)
def test_a_cell_that_names_no_class_is_refused(value: Any, reason: str) -> None:
    with pytest.raises(ValueError) as error:
        class_of(value)
    assert reason in str(error.value)


def test_a_class_that_a_card_names_is_one_whatever_it_looks_like() -> None:
    for name in ("None", "1.5", "-1", "nan"):
        assert class_of(name, known=["None", "1.5", "-1", "nan"]) == name


def test_numbers_are_in_the_order_of_numbers() -> None:
    assert in_order({"10", "9", "1"}) == ["1", "9", "10"]
    assert in_order({"10.0", "2.0", "1.0"}) == ["1.0", "2.0", "10.0"]
    assert in_order({"10", "9", "x"}) == ["10", "9", "x"]


@pytest.mark.parametrize(
    ("names", "how"),
    [
        (["Cat", "cat"], "case"),
        (["ice cream", "icecream"], "white space"),
        (["cat ", "cat"], "white space"),
        ([CAFE["NFC"], CAFE["NFD"]], "how an accented letter is encoded"),
        (["0", "00"], "how they write a number"),
        (["1", "1.0"], "how they write a number"),
        (["²nd", "2nd"], "encoding of letters"),
    ],
)
def test_names_that_likely_are_one_class_are_named(names: list[str], how: str) -> None:
    with pytest.raises(UserError) as error:
        refuse_lookalikes(["dog", *names], "here")
    message = str(error.value)
    assert how in message and all(ascii(name) in message for name in names)


def test_classes_of_letters_and_other_words_are_told_apart() -> None:
    refuse_lookalikes(["a", "A", "cafe", "café", "1", "10", "01x"], "here")


def test_an_unknown_class_is_told_from_one_that_is_written_otherwise() -> None:
    assert "differs from 'caf\\xe9' only in how an accented" in unknown_class(CAFE["NFD"], ["café"])
    assert "did you mean cat?" in unknown_class("cats", ["cat", "dog"])


# --- names of images ----------------------------------------------------------------------------

PATHS = ["a/000.png", "a/001.PNG", "b/000.png", "b/Über.jpg", "b/x.y.jpg", "c/7.png"]


@pytest.fixture
def images(tmp_path: Path) -> ImageNames:
    return ImageNames(PATHS, tmp_path / "imgs")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a/000.png", "a/000.png"),
        ("./a//000.png", "a/000.png"),
        ("a\\000.png", "a/000.png"),
        ("imgs/a/000.png", "a/000.png"),
        ("imgs\\a\\000.png", "a/000.png"),
        ("{root}/a/000.png", "a/000.png"),
        ("{root}/../imgs/a/000.png", "a/000.png"),
        ("001.PNG", "a/001.PNG"),
        ("001.png", "a/001.PNG"),
        ("A/001.png", "a/001.PNG"),
        ("001", "a/001.PNG"),
        ("a/000", "a/000.png"),
        ("x.y", "b/x.y.jpg"),
        (unicodedata.normalize("NFD", "b/Über.jpg"), "b/Über.jpg"),
        ("7", "c/7.png"),
    ],
)
def test_an_image_is_found_by_any_name_that_is_its_alone(
    images: ImageNames, tmp_path: Path, name: str, path: str
) -> None:
    found = images.find(name.replace("{root}", str(tmp_path / "imgs")))
    assert [PATHS[i] for i in found] == [path]


@pytest.mark.parametrize(
    "name",
    [
        *("c/000.png", "000.jpg", "other/a/000.png", "/data/a/000.png", "../imgs/a/000.png", "."),
        *("C:\\imgs\\a\\000.png", "http://x/a/000.png", "0", "00", "007", "a", "png", "", "/"),
    ],
)
def test_a_name_that_is_no_images_finds_none(images: ImageNames, name: str) -> None:
    assert images.find(name) == []


def test_a_name_that_may_be_several_images_is_not_guessed(images: ImageNames) -> None:
    assert images.find("000.png") == [0, 2]


def test_a_root_that_is_a_link_is_known_by_both_names(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "store")
    images = ImageNames(["a.png"], tmp_path / "link")
    for folder in ("store", "link"):
        assert images.find(str(tmp_path / folder / "a.png")) == [0]


def test_a_letter_of_a_file_name_may_be_a_backslash(tmp_path: Path) -> None:
    assert ImageNames(["a\\b.png", "a/b.png"], tmp_path).find("a\\b.png") == [0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.png", "b.png"], "names 2 of 3 training images, not 'c.png'"),
        (
            ["a.png", "b.png", "x.png"],
            r"no training image is called 'x.png' \(row 2\); the images are",
        ),
        (["a.png", "b.png", "a.png"], "row 2: 'a.png' is already on row 0"),
        (["a.png", "b.png", "./b.png"], "row 2: './b.png' is already on row 1"),
    ],
)
def test_names_must_be_those_of_all_images_once(names: list[str], message: str) -> None:
    images = ImageNames(["a.png", "b.png", "c.png"], "here")
    assert match(["c.png", "a.png", "b.png"], images, "t.csv", str).tolist() == [1, 2, 0]
    with pytest.raises(UserError, match=message):
        match(names, images, "t.csv", "row {}".format)
