"""A dataset as `python -m noisybsd.data pack` wrote it: one array and one table for each split.

Dimensions: N images, C channels, S side of a stored image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch

from noisybsd.data.cards import Card
from noisybsd.data.splits import Read, Split
from noisybsd.errors import UserError
from noisybsd.settings import DataConfig

PACK = "pack.json"  # marks a folder that `python -m noisybsd.data pack` wrote


def read_packed(card: Card, data: DataConfig) -> Read:
    """Decoded images in one file per split, mapped into memory: see data/pack.py."""
    root = Path(data.root)
    try:
        about = json.loads((root / PACK).read_text("utf-8"))
        if about["card"] != card.name:
            raise UserError(f"{root / PACK}: holds {about['card']}, not data.name={card.name}")
        if data.size not in (None, about["size"]):
            raise UserError(f"data.size={data.size}: {root} was packed with size {about['size']}")
        splits = {name: _packed_split(root, name, about[name]) for name in about["splits"]}
        return Read(
            splits["train"],
            splits.get("test"),
            tuple(about["classes"]),
            about["test_labels"],
            about["problems"],
            about["train"]["images_sha256"],
            about["size"],
        )
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{root / PACK}: damaged: {error}; pack the images again") from None


def _packed_split(root: Path, name: str, about: Mapping[str, Any]) -> Split:
    # "c": pages are read when touched; torch wants memory that may be written, nothing reaches the file
    images = np.load(root / f"{name}_images.npy", mmap_mode="c", allow_pickle=False)
    table = pyarrow.parquet.read_table(root / f"{name}.parquet")
    if not len(images) == table.num_rows == about["count"]:
        raise ValueError(f"{name} has {len(images)} images and {table.num_rows} labels")
    # copies, because Arrow's own memory may not be written, at which torch warns
    labels = {key: table[key].to_numpy().copy() for key in table.column_names if key != "path"}
    return Split(
        torch.from_numpy(images),
        labels["label"],
        labels.get("clean_label"),
        table["path"].to_pylist(),
    )
