"""Anyone's own images, listed in a table with their labels.

Dimensions: N images, K classes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from noisybsd.data.cards import Card
from noisybsd.data.features import read_embeddings
from noisybsd.data.find import find_images
from noisybsd.data.images import image_suffixes
from noisybsd.data.names import (
    UNKNOWN,
    ImageNames,
    as_text,
    class_of,
    examples,
    folded_path,
    in_order,
    is_missing,
    labels_of,
    refuse_lookalikes,
    split_named,
    whole_number,
)
from noisybsd.data.splits import Labels, Read, Split, file_split, verified
from noisybsd.data.tables import CLEAN, SPLITS, SUFFIXES, Table, names_of, read_table
from noisybsd.data.votes import of_annotators, of_matrix
from noisybsd.errors import UserError
from noisybsd.settings import DataConfig

_LOOKED_AT = 50  # rows that show whether the table has paths as they are on the disk


def read_manifest(card: Card, data: DataConfig) -> Read:
    """A table with columns path, label and, where known, clean_label and split."""
    table = load_manifest(data)
    paths, notices = _paths(table, data)
    splits = _splits(table)
    is_test, unused = _test_rows(splits)
    notices += unused
    is_train = splits == "train"
    if not is_train.any():
        raise UserError(f"{table.path}: has no row of the split train")
    annotators = data.annotators if data.labels == "default" else ()
    whole, class_names = _whole(table, card, data, paths, annotators)
    train = whole.take(is_train).without_unknown()
    if len(class_names) < 2:
        raise UserError(f"{table.path}: has fewer than two classes")
    trained = np.bincount(train.labels, minlength=len(class_names))
    if train.votes is not None:
        trained = train.votes.sum(axis=0)
    if not trained.all():
        name = class_names[int(trained.argmin())]
        raise UserError(f"{table.path}: class {name} has no training image")
    if not is_test.any():
        return Read(train, None, class_names, notices=notices)
    test, what = verified(whole.take(is_test), "unverified")
    return Read(train, test, class_names, what, notices=notices)


def read_manifest_to_test(card: Card, data: DataConfig) -> Read:
    """The same for a network that is trained already: the test images, or all where none are marked."""
    table = load_manifest(data)
    paths, notices = _paths(table, data)
    splits = _splits(table)
    is_test, _ = _test_rows(splits)
    if not is_test.any():
        is_test = np.ones(len(splits), dtype=bool)
    elif not is_test.all():
        notices.append(f"not used: {(~is_test).sum():,} images of other splits than the test split")
    whole, class_names = _whole(table, card, data, paths)
    test, what = verified(whole.take(is_test), "unverified")
    return Read(test, None, class_names, what, notices=notices)


def load_manifest(data: DataConfig) -> Table:
    """Read the table that data.manifest names, there or in data.root.

    Raises:
        UserError: names the file: not there, or not readable.
    """
    assert data.manifest is not None
    path, in_root = Path(data.manifest).expanduser(), Path(data.root) / data.manifest
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"data.manifest={path}: valid: a file that ends in {', '.join(SUFFIXES)}")
    if not path.is_file() and not in_root.is_file():
        other = "" if path.is_absolute() else f", nor {in_root}"
        raise UserError(f"data.manifest={path}: there is no such file{other}")
    return read_list(path if path.is_file() else in_root)


def read_list(path: Path) -> Table:
    """Read a table that lists images.

    Raises:
        UserError: as `read_table`.
    """

    def names_image(cell: str) -> bool:
        return Path(cell).suffix.lower() in image_suffixes()

    return read_table(path, names_image)


def _whole(
    table: Table,
    card: Card,
    data: DataConfig,
    paths: list[str],
    annotators: Sequence[str] = (),
) -> tuple[Split, tuple[str, ...]]:
    """All images of the table, and the classes: the card's, or as they are found."""
    columns = table.label_columns(annotators, card.classes, "data.annotators")
    if not columns:
        columns = [table.label_column(table.by_annotators())]
    if columns == list(card.classes):
        matrix, class_names = table.matrix(columns), card.classes
        labels, votes = of_matrix(matrix, len(class_names), table.path, table.wrong)
    else:
        given, class_names = _classes(table, card, columns)
        labels, votes = of_annotators(given, len(class_names), table.wrong)
    whole = file_split(card, data, paths, labels)
    whole = replace(whole, clean_labels=_clean(table, class_names), votes=votes)
    if data.embeddings is not None:
        whole = replace(whole, embeddings=read_embeddings(data.embeddings, len(paths), table.path))
    return whole, class_names


