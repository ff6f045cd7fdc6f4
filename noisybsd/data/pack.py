"""Image files decoded once, into arrays that train faster.

Dimensions: N images, C channels, S side of a stored image.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch

from noisybsd.config import Config
from noisybsd.data.cards import load_card
from noisybsd.data.fingerprint import images_sha256
from noisybsd.data.images import ImageError, ImageFiles
from noisybsd.data.labelling import with_labels
from noisybsd.data.names import UNKNOWN, as_text, kinds
from noisybsd.data.readers.packed import PACK
from noisybsd.data.reading import check_fits_card, read_splits
from noisybsd.data.splits import Split, hold_out, image_size, refuse_another_split
from noisybsd.data.temporary import new_folder
from noisybsd.errors import UserError, shown

LISTED = 20  # unreadable images named by `check`


def pack(config: Config, out: Path | None) -> int:
    """Decode all image files once into one array per split, in a folder that appears when whole.

    OUT holds for each split NAME_images.npy, uint8 (N,C,S,S), to be mapped into memory, and
    NAME.parquet with path, label and clean_label; and pack.json, which says what they are.
    """
    card, data = load_card(config.data.name), config.data
    if out is None:
        raise UserError("pack: out=FOLDER is missing: where the packed images go")
    if os.path.lexists(out):
        raise UserError(f"out={out}: is there already")
    read, _ = read_splits(card, data)
    check_fits_card(read, card)
    train, test, test_labels = read.train, read.test, read.test_labels
    train, _ = with_labels(card, data, train, read.class_names)
    held_out = test is None
    if not isinstance(train.images, ImageFiles):
        raise UserError(f"pack: the images of {card.name} are in one array already")
    if test is None:
        train, test = hold_out(train, data)
    else:
        refuse_another_split(data)
    problems = list(read.problems)
    splits = {"train": train, "test": test}
    about: dict[str, Any] = {
        "card": card.name,
        "classes": list(read.class_names),
        "labels": data.labels,
    }
    try:
        _refuse_without_room(out, splits)
        with new_folder(out, "pack") as temporary:
            for name, split in splits.items():
                about[name] = _pack_split(split, temporary, name, data.on_error, problems)
            about |= {
                "splits": list(splits),
                "size": image_size(card, data)[0],
                "test_labels": test_labels,
                "held_out": held_out,
                "problems": problems,
            }
            (temporary / PACK).write_text(json.dumps(about, indent=1), "utf-8")
    except (OSError, pyarrow.ArrowException) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"out={out}: cannot be written: {reason}") from None
    size = sum(path.stat().st_size for path in out.iterdir())
    counts = ", ".join(f"{about[name]['count']:,} {name}" for name in splits)
    print(f"{shown(out)}: {counts} images, {size / 2**20:,.1f} MiB; {len(problems)} left out")
    for line in [*problems[:LISTED], *read.notices]:
        print(f"  {shown(line)}")
    if read.left_out:
        print(f"  left out: {shown(kinds(read.left_out))}")
    print(shown(f"train on them with data.name={data.name} data.root={out}"))
    return 0


def _refuse_without_room(out: Path, splits: dict[str, Split]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    needed = sum(int(np.prod(split.images.shape)) for split in splits.values())
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise UserError(
            f"out={out}: needs {needed / 2**30:,.1f} GiB, {free / 2**30:,.1f} GiB are free; "
            "a smaller data.size needs less"
        )


def _pack_split(
    split: Split, folder: Path, name: str, on_error: str, problems: list[str]
) -> dict[str, Any]:
    """Write one split, leaving out unreadable images if on_error is skip."""
    assert isinstance(split.images, ImageFiles)
    kept = np.ones(len(split), dtype=bool)
    path = folder / f"{name}_images.npy"
    with path.open("wb") as file:
        _npy_header(file, split.images.shape)
        for i, image in enumerate(split.images.decode_all(f"{name} images")):
            if isinstance(image, ImageError):
                if on_error == "stop":
                    raise UserError(
                        f"{image}\non_error=skip leaves such images out and counts them"
                    )
                kept[i] = False
                problems.append(str(image))
            else:
                file.write(image.numpy().tobytes())
        file.seek(0)  # numpy leaves room in the header for any number of images
        _npy_header(file, (int(kept.sum()), *split.images.shape[1:]))
        file.flush()
        os.fsync(file.fileno())
    if not kept.any():
        raise UserError(f"not one of the {len(split)} {name} images can be read: {problems[-1]}")
    split = split.take(kept)
    assert split.paths is not None
    columns: dict[str, Any] = {"path": list(map(as_text, split.paths)), "label": split.labels}
    if (clean := split.clean_labels) is not None:
        columns["clean_label"] = pyarrow.array(clean, mask=clean == UNKNOWN)
    if (votes := split.votes) is not None:
        flat = pyarrow.array(votes.ravel())
        columns["votes"] = pyarrow.FixedSizeListArray.from_arrays(flat, votes.shape[1])
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"{name}.parquet")
    packed = torch.from_numpy(np.load(path, mmap_mode="c"))
    return {"count": len(split), "images_sha256": images_sha256(packed)}


def _npy_header(file: Any, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
