"""A dataset as `python -m noisybsd.data pack` wrote it: one array and one table for each split.

Dimensions: N images, C channels, S side of a stored image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from pydantic import BaseModel, Field, ValidationError

from noisybsd.data.cards import Card
from noisybsd.data.fingerprint import images_sha256
from noisybsd.data.names import UNKNOWN
from noisybsd.data.splits import Labels, Read, Split, check_labels
from noisybsd.data.votes import Votes, of_matrix
from noisybsd.errors import UserError
from noisybsd.files import kind_of
from noisybsd.settings import DataConfig

PACK = "pack.json"  # marks a folder that `python -m noisybsd.data pack` wrote


class PackedSplit(BaseModel):
    """What pack.json says of a split."""

    count: int = Field(ge=1)
    images_sha256: str


class Packed(BaseModel):
    """What pack.json says."""

    card: str
    classes: tuple[str, ...] = Field(min_length=2)
    splits: tuple[Literal["train", "test"], ...]
    size: int = Field(ge=1)
    test_labels: str
    labels: str = Field(description="data.labels as it was when packed")
    held_out: bool = Field(description="whether `test` is of the training images")
    problems: list[str] = []
    train: PackedSplit
    test: PackedSplit | None = None


def is_packed(data: DataConfig) -> bool:
    """Whether data.root holds a pack.

    Raises:
        UserError: data.root is no folder, or cannot be looked into.
    """
    root, what = Path(data.root), f"data.root={data.root}"
    if kind_of(root, what) in ("file", "other"):
        raise UserError(f"{what}: is no folder")
    return kind_of(root / PACK, what) == "file"


def read_packed(card: Card, data: DataConfig) -> Read:
    """Decoded images in one file per split, mapped into memory: see data/pack.py."""
    root = Path(data.root)
    try:
        about = Packed.model_validate_json((root / PACK).read_bytes())
        if about.card != card.name:
            raise UserError(f"{root / PACK}: holds {about.card}, not data.name={card.name}")
        if data.size not in (None, about.size):
            raise UserError(f"data.size={data.size}: {root} was packed with size {about.size}")
        train, train_sha256 = _packed_split(root, "train", about.train, about, data)
        test, test_sha256 = None, ""
        if about.test is not None:
            test, test_sha256 = _packed_split(root, "test", about.test, about, data)
        return Read(
            train,
            None if about.held_out else test,
            about.classes,
            about.test_labels,
            about.problems,
            (train_sha256, test_sha256),
            about.size,
            notices=[
                f"the training labels are those of data.labels={about.labels}, packed with the images"
            ]
            if about.labels != "default"
            else [],
            held_out=test if about.held_out else None,
        )
    except (OSError, ValueError, KeyError, EOFError, pyarrow.ArrowException) as error:
        if isinstance(error, UserError):
            raise
        reason = _first_mistake(error) if isinstance(error, ValidationError) else error
        raise UserError(f"{root / PACK}: damaged: {reason}; pack the images again") from None


def _first_mistake(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _packed_split(
    root: Path, name: str, about: PackedSplit, whole: Packed, data: DataConfig
) -> tuple[Split, str]:
    """A split, and the hash of its images."""
    path = root / f"{name}_images.npy"
    if kind_of(path, str(path)) == "other":  # a FIFO would be waited for
        raise ValueError(f"{path.name} is no file")
    # "c": pages are read when touched; torch wants memory that may be written, nothing reaches the file
    array = np.load(path, mmap_mode="c", allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 4:
        raise ValueError(f"{path.name} holds no images")
    table = pyarrow.parquet.read_table(root / f"{name}.parquet")
    if not len(array) == table.num_rows == about.count:
        raise ValueError(f"{name} has {len(array)} images and {table.num_rows} labels")
    images = torch.from_numpy(array)
    found, expected = images_sha256(images), about.images_sha256
    if found != expected and data.verify:
        raise UserError(
            f"{path}: holds other images than were packed (sha256 {found[:12]}…, expected "
            f"{expected[:12]}…); pack them again, or data.verify=false trains on these"
        )
    labels = _integers(table, "label", len(whole.classes), root / f"{name}.parquet")
    clean = None
    if "clean_label" in table.column_names:
        clean = _integers(table, "clean_label", len(whole.classes), root / f"{name}.parquet")
    votes = _votes(table, len(whole.classes), root / f"{name}.parquet")
    paths = table["path"].to_pylist()
    if not all(isinstance(each, str) for each in paths):
        raise ValueError(
            f"{name}.parquet: path holds {table.schema.field('path').type}, expected text"
        )
    split = Split(images, labels, clean, paths, votes=votes)
    return split, found


def _votes(table: pyarrow.Table, num_classes: int, path: Path) -> Votes | None:
    if "votes" not in table.column_names:
        return None
    if not pyarrow.types.is_fixed_size_list(table.schema.field("votes").type):
        raise ValueError(f"{path.name}: votes holds {table.schema.field('votes').type}")
    values = table["votes"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)

    def wrong(i: int, reason: str) -> UserError:
        return UserError(f"{path}: row {i + 1}: votes: {reason}")

    return of_matrix(values, num_classes, path, wrong)[1]


def _integers(table: pyarrow.Table, column: str, num_classes: int, path: Path) -> Labels:
    """Labels (N,); UNKNOWN where the table has none, which clean labels alone may."""
    if not pyarrow.types.is_integer(table.schema.field(column).type):
        raise ValueError(f"{path.name}: {column} holds {table.schema.field(column).type}")
    values: Any = table[column].fill_null(UNKNOWN).to_numpy()
    labels = values.astype(np.int64)  # a copy: Arrow's own memory may not be written, torch warns
    known = labels[labels != UNKNOWN] if column == "clean_label" else labels
    check_labels(known, num_classes, f"{path}: {column}")
    return labels
