"""Several labels for an image: annotators' columns, counts and probabilities, good and bad."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import trees
from helpers.trees import load

from noisybsd.data.__main__ import main
from noisybsd.data.dataset import Dataset
from noisybsd.data.label_files import LabelFile, read_labels
from noisybsd.data.names import UNKNOWN, ImageNames
from noisybsd.data.votes import of_annotators
from noisybsd.errors import UserError

CLASSES = ("cat", "dog", "cow")


def read(path: Path, text: str | None = None, key: Any = None) -> LabelFile:
    if text is not None:
        path.write_text(text)
    return read_labels(path, 3, 3, key, class_names=CLASSES)


def found(file: LabelFile) -> tuple[list[int], list[list[float]]]:
    assert file.votes is not None and file.votes.dtype == np.float32
    return file.labels.tolist(), file.votes.tolist()


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "label_1,label_2,label_3\n0,0,2\n1,,1\n2,1,0\n",
        "Label 1;label-2;LABEL3\ncat;cat;cow\ndog;NA;dog\ncow;dog;cat\n",
        "index,label_2,label_3,label_1\n2,1,0,2\n0,0,2,0\n1,,1,1\n",  # in any order
    ],
)
def test_annotators_columns(tmp_path: Path, text: str) -> None:
    labels, votes = found(read(tmp_path / "l.csv", text))
    assert votes == [[2, 0, 1], [0, 2, 0], [1, 1, 1]]
    assert labels == [0, 1, 2]  # of the last image all have one vote: the first annotator's


def test_annotators_of_other_names_are_named(tmp_path: Path) -> None:
    text = "anna,ben,note,label\n0,2,x,1\n1,2,y,1\n2,0,z,1\n"
    labels, votes = found(read(tmp_path / "l.csv", text, ["ben", "anna"]))
    assert labels == [2, 2, 0] and votes[0] == [1, 0, 1]
    assert read(tmp_path / "l.csv").votes is None  # the column label alone
    with pytest.raises(UserError, match=r"l\.csv: columns: got 'bem', did you mean ben\?"):
        read(tmp_path / "l.csv", None, ["anna", "bem"])
    with pytest.raises(UserError, match=r"columns: anna is listed twice"):
        read(tmp_path / "l.csv", None, ["anna", "anna"])


PATHS = ["a.png", "b.png", "c.png"]
LONG = """path,worker_id,label
b.png,ben,dog
a.png,anna,cat
b.png,anna,dog
c.png,carl,cow
a.png,ben,cow
c.png,anna,cat
a.png,carl,cat
c.png,ben,dog
"""


def read_long(path: Path, text: str) -> LabelFile:
    path.write_text(text)
    return read_labels(path, 3, 3, class_names=CLASSES, images=ImageNames(PATHS, path.parent))


@pytest.mark.parametrize("who", ["worker_id", "Annotator", "rater", "labeller name"])
def test_a_row_for_each_label_with_a_column_of_annotators(tmp_path: Path, who: str) -> None:
    labels, votes = found(read_long(tmp_path / "l.csv", LONG.replace("worker_id", who)))
    assert votes == [[2, 0, 1], [0, 2, 0], [1, 1, 1]]
    assert labels == [0, 1, 2]  # of the last image all have one vote: that of the first row


def test_a_table_with_annotators_that_names_each_image_once_has_one_label_each(
    tmp_path: Path,
) -> None:
    text = "path,annotator,label\nb.png,ben,dog\na.png,anna,cat\nc.png,ben,cow\n"
    file = read_long(tmp_path / "l.csv", text)
    assert file.votes is None and file.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LONG + "a.png,ben,cat\n", r"line 10: worker_id 'ben' labels 'a.png' again, as on line 6"),
        (
            LONG.replace("c.png,anna,cat", "c.png,anna,car"),
            r"lines 5, 7, 9: label_2: class got 'car'",
        ),
        (
            LONG.replace("worker_id", "remark"),
            r"line 4: 'b.png' is already on line 2; if several peo",
        ),
        (
            "path,worker,label,clean_label\na.png,x,cat,cat\na.png,y,cat,dog\n",
            r"line 3: clean_label is 'dog', but 'cat' on line 2; valid: the same in all rows",
        ),
        ("path,worker,remark\na.png,x,1\na.png,y,2\n", r"no column label"),
    ],
)
def test_bad_rows_of_annotators(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"l\.csv: .*{message}"):
        read_long(tmp_path / "l.csv", text)


def test_a_manifest_with_a_row_for_each_label(tmp_path: Path) -> None:
    lines = [f"{line},train" for line in LONG.replace("c.png,carl,cow\n", "").split()]
    lines += ["c.png,carl,cow,train", "c.png,dora,cow,train", "d.png,anna,dog,test"]
    (tmp_path / "list.csv").write_text("\n".join(["path,worker_id,label,split", *lines[1:]]))
    for name in (*PATHS, "d.png"):
        trees.picture(tmp_path / name)
    dataset = load("own", tmp_path, manifest="list.csv", size=8)
    assert dataset.class_names == ("cat", "cow", "dog")
    assert dataset.train.votes is not None
    # b.png, a.png, c.png
    assert dataset.train.votes.tolist() == [[0, 0, 2], [2, 1, 0], [1, 2, 1]]
    assert dataset.train.labels.tolist() == [2, 0, 1] and dataset.test.labels.tolist() == [2]


def test_a_column_label_is_used_and_the_log_says_what_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = read(tmp_path / "l.csv", "label,label_1,label_2\n0,1,1\n0,2,2\n1,2,2\n")
    assert file.votes is None and file.labels.tolist() == [0, 0, 1]
    assert "data.annotators=[label_1,label_2]" in caplog.text


def test_one_label_for_each_image_is_no_vote(tmp_path: Path) -> None:
    file = read(tmp_path / "l.csv", "label_1,label_2\n0,\n,2\n1,\n")
    assert file.votes is None and file.labels.tolist() == [0, 2, 1]


COUNTS = [[0, 3, 1], [2, 2, 0], [0, 0, 1]]
SHARES = [[0.0, 0.75, 0.25], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize("values", [COUNTS, SHARES])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".csv"])
def test_counts_and_probabilities(tmp_path: Path, suffix: str, values: Any) -> None:
    path, array = tmp_path / f"l{suffix}", np.array(values)
    if suffix == ".npy":
        np.save(path, array)
    elif suffix == ".npz":
        np.savez(path, label=array, clean_label=np.array([1, 1, 2]))
    elif suffix == ".pt":
        torch.save({"label": torch.tensor(values)}, path)
    else:
        lines = [f"{i},{row[2]},{row[0]},{row[1]}" for i, row in enumerate(values)]
        path.write_text("\n".join(["index,cow,cat,dog", *reversed(lines)]))
    labels, votes = found(read(path))
    assert labels == [1, 0, 2]  # of equally many votes: the first class
    assert votes == values


def test_probabilities_may_be_rounded(tmp_path: Path) -> None:
    text = "cat,dog,cow\n0.333,0.333,0.333\n0.5,0.5,0\n0,0,1\n"
    votes = read(tmp_path / "l.csv", text).votes
    assert votes is not None and votes.sum(axis=1).tolist() == pytest.approx([1, 1, 1], abs=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label_1,label_2\n0,0\n,\n1,1\n", r"line 3: has no vote; leave out the image"),
        ("label_1,label_2\ncat,dog\ndog,bird\ncat,\n", r"line 3: label_2: class got 'bird'"),
        ("label_1,label_2\ncat,dog\ndog,Dog\ncat,\n", r"differs from 'dog' only in case"),
        ("label_1,label_2\n0,0\n1,3\n1,1\n", r"label_2: line 3: label 3 is out of range"),
        ("label_1,label_2\n0,0\n1,-1\n1,1\n", r"line 3: label_2 is '-1', a negative number"),
        ("label_1,label_2\n0,0\n1,1\n", r"got 2 labels, valid: 3, one for each image"),
        ("cat,dog,cow\n1,0,0\n0,0,0\n1,1,1\n", r"line 3: has no vote"),
        ("cat,dog,cow\n1,0,0\n0,-2,0\n1,1,1\n", r"line 3: class 1 has -2 votes"),
        ("cat,dog,cow\n1,0,0\n0,nan,1\n1,1,1\n", r"line 3: class 1 has nan votes"),
        ("cat,dog,cow\n1,0,0\n0,inf,1\n1,1,1\n", r"line 3: class 1 has inf votes"),
        ("cat,dog,cow\n1,0,0\n0,,1\n1,1,1\n", r"line 3: dog is '', valid: a number of votes"),
        ("cat,dog,cow\n1,0,0\n.2,.2,.2\n1,1,1\n", r"line 3: sums to 0.6; valid: whole.*\(2 such"),
        ("cat,dog,cow\n1,0,0\n0,0,1\n", r"got 2 rows, valid: 3, one for each image"),
    ],
)
def test_bad_votes_are_refused_by_row(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"l\.csv: .*{message}"):
        read(tmp_path / "l.csv", text)


def test_arrays_of_other_shapes_are_refused(tmp_path: Path) -> None:
    for array, message in (
        (np.ones((3, 4)), r"float64 of shape \(3, 4\), valid: votes or probabilities .*\(N, 3\)"),
        (np.ones((2, 3)), r"got 2 rows, valid: 3"),
        (np.ones((3, 3), complex), r"got complex128 of shape"),
        (np.full((3, 3), np.nan), r"index 0: class 0 has nan votes"),
    ):
        np.save(tmp_path / "l.npy", array)
        with pytest.raises(UserError, match=message):
            read(tmp_path / "l.npy")


def test_the_majority_by_a_slow_loop() -> None:
    given = np.random.default_rng(0).integers(UNKNOWN, 4, (300, 5))
    given[(given == UNKNOWN).all(axis=1), 0] = 0
    labels, votes = of_annotators(given, 4, lambda i, reason: UserError(reason))
    assert votes is not None
    for row, label, counts in zip(given.tolist(), labels, votes.tolist(), strict=True):
        assert counts == [row.count(k) for k in range(4)]
        most = [k for k in row if k != UNKNOWN and counts[k] == max(counts)]
        assert label == most[0]


# --- data -----------------------------------------------------------------------------------------


def three_votes(clean: np.ndarray, seed: int = 0) -> np.ndarray:
    """(N,3) labels of which a fifth is wrong."""
    random = np.random.default_rng(seed)
    shape = (len(clean), 3)
    moved = (random.random(shape) < 0.2) * random.integers(1, 10, shape)
    return (clean[:, None] + moved) % 10


def cifar10n(root: Path) -> tuple[Dataset, np.ndarray]:
    clean = trees.cifar10(root)
    given = three_votes(clean)
    columns = {f"random_label{j + 1}": given[:, j] for j in range(3)}
    torch.save({"clean_label": clean, **columns}, root / "CIFAR-10_human.pt")
    card = trees.card(root, "cifar10n", checksums=None)
    return load(card, root, verify=False, labels="random123"), given


def test_a_label_set_of_three_annotators(tmp_path: Path) -> None:
    data, given = cifar10n(tmp_path)
    votes = data.train.votes
    assert votes is not None and votes.sum(axis=1).tolist() == [3] * 100
    assert votes[7].tolist() == np.bincount(given[7], minlength=10).tolist()
    assert data.notes["votes_per_image"] == 3 and data.notes["order_proven"]
    assert data.notes["sha256_covers"].endswith("the training labels and votes")
    assert data.notes["noise"]["real_rate"] < (given != data.train.clean_labels[:, None]).mean()
    assert data.test.votes is None


def test_the_hash_covers_the_votes(tmp_path: Path) -> None:
    trees.folders(tmp_path / "photos", CLASSES)
    whole = np.zeros((30, 3), int)
    whole[np.arange(30), np.arange(30) // 10] = 2
    hashes = set()
    for i in range(3):
        whole[3, i] += 1  # no majority changes
        np.save(tmp_path / "l.npy", whole)
        data = load("own", tmp_path / "photos", labels=str(tmp_path / "l.npy"))
        assert (np.diff(data.train.labels) >= 0).all()
        hashes.add(data.sha256)
    assert len(hashes) == 3
    np.save(tmp_path / "l.npy", np.eye(3, dtype=int)[np.arange(30) // 10])
    once = load("own", tmp_path / "photos", labels=str(tmp_path / "l.npy"))
    assert once.train.votes is None and once.is_of(load("own", tmp_path / "photos").sha256)


def test_synthetic_noise_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, _ = cifar10n(tmp_path)
    np.save(tmp_path / "l.npy", data.train.votes)
    settings = {"verify": False, "labels": str(tmp_path / "l.npy")}
    with pytest.raises(UserError, match=r"noise\.name=symmetric: .* have several labels each"):
        load("cifar10", tmp_path, {"name": "symmetric", "rate": 0.4}, **settings)
    command = ["noise", "cifar10", f"root={tmp_path}", f"labels={tmp_path / 'l.npy'}"]
    command += ["verify=false", "noise.name=symmetric", "noise.rate=0.4"]
    assert main([*command, f"out={tmp_path / 'new.csv'}"]) == 2
    assert "several labels each" in capsys.readouterr().err
    assert not (tmp_path / "new.csv").exists()


def test_annotators_without_a_file_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.annotators=\[a,b\]: are columns of a label file"):
        load("digits", Path(), annotators=("a", "b"))


# --- manifests ------------------------------------------------------------------------------------


def manifest(root: Path, *rows: str, **data: Any) -> Dataset:
    if not (root / "cat").exists():
        trees.folders(root, CLASSES, n=2)
    trees.lines(root / "list.csv", rows)
    share: dict[str, Any] = {} if "split" in rows[0] else {"test_fraction": 0.4}
    return load("own", root, manifest="list.csv", **share, **data)


HEADER = "path,label_1,label_2,split"
ROWS = (
    *("cat/000.png,cat,dog,train", "cat/001.jpg,cat,cat,train", "dog/000.png,dog,,train"),
    *("dog/001.jpg,dog,cat,test", "cow/000.png,dog,cow,train"),
)


def test_a_manifest_with_annotators(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = manifest(tmp_path, HEADER, *ROWS)
    assert data.class_names == ("cat", "cow", "dog")  # cow is nobody's majority
    assert data.train.labels.tolist() == [0, 0, 2, 2]
    assert data.train.votes is not None
    assert data.train.votes.tolist() == [[1, 0, 1], [2, 0, 0], [0, 0, 1], [0, 1, 1]]
    assert data.test.labels.tolist() == [2] and data.test.votes is None
    assert main(["check", "own", f"root={tmp_path}", "manifest=list.csv"]) == 0
    assert "1.8 votes an image" in capsys.readouterr().out  # of the training images: 7 of 4
    named = [HEADER.replace("label_1", "anna").replace("label_2", "ben"), *ROWS]
    other = manifest(tmp_path, *named, annotators=("ben", "anna"))
    assert other.train.labels.tolist() == [2, 0, 2, 1]


def test_the_setting_that_names_annotators_is_named(tmp_path: Path) -> None:
    rows = [HEADER.replace("label_1", "anna").replace("label_2", "ben"), *ROWS]
    with pytest.raises(UserError, match=r"no column label: has .*: data\.annotators=\[anna,ben\]$"):
        manifest(tmp_path, *rows)
    wrong = r"list\.csv: data\.annotators: got 'ana', did you mean anna\?"
    with pytest.raises(UserError, match=wrong):
        manifest(tmp_path, *rows, annotators=("ana", "ben"))
    labels = trees.lines(tmp_path / "labels.csv", [*rows, "cow/001.jpg,cow,cow,train"])
    (tmp_path / "list.csv").unlink()
    own = {"labels": str(labels), "test_fraction": 0.4}
    with pytest.raises(UserError, match=r"is not clear: .*: data\.annotators=\[anna,ben\]$"):
        load("own", tmp_path, **own)
    with pytest.raises(
        UserError, match=r"labels\.csv: data\.annotators: got 'ana', did you mean a"
    ):
        load("own", tmp_path, **own, annotators=("ana", "ben"))


def test_a_manifest_of_counts_needs_the_classes_of_a_card(tmp_path: Path) -> None:
    counts = ["path,dog,cat,cow", "cat/000.png,0,3,0", "dog/000.png,2,1,0", "cow/000.png,0,0,1"]
    counts += ["cat/001.jpg,0,2,1", "dog/001.jpg,1,0,0", "cow/001.jpg,0,1,1"]
    with pytest.raises(UserError, match=r"no column label: has path, dog, cat, cow"):
        manifest(tmp_path, *counts)
    card = trees.card(tmp_path, "own", classes=list(CLASSES))
    data = load(card, tmp_path, manifest="list.csv", test_fraction=0.4)
    assert data.train.votes is not None and len(data.train) + len(data.test) == 6
    assert data.train.votes.sum(axis=0).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("cat/000.png,,,train",), r"line 2: has no vote"),
        ((*ROWS, "cow/001.jpg,Cow,cow,train"), r"'Cow' and 'cow' differ only in case"),
        (
            (*ROWS, "cow/001.jpg,2,cow,train"),
            r"label_1, label_2 holds names and numbers: '2 \(line",
        ),
        ((*ROWS, "cow/001.jpg,cow,1.5,train"), r"line 7: label_2 is '1.5', a number that is not"),
        (
            ("cat/000.png,cat,Katze,train", "dog/000.png,dog,Hund,train"),
            r"the classes of label_1 \('cat', 'dog'\) are none of those of the other",
        ),
    ],
)
def test_bad_manifests_of_annotators(tmp_path: Path, rows: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=rf"list\.csv: .*{message}"):
        manifest(tmp_path, HEADER, *rows)


def test_a_pack_keeps_the_votes(tmp_path: Path) -> None:
    photos, packed = tmp_path / "photos", tmp_path / "packed"
    data = manifest(photos, HEADER, *ROWS)
    command = ["pack", "own", f"root={photos}", f"out={packed}", "manifest=list.csv", "size=16"]
    assert (
        main([*command, "test_fraction=0.4"]) == 2
    )  # the manifest says which images are for tests
    assert main(command) == 0
    again = load("own", packed, size=16).train
    assert (again.votes == data.train.votes).all() and (again.labels == data.train.labels).all()
    shutil.copy(packed / "test.parquet", packed / "train.parquet")
    with pytest.raises(UserError, match=r"damaged: train has 4 images and 1 labels"):
        load("own", packed, size=16)
