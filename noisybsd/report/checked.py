"""What labels.parquet and pred_probs.npz must be for a report: checked once, when they are read.

Dimensions: N samples, K classes, M test images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow
from pyarrow import types
from pydantic import Field

from noisybsd.data.duplicates import SIDE
from noisybsd.errors import brief
from noisybsd.runs.records import Record, mistakes

_CLASSES = ("given", "suggested", "clean")
_PROBABILITIES = (
    *("given_prob", "suggested_prob", "neighbour_agreement", "network_prob", "final_prob"),
)
_NUMBERS = ("entropy", "strength", "area_under_margin")
_NAMES = ("path", "given_name", "suggested_name", "clean_name")
_OPTIONAL = (
    "clean",
    "clean_name",
    "given_right",
    "suggested_right",
)  # where the right label is known
_NULLABLE = (
    *("path", "identical_to", "strength", "left_epoch", "neighbour_agreement", "area_under_margin"),
    *("given_prob", "suggested_prob", "entropy", "network_prob", "final_prob", *_OPTIONAL),
)
_COLUMNS: dict[str, Any] = {
    **dict.fromkeys(
        ("index", "left_epoch", "visits", "rank", "identical_to", *_CLASSES), types.is_integer
    ),
    **dict.fromkeys((*_PROBABILITIES, *_NUMBERS), types.is_floating),
    **dict.fromkeys(_NAMES, lambda kind: types.is_string(kind) or types.is_null(kind)),
    **dict.fromkeys(("given_right", "suggested_right", "in_test", "held_out"), types.is_boolean),
    "neighbours": lambda kind: types.is_list(kind) and types.is_integer(kind.value_type),
}

SLACK = 1e-4  # how far a probability in float32 may be outside of [0,1]


class About(Record):
    """What labels.parquet says of the run that it is about."""

    format: int
    run: str
    dataset: str
    class_names: list[str] = Field(min_length=1)
    data_sha256: str
    epoch: Annotated[int, Field(ge=0)]
    method: str
    test_labels: str
    noisybsd: str
    holds_belief: bool


def table_mistakes(table: pyarrow.Table, about: Any) -> Iterator[str]:
    """What is wrong with labels.parquet, most fundamental first; nothing if all is as it should be."""
    yield from mistakes(About, about)
    yield from _wrong_columns(table)
    samples, classes = len(table), len(about["class_names"])
    if not samples:
        yield "it has no rows"
    limits = {
        **dict.fromkeys(_PROBABILITIES, (-SLACK, 1 + SLACK)),
        **dict.fromkeys(_NUMBERS, (-np.inf, np.inf)),
        **dict.fromkeys(("given", "suggested"), (0, classes - 1)),
        "clean": (-1, classes - 1),  # -1: nobody knows
        "visits": (0, np.inf),
        "left_epoch": (1, np.inf),
    }
    for name, (low, high) in limits.items():
        if name in table.column_names:
            yield from _outside(name, table[name].drop_null().to_numpy(), low, high)
    near = table["neighbours"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    yield from _outside("neighbours", near, 0, samples - 1)
    for name, first in (("index", 0), ("rank", 1)):
        values = table[name].to_numpy()
        if not np.array_equal(np.sort(values) if first else values, np.arange(samples) + first):
            yield f"column {name} does not number the rows from {first}"


def _wrong_columns(table: pyarrow.Table) -> Iterator[str]:
    for name, is_right in _COLUMNS.items():
        if name not in table.column_names:
            if name not in _OPTIONAL:
                yield f"it has no column {name}"
            continue
        column = table[name]
        if not is_right(column.type):
            yield f"column {name} holds {column.type}"
        elif name not in _NULLABLE and column.null_count:
            yield f"column {name} is empty in {column.null_count} rows"


def _outside(name: str, values: npt.NDArray[Any], low: float, high: float) -> Iterator[str]:
    wrong = values[~(np.isfinite(values) & (values >= low) & (values <= high))]
    if len(wrong):
        yield f"column {name} holds {brief(wrong[0].item())}, valid: {low:g} to {high:g}"


def array_mistakes(
    arrays: Mapping[str, npt.NDArray[Any]], table: pyarrow.Table, about: Any
) -> Iterator[str]:
    """What is wrong with pred_probs.npz, beside a table that is right; nothing if all is as it should be."""
    samples, classes = len(table), len(about["class_names"])
    arrays = {
        name: np.asarray(a) for name, a in arrays.items()
    }  # numpy reads other entries as bytes
    tests = len(arrays["test"]) if "test" in arrays and arrays["test"].ndim else 0
    shapes = {
        **dict.fromkeys(("belief", "network", "neighbours"), ("f", (samples, classes))),
        "test": ("f", (tests, classes)),
        "thumbnails": ("f", (samples, SIDE**2)),
        "labels": ("i", (samples,)),
        "test_labels": ("i", (tests,)),
    }
    for name, (kind, shape) in shapes.items():
        if name not in arrays:
            yield f"it has no array {name}"
            continue
        values = arrays[name]
        if values.dtype.kind != kind or values.shape != shape:
            told = {"f": "numbers", "i": "whole numbers"}[kind]
            yield f"{name} holds {values.dtype} of shape {values.shape}, expected {told} of shape {shape}"
        elif kind == "f":
            unread = name in ("network", "thumbnails")  # of an image that could not be read: NaN
            known = values[~np.isnan(values)] if unread else values
            most, what = (255, "pixels") if name == "thumbnails" else (1, "probabilities")
            if not ((known >= -SLACK) & (known <= most + SLACK)).all():
                yield f"{name} holds numbers that are no {what}"
    if (votes := arrays.get("votes")) is not None and (
        votes.dtype.kind != "f"
        or votes.shape != (samples, classes)
        or not (np.isfinite(votes) & (votes >= 0)).all()
    ):
        told = f"votes holds {votes.dtype} of shape {votes.shape}"
        yield f"{told}, expected numbers from 0 of shape {samples, classes}"
    if not tests:
        yield "test holds no images"
    labels = arrays["test_labels"]
    if not ((labels >= 0) & (labels < classes)).all():
        yield f"test_labels holds labels outside of 0 to {classes - 1}"
    if not np.array_equal(arrays["labels"], table["given"].to_numpy()):
        yield "labels are not those of labels.parquet"
