"""Whether a dataset on disk is there, whole, and in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from noisybsd.config import Config
from noisybsd.data.cards import Card, load_card
from noisybsd.data.download import checksum
from noisybsd.data.duplicates import LookedAtFiles, describe, identical, looks_of
from noisybsd.data.find import find_images
from noisybsd.data.images import ImageError, ImageFiles
from noisybsd.data.labelling import known_clean, real_rate, with_labels
from noisybsd.data.names import examples, kinds
from noisybsd.data.pack import LISTED
from noisybsd.data.readers.packed import is_packed
from noisybsd.data.readers.registry import EVALUATIONS
from noisybsd.data.reading import check_fits_card, read_splits
from noisybsd.data.splits import (
    Missing,
    Split,
    file_split,
    hold_out,
    how_to_get,
    refuse_another_split,
    wholly_held_out,
)
from noisybsd.data.votes import votes_told
from noisybsd.errors import UserError, shown
from noisybsd.settings import DataConfig

_STATUS = {True: "ok   ", False: "WRONG", None: "NOTE "}


class Finding(NamedTuple):
    """One thing that can be said of a dataset on disk.

    Args:
        ok: whether it is as it should be; None: a person decides.
        missing: whether it is that data are not there.
    """

    ok: bool | None
    text: str
    missing: bool = False


def check(config: Config, out: Path | None) -> int:
    """Say of everything whether it is as it should be; 1 if something is not."""
    card, data = load_card(config.data.name), config.data
    print(f"{card.name}: {card.title}\n  data.root={shown(data.root)}")
    wrong, missing = 0, False
    for finding in findings(card, data):
        wrong += finding.ok is False
        missing |= finding.missing
        print(f"  {_STATUS[finding.ok]}  {shown(finding.text)}")
    if wrong:
        print(f"\n{wrong} thing{'s' * (wrong > 1)} wrong")
    # own images that are there come from nowhere else
    if missing or (wrong and card.layout != "own"):
        print(how_to_get(card))
    if wrong and card.layout != "own":
        print(f"  source: {card.source[0]}\n  licence: {card.licence.strip()}")
    return int(wrong > 0)


def findings(card: Card, data: DataConfig) -> Iterator[Finding]:
    """Everything that can be said of a dataset on disk."""
    root = Path(data.root)
    try:
        packed = is_packed(data)
    except UserError as error:
        yield Finding(False, str(error))
        return
    for name, expected in card.checksums.items():
        if not (root / name).exists():
            continue  # the reader names what is missing
        algorithm, digest = expected.split(":")
        if checksum(root / name, algorithm) == digest:
            yield Finding(True, f"{name}: the official bytes ({algorithm})")
        elif data.verify:
            yield Finding(False, f"{name}: not the official bytes ({algorithm} differs)")
        else:
            yield Finding(True, f"{name}: not the official bytes, accepted by verify=false")
    # of a pack, reading it compares the bytes
    quiet = data.model_copy(update={"download": False, "verify": data.verify and packed})
    try:
        if card.layout in EVALUATIONS:
            yield from _evaluation_findings(card, quiet)
        else:
            yield from _split_findings(card, quiet)
    except Missing as error:
        yield Finding(False, f"{error.path}: not there", missing=True)
    except UserError as error:
        yield Finding(False, str(error))
        if card.layout == "own" and data.manifest is None and root.is_dir():
            found = find_images(root).paths  # they can be read all the same, or not
            files = file_split(card, data, found, [0] * len(found)).images
            assert isinstance(files, ImageFiles)
            yield from _unreadable("found", files)


def _evaluation_findings(card: Card, data: DataConfig) -> Iterator[Finding]:
    total = 0
    for name, split in EVALUATIONS[card.layout](card, data):
        total += len(split)
        if isinstance(split.images, ImageFiles):
            yield from _unreadable(name, split.images)
    yield _counted("test", total, card.test_images)


def _split_findings(card: Card, data: DataConfig) -> Iterator[Finding]:
    read, _ = read_splits(card, data)
    check_fits_card(read, card)
    yield from (Finding(None, notice) for notice in read.notices)
    if read.left_out:
        yield Finding(None, f"left out: {kinds(read.left_out)}")
    packed = read.images_sha256 is not None  # what was left out then is as it should be
    told, left_out = "left out when packed: " * packed, packed * len(read.problems)
    yield from (Finding(packed, f"{told}{problem}") for problem in read.problems)
    yield _counted("training", len(read.train), card.train_images, left_out)
    test = read.held_out if read.test is None else read.test
    if test is None:
        share = f"{data.test_fraction:.0%} of the training images"
        if data.folds is not None:
            share = f"one of {data.folds} parts of the training images"
        yield Finding(True, f"no test split: {share} will be held out")
        parts = hold_out(read.train, data)
        yield from (Finding(None, told) for told in wholly_held_out(*parts, read.class_names))
    else:
        refuse_another_split(data)
        yield _counted("test", len(test), card.test_images, left_out)
    per_class = np.bincount(read.train.labels, minlength=len(read.class_names))
    least, most = int(per_class.argmin()), int(per_class.argmax())
    counts = f"{per_class[least]:,} training images"
    if per_class[least] < per_class[most]:
        names = read.class_names
        counts = f"from {counts} ({names[least]}) to {per_class[most]:,} ({names[most]})"
    named, votes = per_class > 0, read.train.votes  # a class may be of a minority's votes alone
    if votes is not None:
        named = votes.sum(axis=0) > 0
    told = examples(read.class_names, 10)  # people see which folders were taken for classes
    yield Finding(bool(named.all()), f"{len(read.class_names)} classes, {counts}: {told}")
    if votes is not None:
        yield Finding(True, votes_told(votes))
    for name in dict.fromkeys([*card.labels, data.labels]):
        if name != "default":
            yield _labels_finding(card, data, name, read.both, read.class_names)
    if (known := known_clean(read.train.clean_labels)) not in (None, "known"):
        yield Finding(True, f"clean labels {known}")
    splits = {"train": read.train} | ({} if test is None else {"test": test})
    hashes: dict[str, list[bytes | None]] = {}
    for name, split in splits.items():
        if split.embeddings is not None:  # training looks at no image then
            yield Finding(True, f"{name}: embeddings of {split.embeddings.shape[2]:,} numbers")
            continue
        images = split.images
        if isinstance(images, ImageFiles):
            images = LookedAtFiles(images)
            yield from _unreadable({"train": "training"}.get(name, name), images)
        hashes[name] = looks_of(images).hashes
    yield from (
        Finding(None, told) for told in describe(identical(hashes), splits, read.class_names)
    )


def _counted(name: str, count: int, expected: int | None, left_out: int = 0) -> Finding:
    if expected is None or count == expected:
        return Finding(True, f"{count:,} {name} images")
    if count < expected <= count + left_out:
        return Finding(True, f"{count:,} {name} images, {expected:,} with those left out")
    return Finding(False, f"{count:,} {name} images, there should be {expected:,}")


def _labels_finding(
    card: Card, data: DataConfig, name: str, train: Split, class_names: tuple[str, ...]
) -> Finding:
    try:
        chosen = data.model_copy(update={"labels": name})
        split, note = with_labels(card, chosen, train, class_names)
    except Missing as error:
        told = f"labels {name}: {error.path} is not there"
        return Finding(name != data.labels, told, missing=True)
    except UserError as error:
        return Finding(False, str(error))
    rate = real_rate(split.labels, split.clean_labels)
    matched = note.get("labels_matched_by")
    votes = "" if split.votes is None else f", {votes_told(split.votes)}"
    if rate is None:
        how = f", matched by {matched}" if matched else ""
        return Finding(True, f"labels {name}: {len(split):,}, in range{how}{votes}")
    published = card.labels[name].noise_rate if name in card.labels else None
    told = "" if published is None else f" (published: {published:.2%})"
    right = published is None or abs(rate - published) < 1e-4
    order = "in an order that nothing proves"
    if note["order_proven"] or matched in ("name", "index"):
        order = "in the images' order"
    return Finding(right, f"labels {name}: {order}, {rate:.2%} wrong{told}{votes}")


def _unreadable(name: str, files: ImageFiles) -> Iterator[Finding]:
    """Decode every image file of a split."""
    errors = [
        result for result in files.decode_all(f"{name} images") if isinstance(result, ImageError)
    ]
    yield from (Finding(False, str(error)) for error in errors[:LISTED])
    if len(errors) > LISTED:
        yield Finding(False, f"… and {len(errors) - LISTED} more")
    if errors:
        yield Finding(True, "data.on_error=skip leaves unreadable images out")
    else:
        yield Finding(True, f"all {name} images can be read")
