"""Files of labels and of transition matrices, read and written safely.

Every mistake in a file is answered with the file, the place in it and the value found there.

Dimensions: N samples, K classes.
"""

from __future__ import annotations

import _codecs
import csv
import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from noisybsd import __version__
from noisybsd.errors import UserError, did_you_mean
from noisybsd.files import write_atomically

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


def labels_sha256(labels: npt.NDArray[Any]) -> str:
    """SHA-256 of labels (N,) as little-endian int64, whatever file or machine they come from."""
    return hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()


# --- transition matrices in files ---------------------------------------------------------------


def read_matrix(path: str | Path, num_classes: int) -> FloatArray:
    """Read a transition matrix (K,K), row = true class, from .npy, .csv or .txt.

    Text has a row per line, numbers apart by commas or white space; # starts a comment.

    Raises:
        UserError: names the file and the row that is wrong.
    """
    path = _existing(path, (".npy", ".csv", ".txt"), "transition matrices")
    if path.suffix == ".npy":
        return check_matrix(_load_numpy(path), num_classes, str(path))
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


# --- label files --------------------------------------------------------------------------------

_Place = Callable[[int], str]  # position in an array -> where that is in its file


def at_index(i: int) -> str:
    return f"index {i}"


def read_labels(
    path: str | Path,
    num_classes: int,
    n: int,
    key: str | None = None,
    clean_key: str = "clean_label",
) -> tuple[IntArray, IntArray | None]:
    """Read the given labels of n samples, and the clean ones where the file has them.

    | suffix | content |
    |---|---|
    | .npy | integers (N,) |
    | .npz, .pt | the same, or several by name; a .pt is read without running code from it |
    | .csv | a column `label`, or one column only; optional: `index`, `clean_label` |
    | .csv without a header | `label` or `index,label` |
    | .txt | one label per line |

    Where there is an `index` (from 0), the labels are put in its order. A description beside the
    file, as `write_labels` makes it, must fit the labels.

    Args:
        key: which array or column holds the labels, if there are several.
        clean_key: the one that holds the clean labels, if any does.

    Returns:
        labels (N,), clean labels (N,) or None.

    Raises:
        UserError: names the file, the line or index, the value and what is valid.
    """
    path = _existing(path, LABEL_READERS, "label files")
    columns, place = LABEL_READERS[path.suffix](path)
    name = _label_column(path, columns, key, clean_key)
    labels = integers_below(num_classes, columns[name], str(path), place)
    if len(labels) != n:
        raise UserError(f"{path}: got {len(labels)} labels, valid: {n}, one for each image")
    clean = None
    if clean_key in columns:
        clean = integers_below(num_classes, columns[clean_key], f"{path}: {clean_key}", place)
        if len(clean) != n:
            raise UserError(f"{path}: {clean_key}: got {len(clean)} labels, valid: {n}")
    if "index" in columns:
        order = _positions(columns["index"], n, path, place)
        labels = labels[order]
        clean = None if clean is None else clean[order]
    _check_description(path, labels)
    return labels, clean


def _label_column(path: Path, columns: Mapping[str, Any], key: str | None, clean_key: str) -> str:
    if key is not None:
        if key not in columns:
            raise UserError(f"{path}: {did_you_mean(key, columns)}")
        return key
    if "label" in columns:
        return "label"
    candidates = [name for name in columns if name not in ("index", clean_key)]
    if len(candidates) != 1:
        raise UserError(
            f"{path}: which labels to use is not clear: expected one named label, got "
            f"{', '.join(map(repr, columns))}"
        )
    return candidates[0]


def integers_below(
    limit: int, values: Any, source: str, place: _Place, what: str = "label"
) -> IntArray:
    """Integers in 0..limit-1 from an array, a tensor, or a list of numbers or of strings."""
    if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
        array = np.array([_integer(v, source, place(i)) for i, v in enumerate(values)], object)
    else:
        try:
            array = np.asarray(values)
        except (ValueError, TypeError):  # a ragged list, a tensor that numpy has no type for
            raise UserError(
                f"{source}: got a {type(values).__name__} that is no array of integers"
            ) from None
        if array.size == 0:
            raise UserError(f"{source}: holds no numbers")
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise UserError(
                f"{source}: got {array.dtype} of shape {array.shape}, valid: integers of shape (N,)"
            )
    wrong = np.flatnonzero((array < 0) | (array >= limit))
    if len(wrong):
        raise UserError(
            f"{source}: {place(int(wrong[0]))}: {what} {array[wrong[0]]} is out of range, "
            f"valid: 0 to {limit - 1} ({len(wrong)} such)"
        )
    return array.astype(np.int64)


