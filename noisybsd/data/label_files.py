"""Files of labels, read and written safely.

Every mistake in a file is answered with the file, the place in it and the value found there.

Dimensions: N samples, K classes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from noisybsd import __version__
from noisybsd.data.label_readers import LABEL_READERS, existing
from noisybsd.data.names import (
    UNKNOWN,
    ImageNames,
    class_of,
    is_missing,
    labels_of,
    match,
    unknown_class,
    whole_number,
)
from noisybsd.data.tables import (
    CLEAN,
    INDEX,
    KNOWN,
    WEAK_NAMES,
    Table,
    names_of,
    plain_key,
)
from noisybsd.data.votes import Votes, of_annotators, of_matrix
from noisybsd.errors import UserError
from noisybsd.files import write_atomically, write_text
from noisybsd.values import is_unicode

IntArray = npt.NDArray[np.int64]


def labels_sha256(labels: npt.NDArray[Any]) -> str:
    """SHA-256 of labels (N,) as little-endian int64, whatever file or machine they come from."""
    return hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()


class LabelFile(NamedTuple):
    """What `read_labels` found.

    Args:
        labels: (N,) int64.
        clean: (N,) int64, UNKNOWN where the file has none for an image; None: for no image.
        by: how rows were matched with images: name, index or position.
        votes: (N,K) float32, see votes.py; None: every image has one label.
    """

    labels: IntArray
    clean: IntArray | None
    by: str
    votes: Votes | None


def read_labels(
    path: str | Path,
    num_classes: int,
    n: int,
    key: str | Sequence[str] | None = None,
    clean_key: str = "clean_label",
    *,
    class_names: Sequence[str] = (),
    images: ImageNames | None = None,
    setting: str = "",
) -> LabelFile:
    """Read the given labels of n samples, and the clean ones where the file has them.

    | suffix | content |
    |---|---|
    | .npy | integers, or names of classes (N,); or votes or probabilities (N,K) |
    | .npz, .pt | the same, or several by name; a .pt is read without running code from it |
    | .csv, .tsv, .parquet | a column `label`, or one column only; optional: `clean_label`, and `index` or a \
column that names the images; in place of `label` also `label_1`, `label_2`, …, or a column for each class |
    | .csv without a header | `label`, `index,label` or `path,label` |
    | .txt | one label per line, or `path label` |

    The labels are put in the images' order by the column that names images. A file without one is read by
    its `index` (from 0), and a file without that by position: row i is image i. A description beside the
    file, as `write_labels` makes it, must fit the labels.

    Args:
        key: which array or column holds the labels, if there are several; or which ones, each with the
            labels of one annotator. A cell may be empty in some of these.
        clean_key: the one that holds the clean labels, if any does.
        class_names: what labels may be called instead of 0..num_classes-1.
        images: the names of the n images; None: they have none.
        setting: the one by which a user gives `key`, for errors.

    Raises:
        UserError: names the file, the line or index, the value and what is valid.
    """
    path = existing(path, LABEL_READERS, "label files")
    table = LABEL_READERS[path.suffix.lower()](path, images)
    numbered = read_description(path) is not None  # `write_labels` writes numbers
    names = () if numbered else class_names
    by, order = _order(table, n, images, class_names)
    _check_count(path, "labels", len(order), n)
    clean_column = _clean_column(table, clean_key)
    keys = [key] if isinstance(key, str) else key or ()
    columns = table.label_columns(keys, class_names, setting or "columns")
    if not columns:
        columns = [_only_column(table, {clean_column}, bool(setting))]
    labels, votes = _given(table, columns, num_classes, names, n)
    clean = None
    if clean_column is not None:
        clean = _labels_if_known(table, clean_column, num_classes, names)
        _check_count(f"{path}: {clean_column}", "labels", len(clean), n)
    labels, clean = labels[order], None if clean is None else clean[order]
    _check_description(path, labels)
    return LabelFile(labels, clean, by, None if votes is None else votes[order])


def _order(
    table: Table, n: int, images: ImageNames | None, class_names: Sequence[str]
) -> tuple[str, IntArray]:
    """By what rows are matched with images, and the order (N,) that puts them in place."""
    index = table.only(INDEX, "the index")
    column = _name_column(table, images, class_names)
    if column is not None:
        source = f"{table.path}: column {column}"
        if images is None:
            raise UserError(
                f"{source} names images, but those of this dataset have no names; give a column index "
                "(from 0), or labels alone, in the order of the images"
            )
        return "name", match(names_of(table, column), images, source, table.rows.__getitem__)
    if index is not None:
        return "index", _positions(table, index, n)
    return "position", np.arange(n)


def _name_column(table: Table, images: ImageNames | None, class_names: Sequence[str]) -> str | None:
    """The column that names the images, by what it is called or by what is in it; None: there is none."""
    suspected = list(table.name_columns())
    for column in suspected:
        if plain_key(column) in WEAK_NAMES and _holds(table, column, class_names.__contains__):
            continue  # names of classes
        return column
    if images is not None and len(table.columns) > 1:
        for column in table.columns:
            if plain_key(column) not in KNOWN and _holds(table, column, images.find, distinct=True):
                return column
    return None


def _holds(table: Table, column: str, test: Callable[[str], Any], distinct: bool = False) -> bool:
    """Whether the first cells of a column are text that passes a test, and, if asked for, all differ."""
    cells = table.columns[column]
    first = cells[:50] if isinstance(cells, list) else []
    if not first or not all(isinstance(cell, str) and test(cell) for cell in first):
        return False
    return not distinct or len(set(first)) == len(first)


def _clean_column(table: Table, clean_key: str) -> str | None:
    if clean_key in table.columns:
        return clean_key
    return table.only(CLEAN, "the clean labels") if clean_key == "clean_label" else None


def _only_column(table: Table, others: set[str | None], may_choose: bool) -> str:
    """The column that is left when those of names, indices and `others` are taken away."""
    named = {*table.name_columns(), *table.called(INDEX), *others}
    candidates = [name for name in table.columns if name not in named]
    if len(candidates) != 1:
        raise UserError(
            f"{table.path}: which labels to use is not clear: expected one named label, got "
            f"{', '.join(map(repr, table.columns))}{table.by_annotators() if may_choose else ''}"
        )
    return candidates[0]


def _given(
    table: Table, columns: Sequence[str], num_classes: int, class_names: Sequence[str], n: int
) -> tuple[IntArray, Votes | None]:
    """The labels (N,) of one column, or the majority's of several, and the votes behind them."""
    first = table.columns[columns[0]]
    if columns == list(class_names) or (len(columns) == 1 and getattr(first, "ndim", 1) == 2):
        matrix = table.matrix(columns)
        _check_count(table.path, "rows", len(matrix), n)
        return of_matrix(matrix, num_classes, table.path, table.wrong)
    if len(columns) == 1:
        labels = _labels(table, columns[0], num_classes, class_names)
        _check_count(table.path, "labels", len(labels), n)
        return labels, None
    given = []
    for column in columns:
        given.append(_labels_if_known(table, column, num_classes, class_names))
        _check_count(f"{table.path}: {column}", "labels", len(given[-1]), n)
    return of_annotators(np.stack(given, axis=1), num_classes, table.wrong)


