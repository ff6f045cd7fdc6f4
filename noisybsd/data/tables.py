"""Tables of images: CSV with any usual separator, or Parquet, and which column holds what.

Dimensions: N rows.
"""

from __future__ import annotations

import codecs
import csv
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet

from noisybsd.errors import UserError, did_you_mean, first_line

log = logging.getLogger("noisybsd")

SEPARATORS = ",;\t|"
TEXT = (".csv", ".tsv")  # suffixes of tables in text
SUFFIXES = (*TEXT, ".parquet")

# What people call columns, without case, white space, `_` and `-`.
LABELS = {
    *("label", "labels", "labelname", "classlabel", "givenlabel", "noisylabel", "class", "classes"),
    *("classname", "category", "categories", "categoryname", "target", "targets", "y"),
}
CLEAN = {"cleanlabel", "cleanlabels"}
SPLITS = {"split", "subset", "partition"}
# Those of names of images, the likeliest first; the weak ones may mean something else too.
NAMES = (
    *("path", "filepath", "imagepath", "imgpath", "file", "filename", "fname", "imagefile"),
    *("imagefilename", "image", "images", "img", "imagename", "imgname", "imageid", "imgid"),
)
WEAK_NAMES = ("name", "id", "key", "uid", "uuid", "sample", "paths", "files", "filenames")
INDEX = {"index", "indexlevel0"}  # the second is what pandas calls it in Parquet
KNOWN = LABELS | CLEAN | SPLITS | INDEX | {*NAMES, *WEAK_NAMES}
# Those of who labelled: then an image may have a row for each of them.
ANNOTATORS = re.compile("(annotator|worker|rater|labell?er|coder|grader|user)(id|name)?")


@dataclass(frozen=True)
class Table:
    """A table as it is in its file.

    Args:
        columns: name: (N,) cells; strings where the file is text.
        rows: (N,) where each row is in the file, e.g. `line 7`.
    """

    path: Path
    columns: Mapping[str, Any]
    rows: Sequence[str]

    def wrong(self, i: int, reason: str) -> UserError:
        """The error that row i is wrong."""
        return UserError(f"{self.path}: {self.rows[i]}: {reason}")

    def called(self, keys: set[str]) -> list[str]:
        """The columns that people call by one of `keys`."""
        return [name for name in self.columns if plain_key(name) in keys]

    def label_column(self, otherwise: str = "") -> str:
        """The column of labels: `label`, or the only one of another usual name.

        Args:
            otherwise: a sentence for the end of the error if there is no such column: what else to do.

        Raises:
            UserError: there is none, or there are several.
        """
        found = ["label"] if "label" in self.columns else self.called(LABELS)
        if len(found) > 1:
            raise UserError(
                f"{self.path}: {' and '.join(found)} may hold labels; call the one to use label"
            )
        if not found:
            has = ", ".join(map(str, self.columns)) or "none"
            raise UserError(f"{self.path}: no column label: has {has}{otherwise}")
        return found[0]

    def by_annotators(self, most: int = 8) -> str:
        """The rest of an error where no column is called label: how to say that others hold labels."""
        others = [name for name in self.columns if plain_key(name) not in KNOWN]
        names = ",".join([*others[:most], *["…"] * (len(others) > most)])
        several = "; where several people labelled the images, each in a column: data.annotators="
        return f"{several}[{names}]" if len(others) > 1 else ""

    def label_columns(
        self,
        annotators: Sequence[str] = (),
        class_names: Sequence[str] = (),
        setting: str = "columns",
    ) -> list[str]:
        """The columns of labels: the one of `label_column`; one for each annotator, `label_1`, `label_2`
        and so on; or one for each class, of counts or probabilities. None, if none is called so.

        Args:
            annotators: the columns to use, whatever else there is.
            setting: what names these, for errors.

        Raises:
            UserError: an annotator without a column, or several columns of one usual name.
        """
        for name in annotators:
            if name not in self.columns:
                raise UserError(f"{self.path}: {setting}: {did_you_mean(name, self.columns)}")
        if annotators:
            refuse_same(annotators, f"{self.path}: {setting}")
            return list(annotators)
        numbers = {name: re.fullmatch(r"labels?([0-9]+)", plain_key(name)) for name in self.columns}
        numbered = sorted((int(found[1]), name) for name, found in numbers.items() if found)
        if "label" in self.columns or self.called(LABELS):
            if len(numbered) > 1:
                log.warning(
                    "%s: its column label holds the labels; to use those of several annotators: "
                    "data.annotators=[%s]",
                    self.path,
                    ",".join(name for _, name in numbered),
                )
            return [self.label_column()]
        if len(numbered) > 1:
            return [name for _, name in numbered]
        if len(class_names) > 1 and set(class_names) <= set(self.columns):
            return list(class_names)
        return []

    def matrix(self, columns: Sequence[str]) -> npt.NDArray[Any]:
        """Columns of numbers side by side (N,K), or the array (N,K) that is a single column.

        Raises:
            UserError: names the row of a cell that is no number.
        """
        if len(columns) == 1:
            return np.asarray(self.columns[columns[0]])
        values = np.empty((len(self.columns[columns[0]]), len(columns)))
        for k, column in enumerate(columns):
            for i, cell in enumerate(self.columns[column]):
                try:
                    values[i, k] = float(cell)
                except (TypeError, ValueError):
                    raise self.wrong(
                        i, f"{column} is {str(cell)!r}, valid: a number of votes, or a probability"
                    ) from None
        return values

    def only(self, keys: set[str], what: str) -> str | None:
        """The column called by one of `keys`; None: there is none.

        Raises:
            UserError: there are several.
        """
        found = self.called(keys)
        if len(found) > 1:
            raise UserError(f"{self.path}: {' and '.join(found)} may both be {what}")
        return found[0] if found else None

    def name_columns(self) -> Iterator[str]:
        """The columns that may name images, the likeliest first."""
        for key in (*NAMES, *WEAK_NAMES):
            yield from self.called({key})


