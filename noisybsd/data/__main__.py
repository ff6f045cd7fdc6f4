"""What `python -m noisybsd.data` does: check, prepare and pack datasets, write noisy labels.

Dimensions: N images, C channels, S side of a stored image.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from rich.console import Console
from rich.progress import track

from noisybsd.config import Config, DataConfig, build_config, parse_overrides
from noisybsd.data.cards import Card, card_names, load_card
from noisybsd.data.dataset import draw_noise, read_splits, with_labels
from noisybsd.data.download import checksum, fetch
from noisybsd.data.images import ImageError, ImageFiles
from noisybsd.data.label_files import write_labels
from noisybsd.data.noise import summary
from noisybsd.data.readers.lists import EVALUATIONS, PACK
from noisybsd.data.splits import Missing, Split, hold_out, image_size
from noisybsd.errors import UserError, did_you_mean

HELP = """\
usage: python -m noisybsd.data check|prepare|pack|noise NAME key=value …
       python -m noisybsd.data apply-review run=DIR review=FILE out=FILE

NAME is a dataset: {names}; or the path of a card.

  check NAME root=FOLDER       is it there, whole, and in order? Exit code 1 if not, with what to do
  prepare NAME root=FOLDER     download and unpack what may be downloaded
  pack NAME root=FOLDER out=F  decode image files once into F, which trains faster and fits mmap:
                               then data.root=F instead of data.root=FOLDER
  noise NAME root=FOLDER out=F noise.name=symmetric noise.rate=0.4 noise.seed=0
                               write noisy labels to F (.csv, .npy or .txt) for others to use:
                               then data.labels=F
  apply-review                 correct a run's labels by the decisions made on its report's page;
                               `apply-review --help` says more

Keys are those of a recipe's sections data and noise (python -m noisybsd.train --help lists them);
those of data may be written without `data.`: root, labels, manifest, size, verify, on_error, …

examples:
  python -m noisybsd.data check cifar10n root=data
  python -m noisybsd.data pack own root=photos size=128 on_error=skip out=photos_packed