# --- paths --------------------------------------------------------------------------------------


def _paths(table: Table, data: DataConfig) -> tuple[list[str], list[str]]:
    """The images (N,), each inside the root, none twice; and what to know of how they were found."""
    root = Path(data.root)
    if data.embeddings is not None and not [*table.name_columns()]:
        return [f"row {i}" for i in range(len(table.rows))], []
    column = path_column(table, root)
    names, inside = names_of(table, column), ImageNames([], root)
    paths = []
    for i, name in enumerate(names):
        path = name if _is_there(root, name) else inside.inside(name)
        if path is None or path == "..":
            raise table.wrong(
                i, f"{column} {name!r} must be relative to data.root={root} and inside it"
            )
        paths.append(os.path.normpath(path))
    notices = []
    looked_at = sorted({*np.linspace(0, len(paths) - 1, _LOOKED_AT).astype(int).tolist()})
    there = [(root / paths[i]).exists() for i in looked_at]
    if root.is_dir() and not all(there):
        found = find_images(root).paths
        paths, changed = _as_on_disk(table, column, paths, found, root, whole=any(there))
        if changed:
            whole = "their whole paths, written otherwise or from above data.root"
            how = whole if any(there) else "the ends of their paths"
            notices.append(
                f"{changed:,} of the names in {table.path.name} are no paths from data.root; the images "
                f"were found by {how}"
            )
    first: dict[str, int] = {}
    for i, path in enumerate(paths):
        if first.setdefault(path, i) != i:
            raise table.wrong(
                i,
                f"{as_text(path)} is already on {table.rows[first[path]]}; if several people labelled "
                "it, say who in a column annotator",
            )
    return paths, notices


def _is_there(root: Path, name: str) -> bool:
    """Whether `name` is, letter by letter, a file inside the root: a backslash may be a letter."""
    return "\\" in name and ".." not in name and not os.path.isabs(name) and (root / name).exists()  # noqa: PTH117


def path_column(table: Table, root: Path) -> str:
    """The column that names images; of several, the one whose names are files in the root."""
    columns = list(table.name_columns())
    if not columns:
        has = ", ".join(map(str, table.columns)) or "none"
        raise UserError(f"{table.path}: no column path: has {has}")
    if "path" in columns:
        return "path"
    for column in columns:
        cells = [str(cell) for cell in table.columns[column][:_LOOKED_AT]]
        if any((root / cell).is_file() for cell in cells if cell and "\0" not in cell):
            return column
    return columns[0]


def _as_on_disk(
    table: Table, column: str, paths: list[str], found: list[str], root: Path, *, whole: bool
) -> tuple[list[str], int]:
    """Paths with those that are not on the disk replaced by the images they mean, and how many these are.

    Args:
        whole: take none by the end of its path, for where other rows have whole paths, an image that is
            missing must not be replaced by one that is called alike.
    """
    images = ImageNames(found, root)
    changed = 0
    meant = []
    for i, path in enumerate(paths):
        candidates = images.find(path)
        if whole:
            named = f"/{folded_path(path)}"
            candidates = [j for j in candidates if named.endswith(f"/{folded_path(found[j])}")]
        if len(candidates) > 1:
            several = " and ".join(repr(as_text(found[j])) for j in candidates[:2])
            raise table.wrong(
                i, f"{column} {path!r} may mean {several}; write paths from data.root"
            )
        meant.append(found[candidates[0]] if candidates else path)
        changed += meant[-1] != path
    return meant, changed


# --- splits and classes -------------------------------------------------------------------------


