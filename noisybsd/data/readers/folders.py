"""Anyone's own images: one folder per class, or a manifest. No noise rate, no clean labels needed.

Dimensions: N images, K classes.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np
import pyarrow
import pyarrow.parquet

from noisybsd.data.cards import Card
from noisybsd.data.splits import Labels, Read, Split, file_split, find_images, need, refuse_repeated
from noisybsd.errors import UserError, did_you_mean
from noisybsd.settings import DataConfig


def read_own(card: Card, data: DataConfig) -> Read:
    """Anyone's images: a manifest, or one folder per class, with or without a test split."""
    return _read_manifest(card, data) if data.manifest else _read_folders(card, data)


def _read_folders(card: Card, data: DataConfig) -> Read:
    """root/<class>/…, or root/train/<class>/… with root/test (or val, validation)/<class>/…."""
    root = need(Path(data.root), card)
    has_train = (root / "train").is_dir()
    tests = ("test", "val", "validation") if has_train else ()  # else they are classes
    test_folder = next((name for name in tests if (root / name).is_dir()), None)
    class_names = card.classes or tuple(_subfolders(root / "train" if has_train else root))
    if len(class_names) < 2:
        raise UserError(
            f"{root}: needs a folder of images for each of two or more classes, "
            f"found {', '.join(class_names) or 'none'}; or a list of them, data.manifest=FILE"
        )
    problems: list[str] = []

    def split(folder: str) -> Split:
        paths, labels = [], []
        unknown = sorted(set(_subfolders(root / folder)) - set(class_names))
        if unknown:
            raise UserError(
                f"{root / folder / unknown[0]}: {did_you_mean(unknown[0], class_names)}"
            )
        for label, name in enumerate(class_names):
            here = f"{folder}/{name}" if folder else name
            found, wrong = find_images(root / here) if (root / here).is_dir() else ([], [])
            if not found and folder == ("train" if has_train else ""):
                raise UserError(f"{root / here}: no image in it; every class needs one at least")
            paths += [f"{here}/{path}" for path in found]
            labels += [label] * len(found)
            problems.extend(wrong)
        return file_split(card, data, paths, labels)

    train = split("train" if has_train else "")
    test = split(test_folder) if test_folder else None
    if test_folder and not test:
        raise UserError(
            f"{root / test_folder}: no image in it; without that folder a share of the training "
            "images is held out"
        )
    return Read(train, test, class_names, "unverified", problems)


