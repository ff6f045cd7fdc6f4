"""What a network says of images: in memory, and written to a table as it comes.

Dimensions: N images, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from noisybsd.data.images import ImageError
from noisybsd.data.names import as_text
from noisybsd.data.progress import with_progress
from noisybsd.errors import UserError, brief
from noisybsd.files import write_atomically
from noisybsd.methods.beliefs import is_number

Floats = npt.NDArray[np.float32]

WRITTEN_AT_ONCE = 10_000  # rows


@dataclass(frozen=True)
class Predictions:
    """The probabilities of the classes for images.

    Args:
        probabilities: (N,K) float32, rows sum to one; NaN where an image cannot be used.
        class_names: K.
        errors: what is wrong with such an image, by its row.

    Example:
        >>> found = Predictions(np.array([[0.6, 0.4]], np.float32), ("cat", "dog"))
        >>> found.classes, found.unsure().tolist()
        (['cat'], [True])
    """

    probabilities: Floats
    class_names: tuple[str, ...]
    errors: dict[int, ImageError] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) the number of the most probable class."""
        return self.probabilities.argmax(axis=1)

    @property
    def classes(self) -> list[str]:
        """(N,) its name."""
        return [self.class_names[label] for label in self.labels]

    @property
    def confidence(self) -> Floats:
        """(N,) its probability."""
        return self.probabilities.max(axis=1)

    def unsure(self, threshold: float | None = None) -> npt.NDArray[np.bool_]:
        """(N,) whether the confidence is below `threshold`.

        Args:
            threshold: default: (1 + 1/K) / 2, halfway between chance and certainty.
        """
        if threshold is not None and not (is_number(threshold) and 0 <= threshold <= 1):
            raise UserError(f"threshold: got {brief(threshold)}; valid: a number from 0 to 1")
        chance = 1 / len(self.class_names)
        return self.confidence < ((1 + chance) / 2 if threshold is None else threshold)

    def columns(
        self, threshold: float | None = None, probabilities: bool = False
    ) -> dict[str, Any]:
        """Columns of a table, as of `pandas.DataFrame(…)`: class, confidence and unsure.

        Args:
            probabilities: add a column p_NAME for each class.
        """
        columns: dict[str, Any] = {
            "class": self.classes,
            "confidence": self.confidence,
            "unsure": self.unsure(threshold),
        }
        if probabilities:
            names = map("p_{}".format, self.class_names)
            columns |= dict(zip(names, self.probabilities.T, strict=True))
        return columns


def write_predictions(
    parts: Iterable[Predictions],
    paths: Iterable[str],
    total: int,
    out: Path,
    *,
    threshold: float | None = None,
    probabilities: bool = False,
) -> tuple[int, list[ImageError]]:
    """Write a row for each image to a .csv or .parquet file, whole or not at all, with progress shown.

    The columns are path, those of `Predictions.columns`, and error: why an image cannot be used, whose
    other cells are empty then.

    Args:
        parts: the predictions, of `total` images.
        paths: names of the images.

    Returns:
        how many predictions are unsure; and what is wrong with the images that cannot be used.

    Raises:
        UserError: not one image can be used; or the file cannot be written.
    """
    names, unsure, errors = iter(paths), 0, list[ImageError]()

    def tables() -> Iterator[pyarrow.Table]:
        nonlocal unsure
        for part in with_progress(parts, total, "predicting"):
            table = _table(part, names, threshold, probabilities)
            unsure += pyarrow.compute.sum(table["unsure"]).as_py() or 0
            errors.extend(part.errors.values())
            yield table
        if len(errors) == total:
            raise UserError(f"not one of {total:,} images can be used; {errors[0]}")

    write_atomically(out, lambda file: _write(tables(), file, out.suffix.lower() == ".parquet"))
    return unsure, errors


def _table(
    part: Predictions, names: Iterator[str], threshold: float | None, probabilities: bool
) -> pyarrow.Table:
    """The rows of one part; takes as many `names` as it has."""
    broken = np.isin(np.arange(len(part)), list(part.errors))
    reasons = [part.errors[i].reason if i in part.errors else None for i in range(len(part))]
    found = part.columns(threshold, probabilities)
    return pyarrow.table(
        {
            "path": [as_text(next(names)) for _ in range(len(part))],
            **{key: pyarrow.array(values, mask=broken) for key, values in found.items()},
            "error": pyarrow.array(reasons, pyarrow.string()),
        }
    )


def _write(tables: Iterable[pyarrow.Table], file: BinaryIO, parquet: bool) -> None:
    """Write tables of the same columns one after the other, thousands of rows at a time."""
    kind = pyarrow.parquet.ParquetWriter if parquet else pyarrow.csv.CSVWriter
    writer, waiting = None, list[pyarrow.Table]()
    for table in itertools.chain(tables, [None]):
        if waiting and (table is None or sum(map(len, waiting)) >= WRITTEN_AT_ONCE):
            writer = writer or kind(file, waiting[0].schema)
            writer.write_table(pyarrow.concat_tables(waiting))
            waiting.clear()
        if table is not None:
            waiting.append(table)
    if writer is not None:
        writer.close()