"""

LISTED = 20  # unreadable images named by `check`


def run(arguments: list[str]) -> int:
    """Carry out `COMMAND NAME key=value …` and return the exit code."""
    if arguments[:1] == ["apply-review"]:
        from noisybsd.report import review

        return review.main(arguments[1:])
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP.format(names=", ".join(card_names())))
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        valid = [*COMMANDS, "apply-review"]
        raise UserError(f"command: {did_you_mean(command, valid)}; --help explains them")
    if not rest or "=" in rest[0]:
        raise UserError(f"{command}: which dataset? valid: {', '.join(card_names())}")
    config, out = _settings(rest[0], rest[1:])
    return COMMANDS[command](config, out)


def _settings(name: str, arguments: list[str]) -> tuple[Config, Path | None]:
    """The sections data and noise, typed and checked; and out=."""
    given = parse_overrides(arguments)
    out = given.pop("out", None)
    if "name" in given:
        raise UserError(f"name={given['name']}: write noise.name=…; the dataset is {name}")
    short = {key: given.pop(key) for key in list(given) if key in DataConfig.model_fields}
    layers = ({"recipe": "data", "data": {"name": name, **short}}, given)
    return build_config(*layers), None if out is None else Path(str(out)).expanduser()


# --- check --------------------------------------------------------------------------------------


def check(config: Config, out: Path | None) -> int:
    """Say of everything whether it is as it should be; 1 if something is not."""
    card, data = load_card(config.data.name), config.data
    print(f"{card.name}: {card.title}\n  data.root={data.root}")
    wrong = 0
    for ok, finding in findings(card, data):
        wrong += not ok
        print(f"  {'ok   ' if ok else 'WRONG'}  {finding}")
    if wrong:
        print(
            f"\n{wrong} thing{'s' * (wrong > 1)} wrong. How to get {card.name}: {card.obtain.strip()}"
        )
        print(f"  source: {card.source[0]}\n  licence: {card.licence.strip()}")
    return int(wrong > 0)


def findings(card: Card, data: DataConfig) -> Iterator[tuple[bool, str]]:
    """Everything that can be said of a dataset on disk, each with whether it is as it should be."""
    root = Path(data.root)
    for name, expected in card.checksums.items():
        if not (root / name).exists():
            continue  # the reader names what is missing
        algorithm, digest = expected.split(":")
        if checksum(root / name, algorithm) == digest:
            yield True, f"{name}: the official bytes ({algorithm})"
        elif data.verify:
            yield False, f"{name}: not the official bytes ({algorithm} differs)"
        else:
            yield True, f"{name}: not the official bytes, accepted by verify=false"
    quiet = data.model_copy(update={"download": False, "verify": False})
    try:
        if card.layout in EVALUATIONS:
            yield from _evaluation_findings(card, quiet)
        else:
            yield from _split_findings(card, quiet)
    except Missing as error:
        yield False, f"{error.path}: not there"
    except UserError as error:
        yield False, str(error)


def _evaluation_findings(card: Card, data: DataConfig) -> Iterator[tuple[bool, str]]:
    total = 0
    for name, split in EVALUATIONS[card.layout](card, data):
        total += len(split)
        yield from _unreadable(name, split)
    yield _counted("test", total, card.test_images)


def _split_findings(card: Card, data: DataConfig) -> Iterator[tuple[bool, str]]:
    read, _ = read_splits(card, data)
    packed = read.images_sha256 is not None  # what was left out then is as it should be
    told, left_out = "left out when packed: " * packed, packed * len(read.problems)
    yield from ((packed, f"{told}{problem}") for problem in read.problems)
    yield _counted("training", len(read.train), card.train_images, left_out)
    if read.test is None:
        yield (
            True,
            f"no test split: {data.test_fraction:.0%} of the training images will be held out",
        )
    else:
        yield _counted("test", len(read.test), card.test_images, left_out)
    per_class = np.bincount(read.train.labels, minlength=len(read.class_names))
    least, most = int(per_class.argmin()), int(per_class.argmax())
    counts = f"{per_class[least]:,} training images"
    if per_class[least] < per_class[most]:
        names = read.class_names
        counts = f"from {counts} ({names[least]}) to {per_class[most]:,} ({names[most]})"
    yield bool(per_class.all()), f"{len(read.class_names)} classes, {counts}"
    for name in dict.fromkeys([*card.labels, data.labels]):
        if name != "default":
            yield _labels_finding(card, data, name, read.train, len(read.class_names))
    for name, split in (("training", read.train), ("test", read.test)):
        if split is not None:
            yield from _unreadable(name, split)


def _counted(name: str, count: int, expected: int | None, left_out: int = 0) -> tuple[bool, str]:
    if expected is None or count == expected:
        return True, f"{count:,} {name} images"
    if count < expected <= count + left_out:
        return True, f"{count:,} {name} images, {expected:,} with those left out"
    return False, f"{count:,} {name} images, there should be {expected:,}"


def _labels_finding(
    card: Card, data: DataConfig, name: str, train: Split, num_classes: int
) -> tuple[bool, str]:
    try:
        chosen = data.model_copy(update={"labels": name})
        split, note = with_labels(card, chosen, train, num_classes)
    except Missing as error:
        return name != data.labels, f"labels {name}: {error.path} is not there"
    except UserError as error:
        return False, str(error)
    if split.clean_labels is None:
        return True, f"labels {name}: {len(split):,}, in range"
    rate = (split.labels != split.clean_labels).mean()
    published = card.labels[name].noise_rate if name in card.labels else None
    told = "" if published is None else f" (published: {published:.2%})"
    right = published is None or abs(rate - published) < 1e-4
    order = "in the images' order" if note["order_proven"] else "in an order that nothing proves"
    return right, f"labels {name}: {order}, {rate:.2%} wrong{told}"


def _unreadable(name: str, split: Split) -> Iterator[tuple[bool, str]]:
    """Decode every image file of a split."""
    if not isinstance(split.images, ImageFiles):
        return
    errors = [result for result in _decoded(split.images, name) if isinstance(result, ImageError)]
    yield from ((False, str(error)) for error in errors[:LISTED])
    if len(errors) > LISTED:
        yield False, f"… and {len(errors) - LISTED} more"
    if errors:
        yield True, "data.on_error=skip leaves unreadable images out"
    else:
        yield True, f"all {name} images can be read"


def _decoded(images: ImageFiles, name: str) -> Iterator[Any]:
    """Every image or what is wrong with it, with a progress display in a terminal."""
    console = Console(stderr=True)
    yield from track(
        images.decode_many(range(len(images))),
        f"decoding {name} images",
        total=len(images),
        console=console,
        disable=not console.is_terminal,
    )


# --- prepare ------------------------------------------------------------------------------------


def prepare(config: Config, out: Path | None) -> int:
    """Download and unpack what may be downloaded; 1 if something remains to be got by hand."""
    card, root = load_card(config.data.name), Path(config.data.root)
    for item in card.downloads:
        if (root / item.makes).exists():
            print(f"{root / item.makes}: there already")
            continue
        size = "" if item.bytes is None else f" ({item.bytes / 2**20:,.0f} MiB)"
        told = "" if item.checksum else "; its publisher gives no checksum"
        print(f"{item.url}{size}{told}")
        fetch(item, root)
        print(f"{root / item.makes}: done")
    try:
        if card.layout in EVALUATIONS:
            next(EVALUATIONS[card.layout](card, config.data))
        else:
            read_splits(card, config.data.model_copy(update={"download": False}))
    except Missing as error:
        made = [root / item.makes for item in card.downloads]
        for folder in set(made) & set(error.path.parents):
            print(f"{error.path}: not there, though {folder} is: remove that and run this again")
            return 1
        form = "its owners want a form filled in first; " if card.licence_form else ""
        print(
            f"{error.path}: not there, and not to be downloaded by a program: {form}{card.obtain.strip()}"
        )
        print(f"  source: {card.source[0]}\n  licence: {card.licence.strip()}")
        return 1
    print(f"{card.name}: complete; `check {config.data.name} root={root}` looks at every file")
    return 0


# --- pack ---------------------------------------------------------------------------------------


def pack(config: Config, out: Path | None) -> int:
    """Decode all image files once into one array per split, in a folder that appears when whole.

    OUT holds for each split NAME_images.npy, uint8 (N,C,S,S), to be mapped into memory, and
    NAME.parquet with path, label and clean_label; and pack.json, which says what they are.
    """
    card, data = load_card(config.data.name), config.data
    if out is None:
        raise UserError("pack: out=FOLDER is missing: where the packed images go")
    if out.exists():
        raise UserError(f"out={out}: is there already")
    read, _ = read_splits(card, data)
    train, test, test_labels = read.train, read.test, read.test_labels
    if not isinstance(train.images, ImageFiles):
        raise UserError(f"pack: the images of {card.name} are in one array already")
    if test is None:
        train, test, test_labels = hold_out(train, data.test_fraction)
    problems = list(read.problems)
    splits = {"train": train, "test": test}
    _refuse_without_room(out, splits)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        about: dict[str, Any] = {"card": card.name, "classes": list(read.class_names)}
        for name, split in splits.items():
            about[name] = _pack_split(split, temporary, name, data.on_error, problems)
        about |= {
            "splits": list(splits),
            "size": image_size(card, data)[0],
            "test_labels": test_labels,
            "problems": problems,
        }
        (temporary / PACK).write_text(json.dumps(about, indent=1), "utf-8")
        temporary.chmod(0o755)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    size = sum(path.stat().st_size for path in out.iterdir())
    counts = ", ".join(f"{about[name]['count']:,} {name}" for name in splits)
    print(f"{out}: {counts} images, {size / 2**20:,.1f} MiB; {len(problems)} left out")
    for problem in problems[:LISTED]:
        print(f"  {problem}")
    print(f"train on them with data.name={data.name} data.root={out}")
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
    digest, kept = hashlib.sha256(), np.ones(len(split), dtype=bool)
    path = folder / f"{name}_images.npy"
    with path.open("wb") as file:
        _npy_header(file, split.images.shape)
        for i, image in enumerate(_decoded(split.images, name)):
            if isinstance(image, ImageError):
                if on_error == "stop":
                    raise UserError(
                        f"{image}\non_error=skip leaves such images out and counts them"
                    )
                kept[i] = False
                problems.append(str(image))
            else:
                pixels = image.numpy().tobytes()
                digest.update(pixels)
                file.write(pixels)
        file.seek(0)  # numpy leaves room in the header for any number of images
        _npy_header(file, (int(kept.sum()), *split.images.shape[1:]))
        file.flush()
        os.fsync(file.fileno())
    split = split.take(kept)
    columns = {"path": split.paths, "label": split.labels, "clean_label": split.clean_labels}
    table = pyarrow.table({key: value for key, value in columns.items() if value is not None})
    pyarrow.parquet.write_table(table, folder / f"{name}.parquet")
    return {"count": len(split), "images_sha256": digest.hexdigest()}


def _npy_header(file: Any, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


# --- noise --------------------------------------------------------------------------------------


def noise(config: Config, out: Path | None) -> int:
    """Write noisy labels for all training images, in the order in which they are read."""
    card, data = load_card(config.data.name), config.data
    if out is None:
        raise UserError("noise: out=FILE is missing: a .csv, .npy or .txt file for the labels")
    if config.noise.name == "none":
        raise UserError("noise: noise.name is missing, e.g. noise.name=symmetric noise.rate=0.4")
    read, _ = read_splits(card, data)
    train, _ = with_labels(card, data, read.train, len(read.class_names))
    noisy = draw_noise(card, config.noise, config.seed, train, len(read.class_names))
    clean = train.labels if train.clean_labels is None else train.clean_labels
    write_labels(
        out, noisy, clean=clean, about={"dataset": card.name, "classes": list(read.class_names)}
    )
    print(summary(noisy, clean, read.class_names))
    print(f"{out}: train on these labels with data.name={data.name} data.labels={out}")
    print("and, where the recipe has noise of its own, noise.name=none noise.rate=0")
    return 0


COMMANDS: dict[str, Callable[[Config, Path | None], int]] = {
    "check": check,
    "prepare": prepare,
    "pack": pack,
    "noise": noise,
}