def _subfolders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, in order; numbers in the order of numbers."""
    names = [e.name for e in folder.iterdir() if e.is_dir() and not e.name.startswith(".")]
    return _in_order(names)


def _in_order(names: Iterable[str]) -> list[str]:
    names = sorted(names)
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else names


@dataclass(frozen=True)
class Manifest:
    """A table of images, each cell a string.

    Args:
        columns: name: (N,) cells.
        rows: (N,) where each row is in the file, e.g. `line 7`.
    """

    path: Path
    columns: dict[str, list[str]]
    rows: list[str]

    def wrong(self, i: int, reason: str) -> UserError:
        """The error that row i is wrong."""
        return UserError(f"{self.path}: {self.rows[i]}: {reason}")


def _read_manifest(card: Card, data: DataConfig) -> Read:
    """CSV or Parquet with columns path, label and, where known, clean_label and split."""
    assert data.manifest is not None
    path, in_root = Path(data.manifest).expanduser(), Path(data.root) / data.manifest
    if not path.is_file() and not in_root.is_file():
        other = "" if path.is_absolute() else f", nor {in_root}"
        raise UserError(f"data.manifest={path}: there is no such file{other}")
    manifest = load_manifest(path if path.is_file() else in_root)
    paths = _paths(manifest)
    splits = _cells(
        manifest, "split", "train", lambda split: split in ("train", "test"), "train, test"
    )
    is_test = np.array(splits) == "test"
    given = _cells(manifest, "label", None, _is_class, "a class name or a number from 0")
    class_names = card.classes or tuple(_in_order(set(given)))
    labels = _numbers(manifest, given, class_names)
    trained = np.bincount(labels[~is_test], minlength=len(class_names))
    if not trained.all():
        name = class_names[int(trained.argmin())]
        raise UserError(f"{manifest.path}: class {name} has no training image")
    if len(class_names) < 2:
        raise UserError(f"{manifest.path}: has fewer than two classes")
    whole = file_split(card, data, paths, labels)
    train, test = whole.take(~is_test), whole.take(is_test) if is_test.any() else None
    train = replace(train, clean_labels=_clean(manifest, ~is_test, class_names))
    if test is None:
        return Read(train, None, class_names)
    clean = _clean(manifest, is_test, class_names)
    if clean is None:
        return Read(train, test, class_names, "unverified")
    return Read(train, replace(test, labels=clean, clean_labels=clean), class_names)


def load_manifest(path: Path) -> Manifest:
    """Read a manifest, whatever its columns besides path and label.

    Raises:
        UserError: names the file: not there, not readable, without rows or a needed column.
    """
    if path.suffix not in _TABLES:
        raise UserError(f"data.manifest={path}: valid: a {' or '.join(_TABLES)} file")
    try:
        columns, rows = _TABLES[path.suffix](path)
    except (OSError, UnicodeDecodeError, csv.Error, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: not readable as a manifest: {error}") from None
    for name in ("path", "label"):
        if name not in columns:
            raise UserError(f"{path}: no column {name}: has {', '.join(columns) or 'none'}")
    if not rows:
        raise UserError(f"{path}: has no rows")
    return Manifest(path, columns, rows)


def _parquet(path: Path) -> tuple[dict[str, list[str]], list[str]]:
    table = pyarrow.parquet.read_table(path)
    columns = {
        name: ["" if value is None else str(value) for value in table[name].to_pylist()]
        for name in table.column_names
    }
    return columns, [f"row {i + 1}" for i in range(table.num_rows)]


def _csv(path: Path) -> tuple[dict[str, list[str]], list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    header = rows[0][1] if rows else []
    refuse_repeated(header, f"{path}: line 1")
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise UserError(f"{path}: line {line}: got {len(row)} columns, expected {len(header)}")
    columns = {name: [row[i] for _, row in rows[1:]] for i, name in enumerate(header)}
    return columns, [f"line {line}" for line, _ in rows[1:]]


_TABLES: dict[str, Callable[[Path], tuple[dict[str, list[str]], list[str]]]] = {
    ".csv": _csv,
    ".parquet": _parquet,
}


def _paths(manifest: Manifest) -> list[str]:
    """The paths (N,), checked: each inside the root, none twice."""
    first: dict[str, int] = {}
    for i, cell in enumerate(manifest.columns["path"]):
        path = os.path.normpath(cell)
        if not cell or PurePath(path).is_absolute() or PurePath(path).parts[:1] == ("..",):
            raise manifest.wrong(i, f"path {cell!r} must be relative to data.root and inside it")
        if first.setdefault(path, i) != i:
            raise manifest.wrong(i, f"{path} is already on {manifest.rows[first[path]]}")
    return list(first)


def _is_class(cell: str) -> bool:
    return cell != "" and not cell.startswith("-")


def _cells(
    manifest: Manifest, name: str, default: str | None, valid: Callable[[str], bool], options: str
) -> list[str]:
    """A column's cells (N,), checked; `default` in every row where there is no such column."""
    if name not in manifest.columns and default is not None:
        return [default] * len(manifest.rows)
    for i, cell in enumerate(manifest.columns[name]):
        if not valid(cell):
            raise manifest.wrong(i, f"{name} is {cell!r}, valid: {options}")
    return manifest.columns[name]


def _clean(manifest: Manifest, rows: np.ndarray, class_names: Sequence[str]) -> Labels | None:
    """Clean labels of the chosen rows (N,) bool; None where no row has one."""
    cells = manifest.columns.get("clean_label", [""] * len(manifest.rows))
    chosen = np.flatnonzero(rows).tolist()
    known = [i for i in chosen if cells[i] != ""]
    if not known:
        return None
    if len(known) < len(chosen):
        missing = next(i for i in chosen if cells[i] == "")
        raise manifest.wrong(missing, "clean_label is empty; valid: all rows of a split, or none")
    return _numbers(manifest, cells, class_names, chosen)


def _numbers(
    manifest: Manifest,
    names: Sequence[str],
    class_names: Sequence[str],
    rows: Iterable[int] | None = None,
) -> Labels:
    """Class names to labels, of the rows given by number or of all."""
    number = {name: i for i, name in enumerate(class_names)}
    chosen = range(len(names)) if rows is None else list(rows)
    for i in chosen:
        if names[i] not in number:
            raise manifest.wrong(i, f"class {did_you_mean(names[i], class_names)}")
    return np.array([number[names[i]] for i in chosen], dtype=np.int64)
