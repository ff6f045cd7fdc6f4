"""A card's files, read: downloaded if need be, compared with the official bytes, left to the card's reader.

Dimensions: N images.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np

from noisybsd.data.cards import Card
from noisybsd.data.download import checksum, fetch
from noisybsd.data.images import ImageFiles
from noisybsd.data.names import UNKNOWN, as_text
from noisybsd.data.readers.packed import is_packed, read_packed
from noisybsd.data.readers.registry import EVALUATIONS, LAYOUTS
from noisybsd.data.splits import Read, Split, check_labels, need
from noisybsd.errors import UserError, did_you_mean
from noisybsd.settings import DataConfig

ARRAYS = ("digits", "cifar", "cifar_c")  # layouts of images that are no files
NAMED = 10  # files that a message names; the others are counted


def read_splits(card: Card, data: DataConfig) -> tuple[Read, bool | None]:
    """Let the card's reader read; and say whether the bytes are the official ones (None: unknown)."""
    if is_packed(data):
        return read_packed(card, data), None
    if card.layout not in LAYOUTS:
        if card.layout in EVALUATIONS:
            raise UserError(
                f"data.name={card.name}: has test images only, for noisybsd.evaluate; "
                "there is nothing to train on"
            )
        raise UserError(
            f"{card.name}: layout: {did_you_mean(card.layout, [*LAYOUTS, *EVALUATIONS])}"
        )
    obtain_missing(card, data)
    verified = verify_images(card, data)
    return LAYOUTS[card.layout](card, data), verified


def refuse_what_has_no_effect(card: Card, data: DataConfig) -> None:
    if data.manifest is not None and card.layout != "own":
        raise UserError(f"data.manifest={data.manifest}: goes with data.name=own, got {card.name}")
    if data.embeddings is not None and data.manifest is None:
        raise UserError(
            f"data.embeddings={data.embeddings}: goes with data.manifest=FILE, a table whose row i says "
            "the label of row i"
        )
    if data.annotators and data.manifest is None and data.labels in ("default", *card.labels):
        raise UserError(
            f"data.annotators=[{','.join(data.annotators)}]: are columns of a label file, data.labels=FILE, "
            "or of data.manifest=FILE, and neither is given"
        )
    if data.size is not None and card.layout in ARRAYS:
        raise UserError(f"data.size={data.size}: {card.name} has images of {card.size} pixels")


def obtain_missing(card: Card, data: DataConfig) -> None:
    """Download what data.labels and the images need and what is not in data.root."""
    root = Path(data.root)
    chosen = card.labels[data.labels].file if data.labels in card.labels else None
    label_files = {entry.file for entry in card.labels.values()}
    for item in card.downloads:
        if item.file in label_files and item.file != chosen:
            continue
        if not (root / item.makes).exists() and data.download:
            fetch(item, root)


def verify_images(card: Card, data: DataConfig) -> bool | None:
    """Compare the card's checksums with the image files; None where the card has none.

    Raises:
        UserError: a file is missing, or differs while data.verify is true.
    """
    label_files = {entry.file for entry in card.labels.values()}
    names = [name for name in card.checksums if name not in label_files]
    wrong = [name for name in names if not is_official(card, data, name)]
    if wrong and data.verify:
        raise UserError(
            f"{Path(data.root) / wrong[0]}: not the official bytes ({len(wrong)} of {len(names)} "
            f"files differ). How to get {card.name}: {card.obtain.strip()}. "
            "Or data.verify=false: trains on these pixels, and the results say so"
        )
    return not wrong if names else None


def is_official(card: Card, data: DataConfig, name: str) -> bool:
    algorithm, digest = card.checksums[name].split(":")
    return checksum(need(Path(data.root) / name, card), algorithm) == digest


def check_fits_card(read: Read, card: Card) -> None:
    """Refuse images and labels that are not what the card says, before they fail in a step."""
    num_classes = len(read.class_names)
    for name, split in (("training", read.train), ("test", read.test), ("test", read.held_out)):
        if split is None:
            continue
        source = f"{card.name}: its card has {num_classes} classes, but among the {name} images"
        check_labels(split.labels, num_classes, source)
        if split.clean_labels is not None:
            check_labels(
                split.clean_labels[split.clean_labels != UNKNOWN], num_classes, f"{source} clean"
            )
        if isinstance(split.images, ImageFiles):
            continue
        channels, side = split.images.shape[1], split.images.shape[-1]
        if channels != card.channels:
            raise UserError(
                f"{card.name}: the card has channels={card.channels}, the {name} images {channels}"
            )
        if read.size is None and side != card.size:
            raise UserError(f"{card.name}: the card has size={card.size}, the {name} images {side}")


def leave_out_missing(
    split: Split, data: DataConfig, problems: list[str]
) -> tuple[Split, list[int]]:
    """Leave out files that are missing or empty, if data.on_error=skip, and add them to `problems`.

    Returns:
        what is left, and the bytes of its files, if it is in files.

    Raises:
        UserError: lists the first problems, if data.on_error=stop.
    """
    if not isinstance(split.inputs, ImageFiles):
        return split, []
    assert isinstance(split.images, ImageFiles) and split.paths is not None
    usable = np.zeros(len(split), dtype=bool)
    sizes = np.zeros(len(split), dtype=np.int64)
    for i, path in enumerate(split.paths):
        full = os.path.join(split.images.root, path)  # noqa: PTH118 (up to a million times)
        try:
            status = os.stat(full)  # noqa: PTH116
        except (OSError, ValueError) as error:  # a name may hold a NUL
            reason = error.strerror if isinstance(error, OSError) else str(error)
            problems.append(f"{as_text(full)}: {reason}")
            continue
        if not stat.S_ISREG(status.st_mode):
            problems.append(f"{as_text(full)}: is no file")
        elif status.st_size == 0:
            problems.append(f"{as_text(full)}: is empty (zero bytes)")
        else:
            usable[i], sizes[i] = True, status.st_size
    if problems and data.on_error == "stop":
        advice = "data.on_error=skip leaves such files out and counts them"
        raise UserError("\n".join([*first_of(problems), advice]))
    if not usable.any():
        because = f": {problems[-1]}" if len(split) else ""
        raise UserError(f"data.root={data.root}: not one usable image of {len(split)}{because}")
    return split if usable.all() else split.take(usable), sizes[usable].tolist()


def first_of(problems: list[str]) -> list[str]:
    more = [f"… and {len(problems) - NAMED} more"] if len(problems) > NAMED else []
    return problems[:NAMED] + more
