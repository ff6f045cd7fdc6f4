"""The label report of files: labels and probabilities that any model gave, read and put in one order.

Dimensions: N samples, K classes, D embedding width.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet

from noisybsd.data.find import find_images
from noisybsd.data.label_files import read_labels
from noisybsd.data.label_readers import LABEL_READERS
from noisybsd.data.names import (
    ImageNames,
    class_of,
    examples,
    in_order,
    is_missing,
    match,
    plain,
)
from noisybsd.data.tables import INDEX, Table, lines_of, names_of, refuse_same, separator_of
from noisybsd.data.votes import votes_told
from noisybsd.errors import UserError, brief, did_you_mean, first_line
from noisybsd.files import naming, spare_inputs, user_path, write_json
from noisybsd.report.arrays import SLACK, label_table, probabilities, summary_of, write_report
from noisybsd.report.findings import Floats, Ints, write_table
from noisybsd.report.write import as_json

KEYS = ("labels", "probs", "images", "embeddings", "classes", "out", "top")
_ARRAYS = ("probs", "pred_probs", "probabilities")  # what an array of a .npz may be called


@dataclass(frozen=True)
class Given:
    """What the files say, in one order.

    Args:
        labels: (N,).
        probs: (N,K).
        class_names: K.
        paths: N image files, relative to the folder of images; None: not known.
    """

    labels: Ints
    probs: Floats
    class_names: Sequence[str]
    paths: Sequence[str] | None


def report_of_files(settings: dict[str, str], top: int) -> tuple[Path, dict[str, Any], list[str]]:
    """Write report.html, labels.parquet, labels.csv and labels_metrics.json into the folder `out`.

    Args:
        settings: some of KEYS with their values, `labels` and `probs` among them.

    Returns:
        the folder, what `estimates` says, and sentences on how the files were read.

    Raises:
        UserError: names the key or the file, the value and what is valid.
    """
    for key in settings:
        if key not in KEYS:
            raise UserError(f"{key}: {did_you_mean(key, KEYS)}")
    if missing := [key for key in ("labels", "probs") if key not in settings]:
        raise UserError(f"{missing[0]}=FILE is missing: labels and probs go together")
    images = user_path(settings["images"], "images") if "images" in settings else None
    if images is not None and not images.is_dir():
        raise UserError(f"images={images}: there is no such folder")
    given, notices = _read(settings, images)
    embeddings = None
    if "embeddings" in settings:
        embeddings = _array(user_path(settings["embeddings"], "embeddings"), ("embeddings",))
    out = user_path(settings.get("out", "label_report"), "out")
    for name in ("report.html", "labels.parquet", "labels.csv", "labels_metrics.json"):
        spare_inputs(out / name, settings.items())
    table = label_table(
        given.labels,
        given.probs,
        embeddings=embeddings,
        class_names=given.class_names,
        paths=given.paths,
    )
    with naming(f"out={out}: cannot be made"):
        out.mkdir(parents=True, exist_ok=True)
    pictures = images if given.paths is not None else None
    _, said = summary_of(table)
    write_report(table, out / "report.html", pictures, top=top)
    write_table(table, out)
    write_json(out / "labels_metrics.json", {"estimates": as_json(said), "notices": notices})
    return out, said, notices


def _read(settings: dict[str, str], images: Path | None) -> tuple[Given, list[str]]:
    path, predicted = (user_path(settings[key], key) for key in ("labels", "probs"))
    labels = _table(path, "labels")
    if not predicted.is_file():
        raise UserError(f"probs={predicted}: there is no such file")
    probs, columns, named = _probabilities(predicted)
    if probs.ndim != 2:
        raise UserError(f"probs={predicted}: got shape {probs.shape}; valid: (N, K)")
    n, classes = probs.shape
    notices: list[str] = []
    paths = _paths(labels)
    if paths is not None and images is not None:
        paths = _on_disk(paths, images, path, notices)
    elif images is not None:
        paths = find_images(images).paths
        if len(paths) != n:
            raise UserError(
                f"images={images}: holds {len(paths)} images, valid: {n}, one for each row of probs; or give "
                "the labels a column path"
            )
        notices.append("Image i is the one whose path is number i in alphabetical order.")
    names = ImageNames(paths, images or ".") if paths is not None else None
    order: Any = slice(None)
    if named is not None and names is not None:
        table, column = named
        source = f"{table.path}: column {column}"
        order = match(names_of(table, column), names, source, table.rows.__getitem__)
    _check_rows(labels, predicted, n, classes)
    probs = probabilities(probs, f"probs={predicted}")[order]  # rows are named as the file has them
    class_names = _class_names(settings.get("classes"), columns, labels, classes)
    found = read_labels(path, classes, n, class_names=class_names, images=names)
    if found.votes is not None:
        notices.append(
            f"The label of an image is that of most annotators ({votes_told(found.votes)})."
        )
    return Given(found.labels, probs, class_names, paths), notices


def _check_rows(labels: Table, probs: Path, n: int, classes: int) -> None:
    """Refuse labels of which there are more or fewer than rows of probabilities."""
    counts = [len(cells) for cells in labels.columns.values() if getattr(cells, "ndim", 1)]
    if n in counts or not counts:
        return
    turned = (
        f": it has {classes} columns, so it is probably to be transposed"
        if classes in counts
        else ""
    )
    raise UserError(
        f"{labels.path}: got {counts[0]} labels, valid: {n}, one for each row of {probs}{turned}"
    )


def _table(path: Path, key: str) -> Table:
    if path.suffix.lower() not in LABEL_READERS:
        raise UserError(f"{key}={path}: valid: a file that ends in {', '.join(LABEL_READERS)}")
    if not path.is_file():
        raise UserError(f"{key}={path}: there is no such file")
    return LABEL_READERS[path.suffix.lower()](path, None)


def _paths(labels: Table) -> list[str] | None:
    """The names of the images, where a column of the labels has them."""
    column = next(labels.name_columns(), None)
    return None if column is None else names_of(labels, column)


def _on_disk(paths: list[str], images: Path, labels: Path, notices: list[str]) -> list[str]:
    """The paths, with plain slashes where files are called so; and a notice of those that are not there."""
    there = [os.path.exists(images / path) for path in paths]  # noqa: PTH110 (names may be anything)
    paths = [path if here else plain(path) for path, here in zip(paths, there, strict=True)]
    missing = [path for path in paths if not os.path.exists(images / path)]  # noqa: PTH110
    if len(missing) == len(paths):
        raise UserError(
            f"images={images}: has none of the images that {labels} names, such as {brief(missing[0])}"
        )
    if missing:
        notices.append(
            f"{len(missing):,} of the images are not in {images} and have no picture: {examples(missing)}."
        )
    return paths


def _probabilities(path: Path) -> tuple[Floats, list[str] | None, tuple[Table, str] | None]:
    """Probabilities (N,K); what their columns are called; and the table's column that names images."""
    if path.suffix.lower() in (".npy", ".npz", ".pt"):
        return _array(path, _ARRAYS), None, None
    content, has_header = _read_columns(path)
    known = Table(path, dict.fromkeys(content.column_names), ())
    named, index = next(known.name_columns(), None), known.only(INDEX, "the index")
    columns = [name for name in content.column_names if name not in (named, index)]
    for name in columns:
        kind = content[name].type
        if not (pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind)):
            raise UserError(
                f"{path}: column {name} holds {kind}, such as {brief(content[name][0].as_py(), 60)}; valid: "
                "the probabilities of a class, such as 0.25"
            )
    numbers = np.array([content[name].to_numpy() for name in columns], np.float64).T
    rows = [f"row {i + 1}" for i in range(content.num_rows)]
    if index is not None and named is None:
        numbers = numbers[_by_index(content[index].to_pylist(), f"{path}: column {index}")]
    names = columns if has_header else None
    if named is None:
        return numbers, names, None
    return numbers, names, (Table(path, {named: content[named].to_pylist()}, rows), named)