def _splits(table: Table) -> np.ndarray:
    """train, val or test of each row (N,); all train where no column says."""
    column = table.only(SPLITS, "the split")
    if column is None:
        return np.full(len(table.rows), "train")
    splits = []
    for i, cell in enumerate(table.columns[column]):
        split = split_named(str(cell))
        if split is None:
            raise table.wrong(i, f"{column} is {str(cell)!r}, valid: train, val, test")
        splits.append(split)
    return np.array(splits)


def _test_rows(splits: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Which rows are to test (N,), and what is not used: validation images beside test images."""
    count = Counter(splits.tolist())
    if count["test"] and count["val"]:
        return splits == "test", [f"not used: {count['val']:,} images of the split val"]
    return (splits == "test") | (splits == "val"), []


def _classes(table: Table, card: Card, columns: Sequence[str]) -> tuple[Labels, tuple[str, ...]]:
    """The labels (N,M) of one column, or of several annotators, UNKNOWN where one gave none; and the
    classes, of the card or as they are found."""
    rows, names = [], []
    for column in columns:
        for i, cell in enumerate(table.columns[column]):
            if len(columns) > 1 and is_missing(cell) and cell not in card.classes:
                continue
            try:
                names.append(class_of(cell, card.classes))
            except ValueError as error:
                raise table.wrong(
                    i, f"{column} {error}; valid: the name of one class, or a number from 0"
                ) from None
            rows.append((i, column))
    class_names = card.classes
    if not class_names:
        _refuse_mixed(table, rows, names)
        refuse_lookalikes(dict.fromkeys(names), table.path)
        _refuse_strangers(table, rows, names)
        class_names = tuple(in_order(set(names)))

    def wrong(number: int, reason: str) -> UserError:
        i, column = rows[number]
        return table.wrong(i, f"{column}: {reason}" if len(columns) > 1 else reason)

    given = np.full((len(table.rows), len(columns)), UNKNOWN)
    labels = labels_of(names, class_names, wrong)
    for (i, column), label in zip(rows, labels, strict=True):
        given[i, columns.index(column)] = label
    return given, class_names


_Cell = tuple[int, str]  # row and column


def _refuse_strangers(table: Table, cells: Sequence[_Cell], names: Sequence[str]) -> None:
    """Refuse an annotator none of whose classes another has named: names of another language or code."""
    used: dict[str, set[str]] = {}
    for (_, column), name in zip(cells, names, strict=True):
        used.setdefault(column, set()).add(name)
    for column, classes in used.items():
        others = set().union(*(used[other] for other in used if other != column))
        if others and not classes & others:
            raise UserError(
                f"{table.path}: the classes of {column} ({examples(in_order(classes))}) are none of those of "
                f"the other annotators ({examples(in_order(others))}). Annotators must use the same names"
            )


def _refuse_mixed(table: Table, cells: Sequence[_Cell], names: list[str]) -> None:
    """Refuse numbers among names, of which one kind is a mistake."""
    numbers = [whole_number(name) is not None for name in names]
    if any(numbers) and not all(numbers):
        rarer = sum(numbers) * 2 < len(numbers)
        chosen = [i for i, number in enumerate(numbers) if number == rarer]
        rows = [f"{names[i]} ({table.rows[cells[i][0]]})" for i in chosen]
        columns = ", ".join(dict.fromkeys(column for _, column in cells))
        raise UserError(
            f"{table.path}: {columns} holds names and numbers: {examples(rows)}. Write all as names or all "
            "as numbers; if they are right, list the classes of your data in a card of your own "
            "(docs/data.md says how)"
        )


def _clean(table: Table, class_names: Sequence[str]) -> Labels | None:
    """Clean labels (N,), UNKNOWN where the cell is empty; None without such a column."""
    column = table.only(CLEAN, "the clean labels")
    if column is None:
        return None
    cells = table.columns[column]
    clean = np.full(len(cells), UNKNOWN)
    known = [i for i, cell in enumerate(cells) if not is_missing(cell) or cell in class_names]
    names = []
    for i in known:
        try:
            names.append(class_of(cells[i], class_names))
        except ValueError as error:
            raise table.wrong(i, f"{column} {error}; valid: the name of one class") from None

    def wrong(number: int, reason: str) -> UserError:
        return table.wrong(known[number], f"{column}: {reason}")

    clean[known] = labels_of(names, class_names, wrong)
    return clean
