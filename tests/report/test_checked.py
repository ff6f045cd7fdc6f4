"""A label table or arrays that someone edited are refused with file, column and value."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from helpers.reported import findings

from noisybsd.errors import UserError
from noisybsd.report.findings import Findings

N, K = 4, 3


@pytest.fixture
def found() -> Findings:
    belief = np.full((N, K), 1 / K)
    return findings(belief, [0, 1, 2, 0], clean=[0, 1, -1, 0], neighbours=[[1], [0, 2], [], [3]])


def refusal(found: Findings, directory: Path) -> str:
    found.write(directory)
    with pytest.raises(UserError) as caught:
        Findings.read(directory)
    text = str(caught.value)
    assert text.endswith("; delete it, and the report makes it again")
    return text.removesuffix("; delete it, and the report makes it again").removeprefix(
        f"{directory}/"
    )


def with_column(found: Findings, name: str, values: Any) -> Findings:
    table = found.table
    place = table.schema.get_field_index(name)
    return Findings(table.set_column(place, name, pyarrow.array(values)), found.arrays, found.about)


def test_what_is_whole_is_read(found: Findings, tmp_path: Path) -> None:
    found.write(tmp_path)
    again = Findings.read(tmp_path)
    assert again is not None and again.table.equals(found.table) and again.about == found.about


OPTIONAL = (
    "clean",
    "clean_name",
    "given_right",
    "suggested_right",
    "neighbours",
    "rank",
)


def test_a_column_that_is_missing_is_named(found: Findings, tmp_path: Path) -> None:
    for name in found.table.column_names:
        if name not in OPTIONAL:  # without the last ones it cannot be written
            without = Findings(found.table.drop_columns([name]), found.arrays, found.about)
            assert refusal(without, tmp_path) == f"labels.parquet: damaged: it has no column {name}"


def test_a_column_of_another_type_is_named(found: Findings, tmp_path: Path) -> None:
    for name in found.table.column_names:
        if name not in ("neighbours", "rank"):
            wrong = with_column(found, name, [[0]] * N)
            wrong.table.replace_schema_metadata(None)
            path = tmp_path / name
            path.mkdir()
            metadata = {"noisybsd": json.dumps(found.about)}
            found.write(path)
            pyarrow.parquet.write_table(
                wrong.table.replace_schema_metadata(metadata), path / "labels.parquet"
            )
            with pytest.raises(UserError, match=f"damaged: column {name} holds list"):
                Findings.read(path)


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("given", [0, 1, 99, 0], "column given holds 99, valid: 0 to 2"),
        ("given", [0, 1, None, 0], "column given is empty in 1 rows"),
        ("suggested", [0, 1, -1, 0], "column suggested holds -1, valid: 0 to 2"),
        ("clean", [0, 1, 3, 0], "column clean holds 3, valid: -1 to 2"),
        ("index", [0, 1, 1, 3], "column index does not number the rows from 0"),
        ("rank", [1, 2, 2, 3], "column rank does not number the rows from 1"),
        ("given_prob", [0.5, 0.5, 1.5, 0.5], "column given_prob holds 1.5"),
        ("given_prob", [0.5, 0.5, float("nan"), 0.5], "column given_prob holds nan"),
        ("area_under_margin", [0.0, float("inf"), 0.0, 0.0], "column area_under_margin holds inf"),
        ("neighbours", [[1], [0, 9], [], [3]], "column neighbours holds 9, valid: 0 to 3"),
        ("visits", [1, -1, 1, 1], "column visits holds -1"),
    ],
)
def test_values_that_cannot_be_are_named(
    name: str, values: Any, says: str, found: Findings, tmp_path: Path
) -> None:
    text = refusal(with_column(found, name, values), tmp_path)
    assert text.startswith(f"labels.parquet: damaged: {says}")


@pytest.mark.parametrize(
    ("key", "value"), [("class_names", []), ("class_names", "abc"), ("epoch", "3"), ("run", None)]
)
def test_what_the_table_says_of_its_run_is_checked(
    key: str, value: Any, found: Findings, tmp_path: Path
) -> None:
    wrong = Findings(found.table, found.arrays, {**found.about, key: value})
    assert refusal(wrong, tmp_path).startswith(f"labels.parquet: damaged: {key} is {value!r}")


def test_a_table_of_another_program(found: Findings, tmp_path: Path) -> None:
    found.write(tmp_path)
    pyarrow.parquet.write_table(
        found.table.replace_schema_metadata(None), tmp_path / "labels.parquet"
    )
    with pytest.raises(UserError, match=r"labels\.parquet: damaged: it is None"):
        Findings.read(tmp_path)


ARRAYS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "thumbnails of fewer pixels": ("thumbnails", lambda a: a[:, :5], "thumbnails holds"),
    "thumbnails beyond 255": (
        "thumbnails",
        lambda a: np.full_like(a, 300),
        "thumbnails holds numbers that",
    ),
    "another shape": ("belief", lambda a: a[:, :2], r"belief holds .* of shape \(4, 2\), expected"),
    "fewer rows": ("network", lambda a: a[:3], "network holds"),
    "text": ("neighbours", lambda a: a.astype(str), "neighbours holds <U"),
    "whole numbers": ("test", lambda a: a.astype(int), "test holds int64"),
    "no probabilities": ("belief", lambda a: a + 1, "belief holds numbers that are no prob"),
    "nan": ("test", lambda a: a * np.nan, "test holds numbers that are no probabilities"),
    "no test images": ("test", lambda a: a[:0], "test_labels holds|test holds no images"),
    "another label": ("test_labels", lambda a: a + 9, "test_labels holds labels outside of 0 to 2"),
    "votes that are none": ("belief", lambda a: a, "votes holds float32 of shape .*from 0"),
    "other labels": ("labels", lambda a: a[::-1] * 0, "labels are not those of labels.parquet"),
}


@pytest.mark.parametrize("change", ARRAYS)
def test_arrays_that_cannot_be_are_named(change: str, found: Findings, tmp_path: Path) -> None:
    name, make, says = ARRAYS[change]
    arrays = {**found.arrays, name: make(found.arrays[name])}
    if change == "votes that are none":
        arrays["votes"] = -np.ones((N, K), np.float32)
    with pytest.raises(UserError, match=rf"pred_probs\.npz: damaged: ({says})"):
        Findings(found.table, arrays, found.about).write(tmp_path)
        Findings.read(tmp_path)


def test_an_entry_that_is_no_array(found: Findings, tmp_path: Path) -> None:
    found.write(tmp_path)
    with zipfile.ZipFile(tmp_path / "pred_probs.npz", "w") as arrays:
        arrays.writestr("belief.npy", b"no array")
    with pytest.raises(UserError, match=r"pred_probs\.npz: damaged: belief holds"):
        Findings.read(tmp_path)


def test_unreadable_images_are_nan_in_the_networks_predictions_alone(
    found: Findings, tmp_path: Path
) -> None:
    network = found.arrays["network"].copy()
    network[1] = np.nan
    Findings(found.table, {**found.arrays, "network": network}, found.about).write(tmp_path)
    assert Findings.read(tmp_path) is not None