def _read_columns(path: Path) -> tuple[pyarrow.Table, bool]:
    """A table of numbers, and whether its columns have names: not a first line that sums to 1."""
    try:
        if path.suffix.lower() == ".parquet":
            return pyarrow.parquet.read_table(path), True
        with path.open(encoding="utf-8-sig", newline="") as file:
            start = file.read(1 << 16)
        separator = separator_of(start)
        first = csv.reader(lines_of(start), delimiter=separator, skipinitialspace=True)
        cells = [cell.strip() for cell in next(first, [""])]
        has_header = not _are_probabilities(cells)
        names = (
            [cell or "index" for cell in cells] if has_header else list(map(str, range(len(cells))))
        )
        refuse_same(names, str(path))
        read = pyarrow.csv.ReadOptions(column_names=names, skip_rows=int(has_header))
        parse = pyarrow.csv.ParseOptions(delimiter=separator)
        return pyarrow.csv.read_csv(path, read, parse), has_header
    except (OSError, UnicodeError, csv.Error, pyarrow.ArrowException) as error:
        raise UserError(f"probs={path}: not readable as a table: {first_line(error)}") from None


def _are_probabilities(cells: list[str]) -> bool:
    try:
        return abs(sum(map(float, cells)) - 1) <= SLACK and len(cells) > 1
    except ValueError:
        return False


def _by_index(values: list[Any], source: str) -> Ints:
    order = {value: row for row, value in enumerate(values)}
    if order.keys() != {*range(len(values))}:
        raise UserError(f"{source}: valid: each of 0 to {len(values) - 1}, once")
    return np.array([order[i] for i in range(len(values))])


def _array(path: Path, names: Sequence[str]) -> Floats:
    """Numbers (N,K) of a .npy, .npz or .pt."""
    table = _table(path, names[0])
    found = [name for name in (*names, "label") if name in table.columns] or list(table.columns)
    if len(found) != 1 and found[0] not in names:
        raise UserError(
            f"{path}: holds {', '.join(table.columns)}; valid: one array, or one called {names[0]}"
        )
    return np.asarray(table.columns[found[0]])


def _class_names(
    classes: str | None, columns: list[str] | None, labels: Table, count: int
) -> list[str]:
    """The names of the K classes: as told, as the columns of probabilities, as the labels, or numbers."""
    if classes is not None:
        return classes.split(",")
    if columns is not None:
        return columns
    held = list(labels.columns)
    if len(held) > 1:
        held = labels.label_columns() or [labels.label_column()]
    cells: list[Any] = []
    for column in held:
        if not isinstance(labels.columns[column], list):
            return [str(k) for k in range(count)]
        cells += [cell for cell in labels.columns[column] if len(held) == 1 or not is_missing(cell)]
    names = in_order({class_of(cell) for cell in cells})
    if all(name.isdigit() for name in names):
        return [str(k) for k in range(count)]
    if len(names) != count:
        raise UserError(
            f"{labels.path}: has {len(names)} classes, probs has {count} columns: say with classes=A,B,… "
            "what the columns are, in their order"
        )
    return names