def _integer(text: str, source: str, place: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{source}: {place}: got {text!r}, valid: an integer") from None


def _positions(values: Any, n: int, path: Path, place: _Place) -> IntArray:
    """The order (N,) that puts rows with these indices in place."""
    index = integers_below(n, values, str(path), place, "index")
    order = np.argsort(index, kind="stable")
    repeated = np.flatnonzero(np.diff(index[order]) == 0)
    if len(repeated):
        first, second = order[repeated[0]], order[repeated[0] + 1]
        raise UserError(
            f"{path}: {place(int(second))}: index {index[second]} is already on {place(int(first))}"
        )
    return order


def _read_numpy(path: Path) -> tuple[dict[str, Any], _Place]:
    content = _load_numpy(path)
    return content if isinstance(content, dict) else {"label": content}, at_index


def _read_torch(path: Path) -> tuple[dict[str, Any], _Place]:
    # what CIFAR-N's files hold, which numpy 1 wrote: the constructor has another name in numpy 2
    reconstruct = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    allowed: list[Any] = [
        reconstruct,
        (reconstruct, "numpy.core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        np.dtypes.Int64DType,
        _codecs.encode,
    ]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on other protocols of pickle: read, or refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged pickle can raise anything
        raise UserError(
            f"{path}: damaged, or holds more than tensors, lists and int64 arrays; other objects "
            "are not loaded, because they could run code"
        ) from None
    if isinstance(content, dict):
        return {str(name): value for name, value in content.items()}, at_index
    return {"label": content}, at_index


def _read_csv(path: Path) -> tuple[dict[str, Any], _Place]:
    reader = csv.reader(text_lines(path))
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}") from None
    if not rows:
        raise UserError(f"{path}: is empty")
    header = rows[0][1]
    if all(cell.lstrip("+-").isdecimal() for cell in header):
        if len(header) > 2:
            raise UserError(
                f"{path}: has {len(header)} columns and no header; give it one with a column label"
            )
        header = ["index", "label"][-len(header) :]
    else:
        rows = rows[1:]
        if not rows:
            raise UserError(
                f"{path}: has the line {', '.join(header)} and no other; expected columns index, label or "
                "label alone, with or without a header"
            )
        # pandas writes its index without a name
        header = [name or "index" for name in header]
    if len(set(header)) < len(header):
        raise UserError(f"{path}: line 1: two columns have one name: {', '.join(header)}")
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"{path}: line {line}: got {len(row)} columns, valid: {len(header)} "
                f"({', '.join(header)})"
            )
    columns = {name: [row[i] for _, row in rows] for i, name in enumerate(header)}
    return columns, lambda i: f"line {rows[i][0]}"


def _read_text(path: Path) -> tuple[dict[str, Any], _Place]:
    lines = text_lines(path)
    while lines and not lines[-1].strip():
        lines.pop()
    return {"label": lines}, lambda i: f"line {i + 1}"


LABEL_READERS: dict[str, Callable[[Path], tuple[dict[str, Any], _Place]]] = {
    ".npy": _read_numpy,
    ".npz": _read_numpy,
    ".pt": _read_torch,
    ".csv": _read_csv,
    ".txt": _read_text,
}


def _existing(path: str | Path, suffixes: Sequence[str] | Mapping[str, Any], what: str) -> Path:
    path = Path(path).expanduser()
    if path.suffix not in suffixes:
        raise UserError(f"{path}: got suffix {path.suffix!r}, {what} end in {', '.join(suffixes)}")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    return path


def _load_numpy(path: Path) -> Any:
    """An array, or a dict of arrays; never a pickled object."""
    try:
        content = np.load(path, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            return content
        with content:
            return dict(content)
    except Exception as error:  # a damaged file can raise anything
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path}: not readable as numpy arrays: {first}") from None


def text_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8.

    Raises:
        UserError: it is not one, or not there.
    """
    try:
        return path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as text: {error}") from None


def write_labels(
    path: str | Path,
    labels: IntArray,
    notes: Mapping[str, Any],
    *,
    clean: IntArray | None = None,
) -> None:
    """Write labels (N,) for others to use, and beside them `PATH.json`, which says what they are.

    Each of the two files is written whole or not at all.

    Args:
        path: .csv (columns index, label and, if given, clean_label), .npy or .txt (labels only).
        notes: what the description says of them beside count, hash and version; JSON-able.
        clean: (N,) true classes.

    Raises:
        UserError: another suffix, or a place that cannot be written.
    """
    path = Path(path).expanduser()
    if path.suffix not in LABEL_WRITERS:
        raise UserError(f"{path}: got suffix {path.suffix!r}, valid: {', '.join(LABEL_WRITERS)}")
    description = {
        **notes,
        "count": len(labels),
        "labels_sha256": labels_sha256(labels),
        "noisybsd": __version__,
    }
    # a line per entry, so that the matrix does not take K² of them
    entries = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in description.items()]
    text = "{\n" + ",\n".join(entries) + "\n}\n"

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write = LABEL_WRITERS[path.suffix]
        write_atomically(path, lambda file: write(file, labels, clean))
        write_atomically(_description(path), lambda file: file.write(text.encode()))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def _write_csv(file: BinaryIO, labels: IntArray, clean: IntArray | None) -> None:
    columns = [np.arange(len(labels)), labels] + ([] if clean is None else [clean])
    header = "index,label" + ("" if clean is None else ",clean_label")
    np.savetxt(file, np.stack(columns, axis=1), "%d", ",", header=header, comments="")


def _write_npy(file: BinaryIO, labels: IntArray, clean: IntArray | None) -> None:
    np.save(file, labels, allow_pickle=False)


def _write_text(file: BinaryIO, labels: IntArray, clean: IntArray | None) -> None:
    np.savetxt(file, labels, "%d")


LABEL_WRITERS: dict[str, Callable[[BinaryIO, IntArray, IntArray | None], None]] = {
    ".csv": _write_csv,
    ".npy": _write_npy,
    ".txt": _write_text,
}


def _description(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def read_description(path: str | Path) -> dict[str, Any] | None:
    """What `write_labels` wrote beside a label file, or None where there is nothing.

    Raises:
        UserError: it is there and not readable.
    """
    description = _description(Path(path).expanduser())
    if not description.is_file():
        return None
    try:
        content = json.loads(description.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{description}: not readable as JSON: {error}") from None
    if not isinstance(content, dict) or "labels_sha256" not in content:
        raise UserError(f"{description}: has no entry labels_sha256, so it describes no labels")
    return content


def _check_description(path: Path, labels: IntArray) -> None:
    description = read_description(path)
    if description and description["labels_sha256"] != labels_sha256(labels):
        raise UserError(
            f"{path}: the labels are not those that {_description(path).name} describes (SHA-256 "
            "differs); if they were changed on purpose, delete that description"
        )
