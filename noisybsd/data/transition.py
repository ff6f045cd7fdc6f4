"""Transition matrices in files: which share of each class is labelled as each other class.

Dimensions: K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from noisybsd.data.label_readers import existing, load_numpy, text_lines
from noisybsd.errors import UserError

FloatArray = npt.NDArray[np.float64]


def read_matrix(path: str | Path, num_classes: int) -> FloatArray:
    """Read a transition matrix (K,K), row = true class, from .npy, .csv or .txt.

    Text has a row per line, numbers apart by commas or white space; # starts a comment.

    Raises:
        UserError: names the file and the row that is wrong.
    """
    path = existing(path, (".npy", ".csv", ".txt"), "transition matrices")
    if path.suffix.lower() == ".npy":
        content = load_numpy(path)
        if isinstance(content, dict):
            raise UserError(f"{path}: holds several arrays, expected one")
        return check_matrix(content, num_classes, str(path))
    rows = []
    for number, line in enumerate(text_lines(path), start=1):
        cells = line.split("#")[0].replace(",", " ").split()
        if not cells:
            continue
        try:
            rows.append([float(cell) for cell in cells])
        except ValueError as error:
            raise UserError(f"{path}: line {number}: {error}") from None
        if len(cells) != num_classes:
            raise UserError(
                f"{path}: line {number}: got {len(cells)} numbers, valid: {num_classes}, one for "
                "each class"
            )
    return check_matrix(np.array(rows), num_classes, str(path))


def check_matrix(matrix: npt.NDArray[Any], num_classes: int, source: str) -> FloatArray:
    """Check a transition matrix (K,K) and scale away the rounding of its rows.

    Raises:
        UserError: wrong shape; negative or not finite; a row whose sum is off by more than 1e-4.
    """
    if matrix.shape != (num_classes, num_classes) or matrix.dtype.kind not in "fiu":
        raise UserError(
            f"{source}: got {matrix.dtype} of shape {matrix.shape}, valid: numbers of shape "
            f"({num_classes}, {num_classes})"
        )
    for k, row in enumerate(matrix.astype(np.float64)):
        if not np.isfinite(row).all() or (row < 0).any():
            bad = row[~np.isfinite(row) | (row < 0)][0]
            raise UserError(f"{source}: row {k} (true class {k}): got {bad}, valid: 0 to 1")
        if abs(row.sum() - 1) > 1e-4:
            raise UserError(
                f"{source}: row {k} (true class {k}): sums to {row.sum():.6g}, valid: 1"
            )
    return matrix / matrix.sum(axis=1, keepdims=True, dtype=np.float64)
