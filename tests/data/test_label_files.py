"""Label files, good and bad."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from noisybsd.data import label_files
from noisybsd.data.label_files import (
    read_description,
    read_labels,
    write_labels,
)
from noisybsd.data.noise import NoisyLabels, inject
from noisybsd.errors import UserError

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR10_MAP = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}


def noisy_labels(name: str, n: int, seed: int) -> tuple[np.ndarray, NoisyLabels]:
    """n clean labels of ten classes, and the same with 40 % noise."""
    facts = {
        "asymmetric": {"class_map": CIFAR10_MAP},
        "instance": {"features": np.arange(4 * n).reshape(n, 4) % 7 / 7},
    }.get(name, {})
    clean = np.arange(n) % 10
    return clean, inject(clean, name, 0.4, 10, seed, **facts)


@pytest.mark.parametrize("suffix", label_files.LABEL_WRITERS)
def test_written_labels_come_back(tmp_path: Path, suffix: str) -> None:
    clean, noisy = noisy_labels("asymmetric", 500, 3)
    path = tmp_path / "new" / f"labels{suffix}"
    notes = {"dataset": "cifar10", "class_names": CIFAR10, **noisy.notes}
    write_labels(path, noisy.labels, notes, clean=clean)
    labels, clean_again, *_ = read_labels(path, 10, 500)
    np.testing.assert_array_equal(labels, noisy.labels)
    if suffix == ".csv":
        np.testing.assert_array_equal(clean_again, clean)
    else:
        assert clean_again is None
    description = read_description(path)
    assert description is not None
    assert description["name"] == "asymmetric"
    assert description["seed"] == 3
    assert description["real_rate"] == (labels != clean).mean()
    assert description["labels_sha256"] == noisy.sha256
    assert description["dataset"] == "cifar10"
    assert description["count"] == 500
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, path.name + ".json"]


def test_a_changed_label_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    _, noisy = noisy_labels("symmetric", 5, 0)
    write_labels(path, noisy.labels, noisy.notes)
    path.write_text("0\n0\n0\n0\n9\n")
    with pytest.raises(UserError, match=r"labels\.txt: .*labels\.txt\.json describes.*delete"):
        read_labels(path, 10, 5)
    (tmp_path / "labels.txt.json").unlink()
    assert read_labels(path, 10, 5)[0].tolist() == [0, 0, 0, 0, 9]


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_description_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.txt").write_text("1\n")
    (tmp_path / "labels.txt.json").write_text(text)
    with pytest.raises(UserError, match=r"labels\.txt\.json: "):
        read_labels(tmp_path / "labels.txt", 10, 1)


def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("1\n")

    def fail(file: object, *columns: object) -> None:
        file.write(b"0\n0")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(label_files.LABEL_WRITERS, ".txt", fail)
    with pytest.raises(UserError, match=r"labels\.txt: cannot be written: No space left"):
        write_labels(path, np.zeros(5, np.int64), {})
    assert path.read_text() == "1\n"
    assert [p.name for p in tmp_path.iterdir()] == ["labels.txt"]


def test_write_labels_names_a_wrong_suffix(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"labels\.pt: got suffix '\.pt', valid: \.csv, \.npy, \.txt"
    ):
        write_labels(tmp_path / "labels.pt", np.zeros(5, np.int64), {})


@pytest.mark.parametrize(
    ("text", "expected", "clean"),
    [
        ("label\n2\n0\n1\n", [2, 0, 1], None),
        ("noisy\n2\n0\n1\n", [2, 0, 1], None),
        ("2\n0\n1\n", [2, 0, 1], None),
        ("0,2\n1,0\n2,1\n", [2, 0, 1], None),
        ("2,1\n0,2\n1,0\n", [2, 0, 1], None),
        ("\ufefflabel,note\r\n2,a b\r\n0,b\r\n\r\n1,c\r\n", [2, 0, 1], None),
        ('note;label\n"a;1";2\nb;0\nc; 1\n', [2, 0, 1], None),
        ("label\n2.0\n0.0\n1.0\n", [2, 0, 1], None),
        ("index,label,clean_label\n1,0,0\n0,2,1\n2,1,2\n", [2, 0, 1], [1, 0, 2]),
        (",label\n1,0\n2,1\n0,2\n", [2, 0, 1], None),  # a sorted pandas frame
    ],
)
def test_csv_forms(tmp_path: Path, text: str, expected: list[int], clean: list[int] | None) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text, "utf-8", newline="")
    labels, clean_labels, *_ = read_labels(path, 3, 3)
    assert labels.tolist() == expected
    assert (None if clean_labels is None else clean_labels.tolist()) == clean


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "label\n0\n3\n1\n", r"l\.csv: line 3: label 3 is out of range, valid: 0 to 2"),
        ("l.csv", "label\n0\n-1\n1\n", r"l\.csv: line 3: label is '-1', a negative number"),
        ("l.csv", f"label\n0\n{10**30}\n1\n", r"l\.csv: line 3: label 10{30} is out of range"),
        ("l.csv", "label\n0\n\n1\ncat\n", r"l\.csv: line 5: got 'cat', valid: an integer"),
        (
            "l.csv",
            "label\n0\n1.5\n1\n",
            r"l\.csv: line 3: label is '1\.5', a number that is not whole",
        ),
        ("l.csv", "label\n0\n1\n", r"l\.csv: got 2 labels, valid: 3"),
        ("l.csv", "", r"l\.csv: is empty"),
        (
            "l.csv",
            "label\n",
            r"l\.csv: has no rows, only label",
        ),
        (
            "l.csv",
            "label,x\n0,1\n1\n2,1\n",
            r"l\.csv: line 3: got 1 columns, expected 2 \(label, x\)",
        ),
        ("l.csv", "a,b\n0,1\n1,1\n2,1\n", r"l\.csv: which labels to use is not clear.*'a', 'b'"),
        ("l.csv", "0,1,2\n1,1,2\n", r"l\.csv: has 3 columns and no header"),
        ("l.csv", "label,label\n0,1\n", r"l\.csv: line 1: label is listed twice"),
        ("l.csv", "0,1\n1,2\n1,0\n", r"l\.csv: line 3: index 1 is already on line 2"),
        ("l.csv", "0,1\n1,2\n3,0\n", r"l\.csv: line 3: index 3 is out of range, valid: 0 to 2"),
        ("l.csv", "label,clean_label\n0,0\n1,7\n2,2\n", r"clean_label: line 3: label 7 is out"),
        ("l.txt", "0\n1\n", r"l\.txt: got 2 labels, valid: 3"),
        ("l.txt", "0\n\n1\n", r"l\.txt: line 2: label is '', which stands for a missing value"),
        ("l.txt", "0\n1\n5\n", r"l\.txt: line 3: label 5 is out of range"),
        ("l.txt", "0\n1\nx\n", r"l\.txt: line 3: got 'x'"),
        ("l.txt", "\n", r"l\.txt: holds no numbers"),
        (
            "l.json",
            "[0, 1, 2]",
            r"l\.json: got suffix '\.json', label files end in \.npy, \.npz, \.pt",
        ),
        ("l.npy", "0 1 2", r"l\.npy: not readable as numpy arrays"),
        ("l.npz", "", r"l\.npz: not readable as numpy arrays"),
        ("l.pt", "nonsense", r"l\.pt: damaged, or holds more than tensors"),
        ("l.pt", "", r"l\.pt: damaged, or holds more than tensors"),
    ],
)
def test_bad_label_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_labels(tmp_path / name, 3, 3)


def test_text_files_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(b"label\n\xe9")
    with pytest.raises(UserError, match=r"l\.csv: line 2: not readable as text: save it as UTF-8"):
        read_labels(tmp_path / "l.csv", 3, 3)
    with pytest.raises(UserError, match=r"nowhere\.csv: there is no such file"):
        read_labels(tmp_path / "nowhere.csv", 3, 3)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=r"folder\.csv: there is no such file"):
        read_labels(tmp_path / "folder.csv", 3, 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([0, 1, 3]), r"index 2: label 3 is out of range"),
        (np.array([0, 1, 2**64 - 1], np.uint64), r"index 2: label 18446744073709551615 is out"),
        (np.array([0.0, 1.0, 2.0]), r"got float64 of shape \(3,\), valid: integers"),
        (np.array([True, False, True]), r"got bool of shape"),
        (np.zeros((3, 1), int), r"got int64 of shape \(3, 1\)"),
        (np.array(["0", "1"]), r"got 2 labels, valid: 3"),
        (np.array(["0", "1", "x"]), r"index 2: got 'x', valid: an integer"),
        (np.array([0, None, 2], object), r"l\.npy: not readable as numpy arrays: .*allow_pickle"),
    ],
)
def test_bad_arrays_are_named(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "l.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=rf"l\.npy: .*{message}|{message}"):
        read_labels(tmp_path / "l.npy", 3, 3)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
def test_truncated_and_altered_files_are_answered(tmp_path: Path, suffix: str) -> None:
    """Damage anywhere ends in the same kind of error, or is not to be seen."""
    whole, damaged = tmp_path / f"whole{suffix}", tmp_path / f"damaged{suffix}"
    labels = np.array([2, 0, 1])
    if suffix == ".pt":
        torch.save({"label": labels}, whole, _use_new_zipfile_serialization=False)
    elif suffix == ".npz":
        np.savez(whole, label=labels)
    else:
        np.save(whole, labels)
    content = whole.read_bytes()
    for position in range(0, len(content), max(1, len(content) // 40)):
        altered = bytearray(content)
        altered[position] ^= 0x15
        for variant in (content[:position], bytes(altered)):
            damaged.write_bytes(variant)
            try:
                assert len(read_labels(damaged, 3, 3)[0]) == 3
            except UserError as error:
                assert str(damaged) in str(error)


def write_several(path: Path) -> None:
    arrays = {
        "a": np.array([2, 0, 1]),
        "b": np.array([1, 1, 1]),
        "clean_label": np.array([0, 1, 2]),
    }
    if path.suffix == ".pt":
        torch.save(arrays, path)
    else:
        np.savez(path, **arrays)


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_several_arrays_need_a_key(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"l{suffix}"
    write_several(path)
    labels, clean, *_ = read_labels(path, 3, 3, key="a")
    assert labels.tolist() == [2, 0, 1]
    assert clean is not None and clean.tolist() == [0, 1, 2]
    assert read_labels(path, 3, 3, key="a", clean_key="b")[1].tolist() == [1, 1, 1]
    with pytest.raises(
        UserError, match="not clear: expected one named label, got 'a', 'b', 'clean_label'"
    ):
        read_labels(path, 3, 3)
    with pytest.raises(UserError, match=r"got 'aa', did you mean a\? valid: a, b, clean_label"):
        read_labels(path, 3, 3, key="aa")


@pytest.mark.parametrize(
    "content",
    [
        torch.tensor([2, 0, 1]),
        torch.tensor([2, 0, 1], dtype=torch.uint8),
        np.array([2, 0, 1]),
        [2, 0, 1],
        {"label": [2, 0, 1], "epoch": 3},
        {"only": torch.tensor([2, 0, 1]), "clean_label": [0, 1, 2]},
    ],
)
def test_torch_files(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "l.pt")
    assert read_labels(tmp_path / "l.pt", 3, 3)[0].tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.tensor([0.0, 1.0, 2.0]), r"l\.pt: got float32 of shape \(3,\)"),
        (
            torch.tensor([0, 1, 2], dtype=torch.bfloat16),
            r"l\.pt: got a Tensor that is no array of integers",
        ),
        ([[0], [1, 2]], r"l\.pt: index 0: label is a list, \[0\]; valid: a number from 0"),
        ([0, 1, "x"], r"l\.pt: index 2: got 'x', valid: an integer"),
        ({"label": [0, 1, 2], "clean_label": [0, 1]}, r"clean_label: got 2 labels, valid: 3"),
    ],
)
def test_bad_torch_files_are_named(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "l.pt")
    with pytest.raises(UserError, match=message):
        read_labels(tmp_path / "l.pt", 3, 3)


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_a_torch_file_cannot_run_code(tmp_path: Path) -> None:
    torch.save({"label": Hostile(tmp_path / "proof")}, tmp_path / "l.pt")
    with pytest.raises(UserError, match=r"l\.pt: damaged, or holds more than .* could run code"):
        read_labels(tmp_path / "l.pt", 3, 3)
    assert not (tmp_path / "proof").exists()
    pickle.loads(pickle.dumps(Hostile(tmp_path / "proof")))  # the object is hostile indeed
    assert (tmp_path / "proof").exists()


def test_the_allowlist_does_not_outlive_the_read(tmp_path: Path) -> None:
    torch.save(np.array([2, 0, 1]), tmp_path / "l.pt")
    before = set(map(str, torch.serialization.get_safe_globals()))
    read_labels(tmp_path / "l.pt", 3, 3)
    assert set(map(str, torch.serialization.get_safe_globals())) == before


# --- the real CIFAR-N files ---------------------------------------------------------------------

TEST_DATA = Path(os.environ.get("NOISYBSD_TEST_DATA", "nowhere"))


@pytest.mark.skipif(
    not (TEST_DATA / "CIFAR-10_human.pt").is_file(), reason="NOISYBSD_TEST_DATA: no CIFAR-N files"
)
@pytest.mark.parametrize(
    ("file", "key", "num_classes", "rate"),
    [
        ("CIFAR-10_human.pt", "aggre_label", 10, 0.0901),
        ("CIFAR-10_human.pt", "random_label1", 10, 0.1723),
        ("CIFAR-10_human.pt", "random_label2", 10, 0.1812),
        ("CIFAR-10_human.pt", "random_label3", 10, 0.1764),
        ("CIFAR-10_human.pt", "worse_label", 10, 0.4021),
        ("CIFAR-100_human.pt", "noisy_label", 100, 0.4020),
    ],
)
def test_cifar_n_rates(file: str, key: str, num_classes: int, rate: float) -> None:
    labels, clean, *_ = read_labels(TEST_DATA / file, num_classes, 50_000, key=key)
    assert clean is not None
    assert round(float((labels != clean).mean()), 4) == rate
    np.testing.assert_array_equal(np.bincount(clean), 50_000 // num_classes)