def _check_count(source: object, what: str, count: int, n: int) -> None:
    if count != n:
        raise UserError(f"{source}: got {count} {what}, valid: {n}, one for each image")


def _labels(
    table: Table, column: str, num_classes: int, class_names: Sequence[str], named: bool = False
) -> IntArray:
    """A column's labels (N,): numbers below `num_classes`, or names of classes.

    Args:
        named: whether errors are to say which column it is.
    """
    prefix = f"{column}: " if named else ""
    values, source = table.columns[column], f"{table.path}: {column}" if named else str(table.path)

    def wrong(i: int, reason: str) -> UserError:
        return table.wrong(i, prefix + reason)

    if not isinstance(values, list):
        return integers_below(num_classes, values, source, table.rows.__getitem__)
    names = []
    for i, value in enumerate(values):
        try:
            names.append(class_of(value, class_names))
        except ValueError as error:
            raise table.wrong(i, f"{column} {error}; {_valid(class_names)}") from None
    if not names:
        raise UserError(f"{source}: holds no labels")
    numbers = [whole_number(name) for name in names]
    as_names = set(names) <= set(class_names)
    if None in numbers and not as_names:
        strangers = [i for i, name in enumerate(names) if name not in class_names]
        i, first = numbers.index(None), strangers[0]
        if all(numbers[i] is not None for i in strangers):
            raise wrong(
                i,
                f"{names[i]!r} is the name of a class, but {names[first]!r} on {table.rows[first]} is a "
                "number; valid: names in all rows, or numbers in all",
            )
        i = next(i for i in strangers if numbers[i] is None)
        if class_names:
            raise wrong(i, f"class {unknown_class(names[i], class_names)}, or a number from 0")
        raise wrong(i, f"got {names[i]!r}, valid: an integer")
    if not as_names:
        return integers_below(
            num_classes, np.array(numbers, object), source, table.rows.__getitem__
        )
    labels = labels_of(names, class_names, wrong)
    ambiguous = None not in numbers and max(n for n in numbers if n is not None) < num_classes
    if ambiguous and (labels != np.array(numbers)).any():
        i = int((labels != np.array(numbers)).argmax())
        raise wrong(
            i,
            f"{names[i]!r} is the name of class {labels[i]} and the number of class "
            f"{class_names[int(names[i])]!r}: give numbers as a .npy file, or names in a manifest "
            "(data.manifest)",
        )
    return labels


