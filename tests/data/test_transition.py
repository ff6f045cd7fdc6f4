"""Transition matrices in files, good and bad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from noisybsd.data.transition import check_matrix, read_matrix
from noisybsd.errors import UserError

MATRIX = [[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.25, 0.25, 0.5]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "0.7,0.3,0\n0,1,0\n0.25, 0.25, 0.5\n"),
        ("t.txt", "# true class per row\n0.7 0.3 0.0\n\n0 1 0  # dogs\n2.5e-1\t.25 .5"),
    ],
)
def test_matrix_from_text(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    np.testing.assert_allclose(read_matrix(tmp_path / name, 3), MATRIX)


def test_matrix_from_npy_and_rounded_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.full((3, 3), 0.33333, np.float32))
    transition = read_matrix(str(tmp_path / "t.npy"), 3)
    np.testing.assert_allclose(transition, np.full((3, 3), 1 / 3), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "1,0\n0,1\n", r"t\.csv: line 1: got 2 numbers, valid: 3"),
        ("t.csv", "1,0,0\n0,1,0\n", r"t\.csv: got float64 of shape \(2, 3\).*\(3, 3\)"),
        ("t.csv", "", r"t\.csv: got float64 of shape \(0,\)"),
        ("t.txt", "1 0 0\n0 1 x\n0 0 1\n", r"t\.txt: line 2: .*'x'"),
        ("t.txt", "1 0 0\n0 1 0\n0 0.5 0.4\n", r"t\.txt: row 2 \(true class 2\): sums to 0\.9"),
        ("t.txt", "1 0 0\n-0.5 1 0.5\n0 0 1\n", r"t\.txt: row 1 \(true class 1\): got -0\.5"),
        ("t.txt", "1 0 0\n0 nan 1\n0 0 1\n", r"t\.txt: row 1 \(true class 1\): got nan"),
        ("t.json", "[]", r"t\.json: got suffix '\.json', transition matrices end in \.npy"),
        ("t.npy", "no array", r"t\.npy: not readable as numpy arrays"),
    ],
)
def test_bad_matrix_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_matrix(tmp_path / name, 3)


def test_bad_matrices() -> None:
    with pytest.raises(UserError, match="here: got bool of shape"):
        check_matrix(np.eye(3, dtype=bool), 3, "here")
    with pytest.raises(UserError, match=r"no such file"):
        read_matrix("nowhere.csv", 3)
