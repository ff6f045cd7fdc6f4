"""Classify images with a run's network: `python -m noisybsd.predict run=DIR images=FOLDER out=FILE`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from noisybsd.errors import UserError, asks_for_help, command, counted, shown
from noisybsd.files import expanded, kind_of, output_file, spare_inputs
from noisybsd.values import number, one_of, read_arguments

log = logging.getLogger("noisybsd")

TABLES = (".csv", ".tsv", ".parquet")
NAMED = 5  # images that cannot be used, of those that the console names

USAGE = """\
usage: python -m noisybsd.predict run=DIR images=FOLDER|FILE|TABLE out=FILE [key=value …]

Say what is on images, with the network of a run, finished or not. The run's data are not needed. Confidences
are calibrated where the run was (data.calibration).

  images=FOLDER       all image files in it, at any depth
  images=FILE         one image file
  images=TABLE        a .csv, .tsv or .parquet file that lists image files in a column path
  out=FILE            a .csv or .parquet file, which gets a row for each image:
                        path         from the folder, or as the table lists it
                        class        the most probable class
                        confidence   its probability
                        unsure       true if the confidence is below the threshold
                        error        why the image cannot be used; the other cells are empty then

keys that may be given:
  root=FOLDER         where relative paths in a table start; default: the folder of the table
  probabilities=false true: a column p_CLASS for each class
  threshold=T         default: halfway between chance and certainty, 0.75 of two classes, 0.55 of ten
  weights=average     the moving average of the weights, the default if the run has one; or last
  device=auto         cpu or cuda; auto: cuda if there is one
  workers=N           threads that decode; default: one for each core

  python -m noisybsd.predict run=runs/own/… images=new_photos out=predictions.csv
"""


@command
def main(arguments: list[str]) -> int:
    if asks_for_help(arguments):
        print(USAGE, end="")
        return 0 if arguments else 2
    readers: dict[str, Callable[[str], Any]] = {
        "run": expanded,
        "images": expanded,
        "out": partial(output_file, suffixes=(".csv", ".parquet")),
        "root": expanded,
        "probabilities": one_of("true", "false"),
        "threshold": number(0, 1),
        "weights": one_of("average", "last"),
        "device": one_of("auto", "cpu", "cuda"),
        "workers": number(1, 1024, whole=True),
    }
    given = read_arguments(arguments, readers, required=("run", "images", "out"))
    return _predict(**given)


def _predict(
    run: Path,
    images: Path,
    out: Path,
    root: Path | None = None,
    probabilities: str = "false",
    threshold: float | None = None,
    weights: Any = None,
    device: Any = "auto",
    workers: int | None = None,
) -> int:
    spare_inputs(out, [("images", images)])
    # here, because torch takes seconds to import
    from noisybsd.engine.classifier import load
    from noisybsd.engine.predictions import write_predictions

    classifier = load(run, weights=weights, device=device)
    root, paths = find(images, root)
    unsure, errors = write_predictions(
        classifier.stream((_file(root, path) for path in paths), threads=workers),
        paths,
        len(paths),
        out,
        threshold=threshold,
        probabilities=probabilities == "true",
    )
    classified = counted(len(paths) - len(errors), "image", "images")
    print(f"{classified} classified, {unsure:,} of them unsure: {shown(out)}")
    if errors:
        print(f"images that cannot be used: {len(errors):,}, see the column error")
        for error in errors[:NAMED]:
            print(f"  {shown(error)}")
        if len(errors) > NAMED:
            print(f"  … and {len(errors) - NAMED:,} more")
    return 0


def _file(root: Path, name: str) -> Path:
    """The image file that a table calls `name`: one written on Windows has backslashes."""
    if "\\" in name and not os.path.exists(root / name):  # noqa: PTH110 (that one may raise)
        name = name.replace("\\", "/")
    return root / name


def find(images: Path, root: Path | None) -> tuple[Path, list[str]]:
    """The image files that `images` names: the folder that their paths start from, and these.

    Raises:
        UserError: there is none.
    """
    from noisybsd.data.find import find_images
    from noisybsd.data.names import kinds
    from noisybsd.data.readers.manifest import path_column, read_list
    from noisybsd.data.tables import names_of

    kind = kind_of(images, f"images={images}")
    is_table = kind == "file" and images.suffix.lower() in TABLES
    if root is not None and not is_table:
        raise UserError(f"root={root}: goes with images=TABLE, got images={images}")
    if kind is None:
        raise UserError(f"images={images}: there is no such file or folder")
    if is_table:
        table, root = read_list(images), root or images.parent
        return root, names_of(table, path_column(table, root))
    if kind != "folder":
        return images.parent, [images.name]
    found = find_images(images)
    for line in found.problems:
        log.warning("left out: %s", line)
    left_out = kinds(found.left_out)
    if not found.paths:
        raise UserError(f"images={images}: no image in it" + f", only {left_out}" * bool(left_out))
    if left_out:
        log.warning("left out: %s", left_out)
    return images, found.paths


if __name__ == "__main__":
    sys.exit(main())