def plain_key(name: object) -> str:
    """A column's name without case, white space, `_`, `-` and `.`."""
    return re.sub(r"[\s_.-]", "", str(name)).casefold()


def names_of(table: Table, column: str) -> list[str]:
    """The names of images in a column, (N,).

    Raises:
        UserError: names the row of a cell that is empty or no text.
    """
    names = []
    for i, cell in enumerate(table.columns[column]):
        if isinstance(cell, bytes):
            cell = cell.decode("utf-8", "surrogateescape")
        if isinstance(cell, bool | float | type(None)) or not isinstance(cell, str | int):
            raise table.wrong(i, f"{column} is {str(cell)[:60]!r}, valid: the name of an image")
        names.append(str(cell).strip())
        if not names[-1]:
            raise table.wrong(i, f"{column} is empty, valid: the name of an image")
    return names


def read_table(path: Path, names_image: Callable[[str], bool]) -> Table:
    """Read a table from CSV (also apart by `;`, tab or `|`), or from Parquet.

    A first line that holds the name of an image, or numbers alone, is no header: then the columns are
    called path and label, as their cells say, or path alone, or index and label.

    Args:
        names_image: whether a cell is the name of an image.

    Raises:
        UserError: names the file and the line: not readable, not rectangular, or without rows.
    """
    try:
        table = _parquet(path) if path.suffix.lower() == ".parquet" else _text(path, names_image)
    except (OSError, csv.Error, UnicodeError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: not readable as a table: {first_line(error)}") from None
    if not table.rows:
        has = ", ".join(map(str, table.columns)) or "nothing"
        raise UserError(f"{path}: has no rows, only {has}")
    return by_image(table)


def by_image(table: Table) -> Table:
    """A row for each image, of a table with a row for each label and a column that says whose it is.

    The labels of an image become its cells in the columns `label_1`, `label_2` and so on, in the order of
    their rows. A table that names each image once stays as it is.

    Raises:
        UserError: an annotator with two labels for an image, or an image with two splits or clean labels.
    """
    annotators = [name for name in table.columns if ANNOTATORS.fullmatch(plain_key(name))]
    column = next(table.name_columns(), None)
    if len(annotators) != 1 or column is None:
        return table
    rows_of: dict[str, list[int]] = {}
    for i, name in enumerate(names_of(table, column)):
        rows_of.setdefault(name, []).append(i)
    if len(rows_of) == len(table.rows):
        return table
    label, groups = table.label_column(), list(rows_of.values())
    _refuse_second_labels(table, annotators[0], rows_of)
    columns = {}
    for name, cells in table.columns.items():
        if plain_key(name) in CLEAN | SPLITS:
            _refuse_different(table, name, groups)
        if name not in (annotators[0], label):
            columns[name] = [cells[rows[0]] for rows in groups]
    labels = table.columns[label]
    for place in range(max(map(len, groups))):
        columns[f"label_{place + 1}"] = [
            labels[rows[place]] if place < len(rows) else "" for rows in groups
        ]
    return Table(table.path, columns, [_places(table, rows) for rows in groups])


def _refuse_second_labels(table: Table, annotator: str, rows_of: dict[str, list[int]]) -> None:
    """Refuse an image that an annotator labels twice."""
    for image, rows in rows_of.items():
        first: dict[str, int] = {}
        for i in rows:
            who = str(table.columns[annotator][i])
            if first.setdefault(who, i) != i:
                raise table.wrong(
                    i,
                    f"{annotator} {who!r} labels {image!r} again, as on {table.rows[first[who]]}; leave "
                    "one label of each annotator for an image",
                )


def _refuse_different(table: Table, column: str, groups: list[list[int]]) -> None:
    """Refuse an image whose rows differ in a column that is of the image."""
    cells = table.columns[column]
    for rows in groups:
        for i in rows:
            if cells[i] != cells[rows[0]]:
                raise table.wrong(
                    i,
                    f"{column} is {str(cells[i])!r}, but {str(cells[rows[0]])!r} on "
                    f"{table.rows[rows[0]]}; valid: the same in all rows of an image",
                )


def _places(table: Table, rows: list[int], most: int = 8) -> str:
    """Where several rows are in the file, e.g. `lines 2, 5, 7`."""
    kind, first = table.rows[rows[0]].split(" ")
    others = [table.rows[i].split(" ")[1] for i in rows[1:most]]
    return f"{kind}{'s' * bool(others)} {', '.join([first, *others])}{', …' * (len(rows) > most)}"


def _parquet(path: Path) -> Table:
    table = pyarrow.parquet.read_table(path)
    refuse_same(table.column_names, str(path))
    columns = {name: table[name].to_pylist() for name in table.column_names}
    return Table(path, columns, [f"row {i + 1}" for i in range(table.num_rows)])


def _text(path: Path, names_image: Callable[[str], bool]) -> Table:
    text = decoded(path.read_bytes(), path)
    reader = csv.reader(
        lines_of(text), delimiter=separator_of(text), strict=True, skipinitialspace=True
    )
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except csv.Error as error:
        raise UserError(
            f"{path}: line {reader.line_num}: not readable as a table: {error}"
        ) from None
    # spreadsheets end in rows of separators alone, where rows were cleared; and have such columns
    while rows and len(rows[-1][1]) > 1 and not any(rows[-1][1]):
        rows.pop()
    if not rows:
        raise UserError(f"{path}: is empty")
    header = rows[0][1]
    without = _columns_without_header(header, names_image, path)
    if without is None:
        rows = rows[1:]
    else:
        header = without
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"{path}: line {line}: got {len(row)} columns, expected {len(header)} "
                f"({', '.join(header)})"
            )
    kept = [i for i, name in enumerate(header) if name or any(row[i] for _, row in rows)]
    if len(nameless := [str(i + 1) for i in kept if not header[i]]) > 1:
        raise UserError(
            f"{path}: line 1: columns {' and '.join(nameless)} have no name; give them names, or delete them"
        )
    names = [header[i] or "index" for i in kept]  # pandas' index has no name
    refuse_same(names, f"{path}: line 1")
    columns = {name: [row[i] for _, row in rows] for i, name in zip(kept, names, strict=True)}
    return Table(path, columns, [f"line {line}" for line, _ in rows])


