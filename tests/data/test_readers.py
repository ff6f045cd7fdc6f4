"""Readers against miniature trees of every layout, and what they say of data that are not right."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from helpers import trees
from helpers.trees import load

from noisybsd.data.cards import load_card
from noisybsd.data.dataset import load_evaluation
from noisybsd.data.images import ImageFiles
from noisybsd.data.readers.arrays import load_pickle
from noisybsd.data.splits import Split, holdout_by_path, stratified_holdout
from noisybsd.errors import UserError
from noisybsd.settings import DataConfig


def numbers(split: Split) -> list[int]:
    """The numbers of the pictures of a split, in its order."""
    assert isinstance(split.images, ImageFiles)
    return [trees.number_of(split.images.decode(i)) for i in range(len(split))]


# --- hold-out -----------------------------------------------------------------------------------


def test_holdout_takes_the_same_share_of_every_class() -> None:
    labels = np.repeat([0, 1, 2], [100, 10, 1])
    chosen = stratified_holdout(labels, 0.2)
    assert np.bincount(labels[chosen], minlength=3).tolist() == [20, 2, 0]
    assert np.flatnonzero(chosen)[:5].tolist() == [
        0,
        1,
        2,
        9,
        11,
    ]  # on every machine, with every numpy
    assert (stratified_holdout(labels, 0.2) == chosen).all()
    assert (stratified_holdout(labels, 0.2, seed=1) != chosen).any()


def test_holdout_leaves_an_image_of_each_class_on_either_side() -> None:
    labels = np.repeat([0, 1], 2)
    for fraction in (0.01, 0.99):
        assert np.bincount(labels[stratified_holdout(labels, fraction)]).tolist() == [1, 1]


# --- digits, CIFAR ------------------------------------------------------------------------------


def test_digits() -> None:
    data = load("digits", Path("nowhere"))
    assert data.train.images.shape == (1438, 1, 8, 8) and data.test.images.shape == (359, 1, 8, 8)
    assert data.train.images.max() == 255 and data.train.images.min() == 0
    pixels = data.train.images.double() / 255
    assert np.allclose([pixels.mean(), pixels.std()], [*data.mean, *data.std], atol=1e-3)
    assert np.bincount(data.test.labels).tolist() == pytest.approx([36] * 10, abs=1)


def test_cifar10_is_read_in_the_order_of_its_batches(tmp_path: Path) -> None:
    labels = trees.cifar10(tmp_path)
    data = load("cifar10", tmp_path, verify=False)
    assert data.train.images.shape == (100, 3, 32, 32)
    assert data.train.images[:, 1, 5, 7].tolist() == list(range(100))
    assert data.test.images[:, 0, 0, 0].tolist() == list(range(100, 120))
    assert (data.train.labels == labels).all() and data.class_names[9] == "truck"


def test_cifar100_takes_fine_labels(tmp_path: Path) -> None:
    labels = trees.cifar100(tmp_path)
    data = load("cifar100", tmp_path, verify=False)
    assert (data.train.labels == labels).all() and len(data.class_names) == 100


def test_channels_come_first(tmp_path: Path) -> None:
    trees.cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py/test_batch"
    pixels = np.arange(3072) // 1024  # red, then green, then blue, row by row
    pixels[:2] = 9
    batch = {"data": pixels[None].astype(np.uint8), "labels": [3]}
    path.write_bytes(pickle.dumps(batch))
    image = load("cifar10", tmp_path, verify=False).test.images[0]
    assert image[:, 5, 5].tolist() == [0, 1, 2] and image[0, 0, :3].tolist() == [9, 9, 0]


def python2_pickle(pixels: np.ndarray, labels: list[int]) -> bytes:
    """What Python 2 and numpy 1 wrote: arrays are byte strings, as in the official archive."""

    def short(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n(" + short(b"u1") + b"K\x00K\x01tR(K\x03" + short(b"|")
    dtype += b"NNN" + number(-1) + number(-1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + short(b"b") + b"tR"
    raw = pixels.tobytes()
    shape = b"(" + b"".join(map(number, pixels.shape)) + b"t"
    array += b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    listed = b"](" + b"".join(map(number, labels)) + b"e"
    return b"\x80\x02}(" + short(b"data") + array + short(b"labels") + listed + b"u."


def test_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    path = tmp_path / "batch"
    path.write_bytes(python2_pickle(pixels, [3, 7]))
    content = load_pickle(path)
    assert (content["data"] == pixels).all() and content["labels"] == [3, 7]


class Evil:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_is_refused_before_it_does(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({"data": Evil(tmp_path / "owned")}))
    with pytest.raises(UserError, match=r"batch: .*posix\.mkdir, which could run code"):
        load_pickle(path)
    assert not (tmp_path / "owned").exists()


def rewrite(path: Path, **entries: object) -> None:
    batch = pickle.loads(path.read_bytes()) | entries
    path.write_bytes(
        pickle.dumps({key: value for key, value in batch.items() if value is not None})
    )


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"labels": [0] * 19 + [10]}, "data_batch_2: label 10 of image 19 is out of range"),
        ({"labels": [-1] + [0] * 19}, "data_batch_2: label -1 of image 0 is out of range"),
        ({"labels": [0] * 19}, "data_batch_2: data is uint8 .* for its 19 labels"),
        ({"labels": None}, "data_batch_2: lacks labels"),
        ({"data": np.zeros((20, 3072))}, "data_batch_2: data is float64"),
        (
            {"labels": [0.5] * 20},
            r"data_batch_2: labels: got float64 of shape \(20,\), expected int",
        ),
        ({"labels": ["0"] * 20}, r"data_batch_2: labels: got <U1 of shape"),
        ({"labels": [[0]] * 10 + [[0, 1]] * 10}, "data_batch_2: labels is a list that is no array"),
    ],
)
def test_a_wrong_batch_is_named(tmp_path: Path, entries: dict[str, object], message: str) -> None:
    trees.cifar10(tmp_path)
    rewrite(tmp_path / "cifar-10-batches-py/data_batch_2", **entries)
    with pytest.raises(UserError, match=message):
        load("cifar10", tmp_path, verify=False)


def test_a_card_with_other_classes_than_cifars_is_named(tmp_path: Path) -> None:
    trees.cifar10(tmp_path)
    nine = list(load_card("cifar10").classes[:9])
    card = trees.card(tmp_path, "cifar10", classes=nine, asymmetric=None, checksums=None)
    with pytest.raises(UserError, match=r"cifar10: classes: layout cifar has 10 or 100 .* got 9"):
        load(card, tmp_path)


def test_a_truncated_batch_is_named(tmp_path: Path) -> None:
    trees.cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py/data_batch_3"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="data_batch_3: not a readable CIFAR batch"):
        load("cifar10", tmp_path, verify=False)


def test_a_missing_batch_says_how_to_get_it(tmp_path: Path) -> None:
    trees.cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/data_batch_3").unlink()
    with pytest.raises(UserError, match=r"data_batch_3: not there.*noisybsd\.data prepare cifar10"):
        load("cifar10", tmp_path, verify=False)


# --- lists of files -----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["images", "flat", "annotations"])
def test_clothing1m_in_its_three_layouts(tmp_path: Path, layout: str) -> None:
    train = trees.clothing1m(tmp_path / layout, layout)
    data = load("clothing1m", tmp_path / layout)
    assert numbers(data.train) == list(range(28)) and numbers(data.test) == list(range(28, 42))
    assert data.train.labels.tolist() == [label for _, label in train]
    assert data.train.clean_labels is None and data.notes["noise"]["real_rate"] is None
    assert data.notes["test_labels"] == "clean" and data.notes["published_rate"] == 0.385
    assert data.train.images.shape == (28, 3, 256, 256) and data.size == 224


def test_clothing1m_lists_that_do_not_fit(tmp_path: Path) -> None:
    train = trees.clothing1m(tmp_path)
    labels, keys = tmp_path / "noisy_label_kv.txt", tmp_path / "noisy_train_key_list.txt"
    pairs = [f"{key} {label}" for key, label in train]

    trees.lines(labels, pairs[1:])
    with pytest.raises(UserError, match=r"images/0/00/0234,0567\.jpg has no label in noisy_label"):
        load("clothing1m", tmp_path)
    trees.lines(labels, [*pairs[:-1], f"{train[-1][0]} 14"])
    with pytest.raises(UserError, match=r"noisy_label_kv.*14'.*label from 0 to 13"):
        load("clothing1m", tmp_path)
    trees.lines(labels, [*pairs, "images/1/02/3.jpg"])
    with pytest.raises(UserError, match=r"noisy_label_kv\.txt: line 'images/1/02/3\.jpg'"):
        load("clothing1m", tmp_path)
    trees.lines(labels, pairs)
    trees.lines(keys, [*(key for key, _ in train), train[3][0]])
    with pytest.raises(UserError, match=r"key_list.*images/3/03/3234,3567\.jpg is listed twice"):
        load("clothing1m", tmp_path)
    labels.unlink()
    with pytest.raises(UserError, match=r"noisy_label_kv\.txt: not there.*ask the authors"):
        load("clothing1m", tmp_path)


def test_missing_and_empty_files_stop_or_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trees.clothing1m(tmp_path)
    (tmp_path / "images/5/05/5234,5567.jpg").unlink()
    (tmp_path / "images/7/07/7234,7567.jpg").write_bytes(b"")
    (tmp_path / "images/0/30/30234,30567.jpg").unlink()
    with pytest.raises(UserError) as error:
        load("clothing1m", tmp_path)
    assert "5234,5567.jpg: No such file" in str(error.value)
    assert "7234,7567.jpg: is empty" in str(error.value) and "on_error=skip" in str(error.value)
    data = load("clothing1m", tmp_path, on_error="skip")
    assert numbers(data.train) == [i for i in range(28) if i not in (5, 7)]
    assert len(data.test) == 13 and data.notes["skipped_images"] == 3
    logged = [record.getMessage() for record in caplog.records]
    assert logged == [f"left out: {problem}" for problem in data.notes["skipped"]]
    assert data.train.labels.tolist() == [i % 14 for i in range(28) if i not in (5, 7)]


def test_not_one_image_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    trees.clothing1m(tmp_path, "images")
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"not one usable image of 28: .*No such file"):
        load("clothing1m", tmp_path, on_error="skip")
    trees.clothing1m(tmp_path / "new")
    (tmp_path / "new/clean_test_key_list.txt").write_text("")
    with pytest.raises(UserError, match=r"not one usable image of 0$"):
        load("clothing1m", tmp_path / "new", on_error="skip")


def test_webvision_keeps_the_first_fifty_classes(tmp_path: Path) -> None:
    trees.webvision(tmp_path)
    data = load("webvision", tmp_path)
    assert numbers(data.train) == [0, 1, 2] and data.train.labels.tolist() == [0, 1, 49]
    assert numbers(data.test) == [10, 11] and data.test.labels.tolist() == [0, 49]
    assert data.class_names[0] == "tench" and data.class_names[49] == "African_crocodile"


def test_imagenet_validation_images_are_in_webvisions_classes(tmp_path: Path) -> None:
    from noisybsd.data.cards import load_card

    for i, name in enumerate(load_card("webvision_imagenet").folders):
        trees.picture(tmp_path / name / "ILSVRC2012_val_1.JPEG", i)
    data = DataConfig(name="webvision_imagenet", root=str(tmp_path))
    [(name, split)] = load_evaluation(data).sets
    assert name == "test" and numbers(split) == list(range(50)) == split.labels.tolist()
    assert load_card("webvision_imagenet").classes == load_card("webvision").classes


@pytest.mark.parametrize("folder", ["images", "train"])
def test_food101n_trains_on_one_release_and_tests_on_another(tmp_path: Path, folder: str) -> None:
    trees.food101n(tmp_path, folder)
    data = load("food101n", tmp_path)
    names = [data.class_names[label] for label in data.train.labels]
    assert names == ["apple_pie", "waffles", "sushi"] and numbers(data.train) == [0, 1, 2]
    assert [data.class_names[label] for label in data.test.labels] == ["waffles", "apple_pie"]
    assert numbers(data.test) == [10, 11]


def test_food101n_class_that_does_not_exist(tmp_path: Path) -> None:
    trees.food101n(tmp_path)
    path = tmp_path / "food-101/meta/test.txt"
    trees.lines(path, ["wafles/10"])
    with pytest.raises(
        UserError, match=r"test\.txt: wafles/10: got 'wafles', did you mean waffles"
    ):
        load("food101n", tmp_path)


def test_animal10n_has_its_labels_in_the_names(tmp_path: Path) -> None:
    trees.animal10n(tmp_path)
    data = load("animal10n", tmp_path)
    paths = data.train.paths
    assert paths is not None and len(paths) == 20
    assert [int(Path(path).name.split("_")[0]) for path in paths] == data.train.labels.tolist()
    assert numbers(data.test) == list(range(100, 110))


@pytest.mark.parametrize("name", ["10_3.jpg", "cat.jpg", "-1_3.jpg"])
def test_animal10n_name_without_a_label(tmp_path: Path, name: str) -> None:
    trees.animal10n(tmp_path)
    trees.picture(tmp_path / "training" / name)
    with pytest.raises(UserError, match=f"training/{name}: the name must start with a label"):
        load("animal10n", tmp_path)


# --- own data: folders --------------------------------------------------------------------------


def test_one_folder_per_class_and_a_test_split_held_out(tmp_path: Path) -> None:
    trees.folders(tmp_path)
    data = load("own", tmp_path)
    assert data.class_names == ("cat", "dog") and len(data.train) == 16 and len(data.test) == 4
    assert np.bincount(data.test.labels).tolist() == [2, 2]
    assert sorted(numbers(data.train) + numbers(data.test)) == list(range(20))
    assert [number // 10 for number in numbers(data.train)] == data.train.labels.tolist()
    assert data.notes["test_labels"] == "noisy" and data.train.clean_labels is None
    same = load("own", tmp_path, seed=5)
    assert same.train.paths == data.train.paths


@pytest.mark.parametrize("test_folder", ["test", "val", "validation"])
def test_train_and_test_folders(tmp_path: Path, test_folder: str) -> None:
    trees.folders(tmp_path / "train", n=3)
    trees.folders(tmp_path / test_folder, n=2)
    data = load("own", tmp_path)
    assert numbers(data.train) == list(range(6)) and numbers(data.test) == list(range(4))
    assert data.notes["test_labels"] == "unverified"


def test_folders_of_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    trees.folders(tmp_path, ["0", "1", "2", "10"], n=2)
    assert load("own", tmp_path).class_names == ("0", "1", "2", "10")


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    trees.folders(tmp_path, ["test", "other"], n=4)
    assert load("own", tmp_path).class_names == ("other", "test")


def test_other_files_and_hidden_folders_are_not_images(tmp_path: Path) -> None:
    trees.folders(tmp_path, n=4)
    (tmp_path / "cat/notes.txt").write_text("x")
    trees.picture(tmp_path / "cat/.thumbnails/1.jpg")
    trees.picture(tmp_path / ".cache/1.jpg")
    trees.picture(tmp_path / "cat/deep/down/9.JPG")
    data = load("own", tmp_path)
    assert len(data.train) + len(data.test) == 9


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    trees.folders(tmp_path)
    (tmp_path / "fish").mkdir()
    with pytest.raises(
        UserError, match=r"fish: no image in it; .*: put some there, or remove the folder"
    ):
        load("own", tmp_path)


def test_an_empty_test_folder_is_named(tmp_path: Path) -> None:
    trees.folders(tmp_path / "train", n=3)
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match=r"test: no image in it; without that folder"):
        load("own", tmp_path)


@pytest.mark.parametrize(("share", "count"), [(0.001, 0), (0.999, 2)])
def test_a_share_that_leaves_one_side_empty_is_refused(
    tmp_path: Path, share: float, count: int
) -> None:
    trees.folders(tmp_path, n=1)
    with pytest.raises(
        UserError, match=rf"of 2 images data.test_fraction={share} holds out {count}"
    ):
        load("own", tmp_path, test_fraction=share)


def test_what_is_held_out_depends_on_paths_alone(tmp_path: Path) -> None:
    trees.folders(tmp_path, n=25)
    first = load("own", tmp_path)
    assert first.test.paths is not None and np.bincount(first.test.labels).tolist() == [5, 5]
    # other labels
    paths = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*"))
    rows = [f"{path},{('dog', 'cat')[i % 3 > 0]}" for i, path in enumerate(paths)]
    labels = trees.lines(tmp_path / "labels.csv", ["path,label", *rows])
    other = load("own", tmp_path, labels=str(labels))
    assert other.test.paths == first.test.paths and other.sha256 != first.sha256
    assert (other.test.labels != first.test.labels).any()
    # a list instead of folders, in another order
    listed = load(
        "own", tmp_path, manifest=str(trees.lines(tmp_path / "m.csv", ["path,label", *rows[::-1]]))
    )
    assert set(listed.test.paths or ()) == set(first.test.paths)
    # images that are gone, and new ones in another folder, hardly change the rest
    for path in paths[::10]:
        (tmp_path / path).unlink()
    trees.folders(tmp_path, ["fish"], n=10)
    fewer = load("own", tmp_path)
    now = {path for path in fewer.test.paths or () if not path.startswith("fish")}
    before = {path for path in first.test.paths if (tmp_path / path).exists()}
    assert len(now ^ before) <= 2 and len(before) >= 7


def test_many_small_folders_have_their_share_of_what_is_held_out() -> None:
    paths = [f"{i // 2}/{i % 2}.jpg" for i in range(2000)]
    chosen = holdout_by_path(paths, 0.2)
    assert 360 < chosen.sum() < 440
    assert np.flatnonzero(chosen)[:5].tolist() == [4, 11, 13, 31, 33]  # on every machine


def test_a_class_that_is_wholly_held_out_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trees.folders(tmp_path, n=25)
    trees.folders(tmp_path, ["r0", "r1"], n=1)  # of which the hash holds out r0
    assert load("own", tmp_path).test.labels.tolist().count(2) == 1
    assert "no image to train on is left of 'r0', since all are held out to test on" in caplog.text


def test_a_test_class_without_training_images_is_named(tmp_path: Path) -> None:
    trees.folders(tmp_path / "train", n=3)
    trees.folders(tmp_path / "test", ["cat", "dgo"], n=3)
    with pytest.raises(UserError, match=r"test/dgo: class got 'dgo', did you mean dog"):
        load("own", tmp_path)


def test_no_class_folders(tmp_path: Path) -> None:
    trees.picture(tmp_path / "1.jpg")
    with pytest.raises(UserError, match=r"a folder of images for each of two.*found none"):
        load("own", tmp_path)
    trees.picture(tmp_path / "images/2.jpg")
    with pytest.raises(UserError, match=r"each of two or more classes, found images/; or list"):
        load("own", tmp_path)
    with pytest.raises(
        UserError, match=r"nowhere: not there.*What belongs there: the images of each"
    ):
        load("own", tmp_path / "nowhere")


def test_a_loop_of_links_is_named_or_skipped(tmp_path: Path) -> None:
    trees.folders(tmp_path)
    (tmp_path / "cat/again").symlink_to(tmp_path / "cat")
    (tmp_path / "dog/self.jpg").symlink_to(tmp_path / "dog/self.jpg")
    with pytest.raises(UserError, match="cat/again: a symbolic link to a folder that it is in"):
        load("own", tmp_path)
    data = load("own", tmp_path, on_error="skip")
    assert len(data.train) + len(data.test) == 20 and data.notes["skipped_images"] == 2
    assert any("self.jpg: Too many levels" in text for text in data.notes["skipped"])


def test_links_to_images_elsewhere_are_followed(tmp_path: Path) -> None:
    trees.folders(tmp_path / "store", ["cat", "dog"], n=4)
    (tmp_path / "root").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "store" / name)
    data = load("own", tmp_path / "root")
    assert len(data.train) + len(data.test) == 8


# --- own data: manifest -------------------------------------------------------------------------


def manifest(folder: Path, rows: list[tuple[object, ...]], header: str = "path,label") -> Path:
    text = [header, *(",".join(map(str, row)) for row in rows)]
    return trees.lines(folder / "labels.csv", text)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(8):
        trees.picture(tmp_path / f"{i}.jpg", i)
    return tmp_path


ROWS = [(f"{i}.jpg", "ab"[i % 2]) for i in range(8)]


def test_manifest_keeps_its_order(photos: Path) -> None:
    rows = [
        (f"{i}.jpg", "ab"[i % 2], "test" if i > 5 else "train") for i in (3, 0, 1, 2, 5, 4, 7, 6)
    ]
    path = manifest(photos, rows, "path,label,split")
    data = load("own", photos, manifest=str(path))
    assert numbers(data.train) == [3, 0, 1, 2, 5, 4] and numbers(data.test) == [7, 6]
    assert data.train.labels.tolist() == [1, 0, 1, 0, 1, 0] and data.class_names == ("a", "b")
    assert data.notes["test_labels"] == "unverified"


def test_manifest_is_also_looked_for_in_the_root(photos: Path) -> None:
    manifest(photos, ROWS)
    assert len(load("own", photos, manifest="labels.csv").train) == 6


def test_parquet_manifest_equals_csv(photos: Path) -> None:
    csv = load("own", photos, manifest=str(manifest(photos, ROWS)))
    table = pyarrow.table(
        dict(zip(("path", "label"), map(list, zip(*ROWS, strict=True)), strict=True))
    )
    pyarrow.parquet.write_table(table, photos / "labels.parquet")
    parquet = load("own", photos, manifest=str(photos / "labels.parquet"))
    assert parquet.sha256 == csv.sha256 and parquet.train.paths == csv.train.paths


def test_integer_labels_in_parquet(photos: Path) -> None:
    table = pyarrow.table(
        {"path": [r[0] for r in ROWS], "label": [10 - 8 * (i % 2) for i in range(8)]}
    )
    pyarrow.parquet.write_table(table, photos / "labels.parquet")
    data = load("own", photos, manifest=str(photos / "labels.parquet"))
    assert data.class_names == ("2", "10")


def test_clean_labels_are_for_metrics_and_for_the_test_split(photos: Path) -> None:
    rows = [
        (*row, "a" if i == 1 else row[1], "test" if i in (1, 2) else "train")
        for i, row in enumerate(ROWS)
    ]
    path = manifest(photos, rows, "path,label,clean_label,split")
    data = load("own", photos, manifest=str(path))
    assert data.train.clean_labels is not None
    assert data.test.labels.tolist() == [0, 0] and data.notes["test_labels"] == "clean"
    rows = [row[:3] for row in rows]
    data = load(
        "own",
        photos,
        manifest=str(manifest(photos, rows, "path,label,clean_label")),
        test_fraction=0.8,
    )
    assert data.test.paths is not None
    wrong = data.test.paths.index("1.jpg")
    assert data.test.labels[wrong] == 0 and data.notes["test_labels"] == "clean"


def test_clean_labels_of_the_test_split_alone(photos: Path) -> None:
    rows = [
        (*row, row[1] if i > 5 else "", "test" if i > 5 else "train") for i, row in enumerate(ROWS)
    ]
    path = manifest(photos, rows, "path,label,clean_label,split")
    data = load("own", photos, manifest=str(path))
    assert data.train.clean_labels is None and data.notes["test_labels"] == "clean"
    rows[3] = (*rows[3][:2], "a", "train")
    path = manifest(photos, rows, "path,label,clean_label,split")
    data = load("own", photos, manifest=str(path))
    assert data.train.clean_labels is not None
    assert data.train.clean_labels.tolist() == [-1, -1, -1, 0, -1, -1]


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("path,lable", ROWS, "no column label: has path, lable"),
        ("picture,label", ROWS, "no column path: has picture, label"),
        ("path,class,category", [(*row, 1) for row in ROWS], "class and category may hold labels"),
        ("path,label", [*ROWS, ("0.jpg", "a")], r"line 10: 0\.jpg is already on line 2"),
        ("path,label", [*ROWS, ("./0.jpg", "a")], r"line 10: 0\.jpg is already on line 2"),
        ("path,label", [*ROWS, ("../0.jpg", "a")], r"line 10: path '\.\./0\.jpg' must be .*inside"),
        ("path,label", [*ROWS, ("x/../../0.jpg", "a")], "line 10: path .*inside"),
        ("path,label", [*ROWS, ("/etc/0.jpg", "a")], "line 10: path '/etc/0.jpg' must be relative"),
        ("path,label", [*ROWS, ("", "a")], "line 10: path is empty"),
        ("path,label", [*ROWS, ("9.jpg", "")], "line 10: label is ''"),
        ("path,label", [*ROWS, ("9.jpg", "-1")], "line 10: label is '-1'"),
        ("path,label", [*ROWS, ("9.jpg",)], "line 10: got 1 columns, expected 2"),
        ("path,label", [*ROWS, ("9.jpg", "a", "b")], "line 10: got 3 columns, expected 2"),
        (
            "path,label,split",
            [(*row, "trian") for row in ROWS],
            "line 2: split is 'trian', valid: train",
        ),
        (
            "path,label,clean_label",
            [(*row, "c") for row in ROWS],
            "line 2: clean_label: class got 'c'",
        ),
        ("path,label", [(row[0], "a") for row in ROWS], "has fewer than two classes"),
        (
            "path,label,split",
            [*((*row, "train") for row in ROWS), ("9.jpg", "c", "test")],
            "class c has no training image",
        ),
        ("path,label", [], "has no rows"),
        ("path,label,label", [(*row, "a") for row in ROWS], "line 1: label is listed twice"),
        (
            "path,label,,",
            [(*row, "x", "y") for row in ROWS],
            "line 1: columns 3 and 4 have no name",
        ),
        ("path,label", [*ROWS, ('"9"9', "a")], "line 10: not readable as a table: ',' expected"),
    ],
)
def test_a_wrong_manifest_says_where(
    photos: Path, header: str, rows: list[tuple[object, ...]], message: str
) -> None:
    path = manifest(photos, rows, header)
    with pytest.raises(UserError, match=r"labels\.csv: " + message):
        load("own", photos, manifest=str(path))


def test_a_manifest_that_is_none(photos: Path) -> None:
    with pytest.raises(UserError, match=r"manifest=nowhere\.csv: there is no such file, nor "):
        load("own", photos, manifest="nowhere.csv")
    (photos / "labels.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match=r"labels\.parquet: not readable as a table"):
        load("own", photos, manifest="labels.parquet")
    (photos / "labels.xlsx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"valid: a file that ends in \.csv, "):
        load("own", photos, manifest="labels.xlsx")


def test_a_missing_image_of_a_manifest_is_named(photos: Path) -> None:
    path = manifest(photos, [*ROWS, ("9.jpg", "a")])
    with pytest.raises(UserError, match=r"9\.jpg: No such file"):
        load("own", photos, manifest=str(path))
    assert load("own", photos, manifest=str(path), on_error="skip").notes["skipped_images"] == 1


# --- test images only ---------------------------------------------------------------------------


def test_cifar_c_gives_every_corruption_and_severity(tmp_path: Path) -> None:
    card = trees.card(tmp_path, "cifar10c", corruptions=["fog", "snow"])
    labels = trees.cifar10_c(tmp_path, ["fog", "snow"])
    found = dict(load_evaluation(DataConfig(name=str(card), root=str(tmp_path))).sets)
    assert list(found) == [f"{c}/{s}" for c in ("fog", "snow") for s in range(1, 6)]
    for c, corruption in enumerate(("fog", "snow")):
        for severity in range(1, 6):
            split = found[f"{corruption}/{severity}"]
            assert split.images.shape == (4, 3, 32, 32)
            assert isinstance(split.images, torch.Tensor) and (split.labels == labels).all()
            assert (split.images[:, :, 1:] == 10 * c + severity).all()
            assert split.images[2, :, 0, 31].tolist() == [200, 201, 202]


def test_cifar_c_that_is_not_whole(tmp_path: Path) -> None:
    card = trees.card(tmp_path, "cifar10c", corruptions=["fog", "snow"])
    data = DataConfig(name=str(card), root=str(tmp_path), download=False)
    with pytest.raises(UserError, match="CIFAR-10-C: not there"):
        list(load_evaluation(data).sets)
    trees.cifar10_c(tmp_path, ["fog"])
    with pytest.raises(UserError, match=r"snow\.npy: not there"):
        next(load_evaluation(data).sets)
    np.save(tmp_path / "CIFAR-10-C/snow.npy", np.zeros((20, 3, 32, 32), np.uint8))
    with pytest.raises(UserError, match=r"snow\.npy: holds uint8 of shape \(20, 3, 32, 32\)"):
        list(load_evaluation(data).sets)
    np.save(tmp_path / "CIFAR-10-C/labels.npy", np.full(20, 0.5))
    with pytest.raises(
        UserError, match=r"labels\.npy: got float64 of shape \(20,\), expected integ"
    ):
        next(load_evaluation(data).sets)
    np.save(tmp_path / "CIFAR-10-C/labels.npy", np.zeros(19, np.uint8))
    with pytest.raises(UserError, match=r"labels\.npy: got 19 labels, valid: a multiple of 5"):
        next(load_evaluation(data).sets)


def test_there_is_nothing_to_train_on_in_a_test_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cifar10c: has test images only"):
        load("cifar10c", tmp_path)
