"""Every image judged by the run that held it out, where sibling runs held out the other folds.

Dimensions: N samples of the label table, M test images of a run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from noisybsd.config import Config, read_record
from noisybsd.data.splits import Split
from noisybsd.errors import UserError, shown
from noisybsd.report.findings import Findings, label_table, pooled
from noisybsd.runs.directory import differences


def siblings(directory: Path, config: Config) -> dict[int, Path]:
    """The runs beside `directory` that differ from its run, of `config`, in data.fold alone: by fold."""
    found: dict[int, Path] = {}
    for record in sorted(directory.absolute().parent.glob("*/config.yaml")):
        try:
            settings = read_record(record)
        except UserError:  # of another run, or damaged
            continue
        other = {line.split(":", 1)[0] for line in differences(settings, config)}
        if other == {"data.fold"}:
            found.setdefault(settings["data"]["fold"], record.parent)
    return found


def out_of_fold(own: Findings, directory: Path, config: Config) -> tuple[Findings, str]:
    """The run's findings, with those of the sibling runs for the images that they held out.

    Returns:
        the findings, in the run's order; and a sentence that says by how many networks the images were
        judged, and which folds are missing.

    Raises:
        UserError: a sibling has other images or labels.
    """
    folds = config.data.folds or 1
    held_out, test = own.held_out.copy(), [own]
    arrays = {name: values.copy() for name, values in own.arrays.items()}
    names = {"area_under_margin": "margin"}
    columns: dict[str, Any] = {  # what training alone knows
        names.get(column, column): own.column(column).astype(np.float32)
        for column in ("network_prob", "area_under_margin", "visits", "strength", "left_epoch")
    }
    near = own.table["neighbours"].to_pylist()
    place = {path: i for i, path in enumerate(own.table["path"].to_pylist())}
    for other in siblings(directory, config).values():
        theirs = Findings.read(other)
        if theirs is None:
            continue
        rows = np.flatnonzero(theirs.held_out)
        paths = theirs.table["path"].to_pylist()
        here = np.array([place.get(path, -1) for path in paths])
        if (here < 0).any() or (theirs.arrays["labels"] != own.arrays["labels"][here]).any():
            raise UserError(f"run={directory}: {shown(other)} has other images or labels")
        mine = here[rows]
        held_out[mine] = True
        for name in ("belief", "network", "neighbours"):
            arrays[name][mine] = theirs.arrays[name][rows]
        for name, values in columns.items():
            values[mine] = 0 if name == "visits" else np.nan
        for i, j in zip(mine.tolist(), rows.tolist(), strict=True):
            near[i] = [int(here[k]) for k in theirs.table["neighbours"][j].as_py()]
        test.append(theirs)
    for name in ("test", "test_labels"):
        arrays[name] = np.concatenate([each.arrays[name] for each in test])
    samples = Split(torch.empty(0), arrays["labels"], own.clean, list(place))
    columns["left_epoch"] = np.nan_to_num(columns["left_epoch"] - 1, nan=-1).astype(np.int64)
    table = label_table(
        samples,
        tuple(own.about["class_names"]),
        pooled(arrays["belief"], arrays["network"]),
        arrays["network"],
        arrays["neighbours"],
        near,
        **columns,
        identical_to=own.table["identical_to"].to_pylist(),
        in_test=own.table["in_test"].to_pylist(),
        held_out=held_out,
    )
    about = {**own.about, "holds_belief": own.about["holds_belief"] and not held_out.all()}
    told = f"{int(held_out.sum()):,} images are judged by a network that never saw them"
    if missing := folds - len(test):
        told += f"; folds not trained yet: {missing} of {folds}, whose images this run judges"
    return Findings(table, arrays, about), f"{told}."