def _columns_without_header(
    first: list[str], names_image: Callable[[str], bool], path: Path
) -> list[str] | None:
    """What the columns of a table without a header are called; None: its first line is one."""
    named = [
        i for i, cell in enumerate(first) if plain_key(cell) not in KNOWN and names_image(cell)
    ]
    numbers = all(re.fullmatch(r"[+-]?[0-9]+(\.0*)?", cell) for cell in first)
    if not named and not numbers:
        return None
    if len(first) == len(named) == 1:
        return ["path"]
    if len(first) == 2 and len(named) == 1:
        return ["path", "label"] if named == [0] else ["label", "path"]
    if numbers and len(first) <= 2:
        return ["index", "label"][-len(first) :]
    raise UserError(
        f"{path}: has {len(first)} columns and no header; give it one, with a column label"
    )


def decoded(content: bytes, source: object) -> str:
    """Text in UTF-8, or in UTF-16 as spreadsheets write it; names of files may be no text.

    Raises:
        UserError: it is in another encoding.
    """
    try:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return content.decode("utf-16")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{source}: line {line}: not readable as text: save it as UTF-8") from None


def lines_of(text: str) -> list[str]:
    """Lines as text files have them, and not at the other characters that str.splitlines splits at."""
    return re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", text)


def separator_of(text: str) -> str:
    """The separator by which all of the first lines have equally many cells, more than one."""
    lines = [line for line in lines_of(text[: 1 << 16])[:20] if line.strip()]
    found = {}
    for separator in SEPARATORS:
        try:
            rows = list(csv.reader(lines, delimiter=separator, skipinitialspace=True))
        except csv.Error:
            continue
        if len({len(row) for row in rows}) == 1 and len(rows[0]) > 1:
            found[separator] = rows[0]
    for separator, header in found.items():
        if any(plain_key(cell) in KNOWN for cell in header):
            return separator
    if found:
        return next(iter(found))
    first = lines[0] if lines else ""
    return max(SEPARATORS, key=first.count)


def refuse_same(names: Sequence[str], source: str) -> None:
    """Refuse two columns of one name."""
    for name in names:
        if list(names).count(name) > 1:
            raise UserError(f"{source}: {name} is listed twice: two columns have one name")