def _valid(class_names: Sequence[str]) -> str:
    return "valid: a number from 0" + ", or the name of a class" * bool(class_names)


def _labels_if_known(
    table: Table, column: str, num_classes: int, class_names: Sequence[str]
) -> IntArray:
    """A column's labels (N,), UNKNOWN where its cell is empty."""
    cells = table.columns[column]
    if not isinstance(cells, list):
        return _labels(table, column, num_classes, class_names, named=True)
    known = [i for i, cell in enumerate(cells) if not is_missing(cell) or cell in class_names]
    labels = np.full(len(cells), UNKNOWN)
    if known:
        part = Table(
            table.path,
            {column: [cells[i] for i in known]},
            [table.rows[i] for i in known],
        )
        labels[known] = _labels(part, column, num_classes, class_names, named=True)
    return labels


def integers_below(
    limit: int, values: Any, source: str, place: Callable[[int], str], what: str = "label"
) -> IntArray:
    """Integers in 0..limit-1 from an array or a tensor (N,).

    Args:
        place: where in its file a position of the array is.
    """
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError):  # a ragged list, a tensor that numpy cannot hold
        raise UserError(
            f"{source}: got a {type(values).__name__} that is no array of integers"
        ) from None
    if array.size == 0:
        raise UserError(f"{source}: holds no numbers")
    if array.ndim != 1 or array.dtype.kind not in "iuO":
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


def _positions(table: Table, column: str, n: int) -> IntArray:
    """The order (N,) that puts rows with these indices in place."""
    values: Any = table.columns[column]
    if isinstance(values, list):
        values = np.array(_whole_numbers(table, column), object)
    index = integers_below(n, values, str(table.path), table.rows.__getitem__, "index")
    order = np.argsort(index, kind="stable")
    repeated = np.flatnonzero(np.diff(index[order]) == 0)
    if len(repeated):
        first, second = order[repeated[0]], order[repeated[0] + 1]
        raise table.wrong(
            int(second), f"index {index[second]} is already on {table.rows[int(first)]}"
        )
    return order


def _whole_numbers(table: Table, column: str) -> list[int]:
    numbers = []
    for i, cell in enumerate(table.columns[column]):
        number = whole_number(str(cell).strip())
        if number is None:
            raise table.wrong(i, f"{column} is {str(cell)!r}, valid: an integer from 0")
        numbers.append(number)
    return numbers


def write_labels(
    path: str | Path,
    labels: IntArray,
    notes: Mapping[str, Any],
    *,
    clean: IntArray | None = None,
    paths: Sequence[str] | None = None,
) -> None:
    """Write labels (N,) for others to use, and beside them `PATH.json`, which says what they are.

    Each of the two files is written whole or not at all.

    Args:
        path: .csv (columns index, path if given, label, and clean_label if given), .npy or .txt (labels
            only).
        notes: what the description says of them beside count, hash and version; JSON-able.
        clean: (N,) true classes, UNKNOWN where they are not known.
        paths: (N,) the images; left out where one would not be found again, as it is no text in UTF-8, or
            begins or ends with white space.

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
        write_atomically(path, lambda file: write(file, labels, clean, paths))
        write_text(_description(path), text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


_Paths = Sequence[str] | None


def _write_csv(file: BinaryIO, labels: IntArray, clean: IntArray | None, paths: _Paths) -> None:
    columns: dict[str, Sequence[object]] = {"index": range(len(labels))}
    if paths is not None and all(is_unicode(path) and path == path.strip() for path in paths):
        columns["path"] = paths
    columns["label"] = labels.tolist()
    if clean is not None:
        columns["clean_label"] = ["" if label == UNKNOWN else label for label in clean.tolist()]
    text = io.TextIOWrapper(file, "utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *zip(*columns.values(), strict=True)])
    text.detach()


def _write_npy(file: BinaryIO, labels: IntArray, clean: IntArray | None, paths: _Paths) -> None:
    np.save(file, labels, allow_pickle=False)


def _write_text(file: BinaryIO, labels: IntArray, clean: IntArray | None, paths: _Paths) -> None:
    np.savetxt(file, labels, "%d")


LABEL_WRITERS: dict[str, Callable[[BinaryIO, IntArray, IntArray | None, _Paths], None]] = {
    ".csv": _write_csv,
    ".npy": _write_npy,
    ".txt": _write_text,
}


def _description(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def read_description(path: str | Path) -> dict[str, Any] | None:
    """What `write_labels` wrote beside a label file, or None.

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
