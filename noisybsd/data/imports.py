"""Images in other formats, copied into a folder of image files and a manifest of their labels.

Sources are read one example at a time: Hugging Face datasets, Parquet files, webdataset shards, .npz arrays.
The bytes of an image are copied as they are, so nothing is lost and only one picture is in memory.
"""

from __future__ import annotations

import csv
import glob
import importlib
import io
import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from noisybsd.data.images import formats, image_suffixes
from noisybsd.data.names import as_text, class_of, is_missing, split_named
from noisybsd.data.progress import with_bar
from noisybsd.data.tables import CLEAN, SPLITS, Table, refuse_same
from noisybsd.data.temporary import new_folder
from noisybsd.errors import UserError, did_you_mean, first_line, shown

MANIFEST = "manifest.csv"
A_FOLDER = 1000  # image files in one folder
LISTED = 20  # unreadable images that are named


@dataclass(frozen=True)
class Wanted:
    """What to take of a source.

    Args:
        image: its column of images; None: the only one that holds images.
        labels: its column of labels, or several, each an annotator's; none: found by what they are called.
        splits: the splits to take; none: all.
        config: of a Hugging Face dataset that has several configurations.
    """

    image: str | None = None
    labels: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    config: str | None = None


@dataclass(frozen=True)
class Row:
    """An example of a source.

    Args:
        place: where it is: file and row, or key.
        split: as the source calls it.
        columns: by name; an image is its encoded bytes, or a dict of `bytes` and `path`.
        likely: columns that hold labels where no other is called so.
    """

    place: str
    split: str
    columns: dict[str, Any]
    likely: tuple[str, ...] = ()


# --- sources ----------------------------------------------------------------------------------------


def _huggingface(source: str, wanted: Wanted) -> Iterator[Row]:
    """A folder that `save_to_disk` wrote, or whatever `load_dataset` knows, which is streamed."""
    datasets = _library("datasets", "hf")
    what = f"hf={source}"
    try:
        saved = any(Path(source, name).exists() for name in ("state.json", "dataset_dict.json"))
        if saved:
            found = datasets.load_from_disk(source)
        else:
            found = datasets.load_dataset(source, wanted.config, streaming=True)
        parts = found if isinstance(found, dict) else {"train": found}
        for split in _chosen(parts, wanted, what):
            part = parts[split]
            features = part.features or {}
            labels = {k: f for k, f in features.items() if isinstance(f, datasets.ClassLabel)}
            named = {name: feature.names for name, feature in labels.items()}
            for name, feature in features.items():
                if isinstance(feature, datasets.Image):
                    part = part.cast_column(name, datasets.Image(decode=False))
            for i, columns in enumerate(part):
                place = f"{what}: {split}, row {i + 1}"
                yield Row(place, split, _with_names(columns, named, place), tuple(named))
    except UserError:
        raise
    except Exception as error:  # the network, the hub, or damaged files: errors of all kinds
        raise UserError(f"{what}: {first_line(error)}") from None


def _parquet(source: str, wanted: Wanted) -> Iterator[Row]:
    """Parquet files; one whose name begins with that of a split is of that split."""
    paths = _files(source, "parquet", "*.parquet")
    for path, split in _by_split(paths, wanted, f"parquet={source}"):
        try:
            file = pyarrow.parquet.ParquetFile(path, pre_buffer=False)  # or else all of it is held
            refuse_same(file.schema_arrow.names, str(path))
            named = _class_names(file.schema_arrow.metadata or {})
            rows = (row for batch in file.iter_batches(64) for row in batch.to_pylist())
            for i, columns in enumerate(rows):
                place = f"{path}: row {i + 1}"
                yield Row(place, split, _with_names(columns, named, place), tuple(named))
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"{path}: not readable as Parquet: {first_line(error)}") from None


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Which columns of a Parquet file that `datasets` wrote hold numbers of classes, and their names."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {name: each["names"] for name, each in features.items() if "names" in each}
    except (KeyError, TypeError, ValueError):
        return {}


def _with_names(
    columns: dict[str, Any], named: Mapping[str, list[str]], place: str
) -> dict[str, Any]:
    """The columns of an example, with names of classes in place of their numbers."""
    for column, names in named.items():
        value = columns.get(column)
        if value is None:
            continue
        if not isinstance(value, int) or not 0 <= value < len(names):
            raise UserError(
                f"{place}: {column} is {value!r}, valid: 0 to {len(names) - 1}; splits=… leaves out a "
                "split without labels"
            )
        columns[column] = names[value]
    return columns


def _webdataset(source: str, wanted: Wanted) -> Iterator[Row]:
    """Tar shards; one whose name begins with that of a split is of that split."""
    library = _library("webdataset", "webdataset")
    named = [source] if Path(source).exists() else library.shardlists.expand_urls(source)
    paths = [path for name in named for path in _files(name, "webdataset", "*.tar")]
    for path, split in _by_split(paths, wanted, f"webdataset={source}"):
        try:
            # a list of one: more would be shared out between the workers of a training
            for sample in library.WebDataset([str(path)], shardshuffle=False):
                place = f"{path}: {sample['__key__']}"
                yield Row(place, split, dict(_fields(sample, place)), ("cls",))
        except UserError:
            raise
        except Exception as error:  # a damaged archive: errors of all kinds
            raise UserError(f"{path}: not readable as a shard: {first_line(error)}") from None


def _fields(sample: dict[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    """Images as their bytes, the entries of .json, and texts; by suffix, without further ones."""
    for name, value in sample.items():
        if name.startswith("__"):
            continue
        if f".{name.lower()}" in image_suffixes():
            yield name, value
        elif name == "json":
            try:
                yield from json.loads(value).items()
            except (ValueError, AttributeError) as error:
                raise UserError(f"{place}: json: {error}") from None
        elif name in ("cls", "txt", "text", "id"):
            yield name, value.decode("utf-8", "backslashreplace").strip()


_ARRAYS = {
    "image": {"image", "images", "img", "imgs", "x", "data"},
    "label": {"label", "labels", "y", "target", "targets"},
}


def _npz(source: str, wanted: Wanted) -> Iterator[Row]:
    """Arrays of images, uint8 (N,H,W), (N,H,W,C) or (N,C,H,W), and of labels (N,), maybe for each split."""
    path = _files(source, "npz", "*.npz")[0]
    image, label = wanted.image or "image", (*wanted.labels, "label")[0]
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name.removesuffix(".npy"): name for name in archive.namelist()}
            for split, names in _pairs(arrays, wanted, path).items():
                with archive.open(arrays[names["label"]]) as file:
                    labels = np.lib.format.read_array(file, allow_pickle=False)
                labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
                if labels.ndim != 1 or labels.dtype.kind not in "iuUS":
                    raise UserError(
                        f"{path}: {names['label']}: got {labels.dtype} of shape {labels.shape}, valid: "
                        "integers or names of classes, (N,)"
                    )
                with archive.open(arrays[names["image"]]) as file:
                    where = f"{path}: {names['image']}"
                    images = _pngs(file, where, len(labels))
                    for i, (png, given) in enumerate(zip(images, labels.tolist(), strict=True)):
                        yield Row(f"{where}[{i}]", split, {image: png, label: given}, (label,))
    except UserError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not readable as numpy arrays: {first_line(error)}") from None


def _pairs(arrays: dict[str, str], wanted: Wanted, path: Path) -> dict[str, dict[str, str]]:
    """Split: {image: name of an array, label: name of an array}."""
    if wanted.image and wanted.labels:
        for name in (wanted.image, wanted.labels[0]):
            if name not in arrays:
                raise UserError(f"{path}: arrays: {did_you_mean(name, arrays)}")
        return {"train": {"image": wanted.image, "label": wanted.labels[0]}}
    found: dict[str, dict[str, str]] = {}
    for name in arrays:
        words = re.split(r"[\W_]+", name.lower())
        split = next(filter(None, map(split_named, words)), "train")
        for kind, called in _ARRAYS.items():
            if called & set(words):
                found.setdefault(split, {})[kind] = name
    if not found or any(len(pair) < 2 for pair in found.values()):
        raise UserError(
            f"{path}: which arrays hold images and labels is not clear: got {', '.join(arrays)}; "
            "image=NAME label=NAME say it"
        )
    return {split: found[split] for split in _chosen(found, wanted, str(path))}


def _pngs(file: Any, where: str, n: int) -> Iterator[bytes]:
    """The images of an array in an open .npy file, one after the other, as PNG."""
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version[0] == 1
        else np.lib.format.read_array_header_2_0
    )
    shape, by_columns, dtype = read(file)
    channels_first = len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3, 4)
    fits = len(shape) == 3 or (len(shape) == 4 and (channels_first or shape[3] in (1, 3, 4)))
    if dtype != np.uint8 or by_columns or not fits:
        raise UserError(
            f"{where}: got {dtype} of shape {shape}, valid: uint8 of shape (N,H,W), (N,H,W,C) or (N,C,H,W)"
        )
    if shape[0] != n:
        raise UserError(f"{where}: got {shape[0]} images and {n} labels")
    for _ in range(n):
        pixels = np.frombuffer(file.read(int(np.prod(shape[1:]))), np.uint8).reshape(shape[1:])
        if channels_first:
            pixels = pixels.transpose(1, 2, 0)
        buffer = io.BytesIO()
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1:] == (1,) else pixels).save(
            buffer, "PNG", compress_level=1
        )
        yield buffer.getvalue()


SOURCES: dict[str, Callable[[str, Wanted], Iterator[Row]]] = {
    "hf": _huggingface,
    "parquet": _parquet,
    "webdataset": _webdataset,
    "npz": _npz,
}


def _library(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{extra}=…: needs {name}: pip install 'noisybsd[{extra}]'") from None


def _files(source: str, key: str, pattern: str) -> list[Path]:
    """The files that a path names: itself, those in it, or those that a pattern finds."""
    path = Path(source)
    found = [path]
    if path.is_dir():
        found = sorted(path.rglob(pattern))
    elif not path.exists():
        found = sorted(map(Path, glob.glob(source, recursive=True)))  # noqa: PTH207 (an absolute pattern)
    if not found:
        inside = f" {pattern} in it" if path.is_dir() else " such file"
        raise UserError(f"{key}={source}: there is no{inside}")
    return found


def _by_split(paths: list[Path], wanted: Wanted, what: str) -> list[tuple[Path, str]]:
    """The files of the splits that are wanted, and their splits, with which their names begin, or train."""
    splits = [split_named(re.split(r"[-_.]", path.name)[0]) or "train" for path in paths]
    chosen = _chosen(splits, wanted, what)
    return [(path, split) for path, split in zip(paths, splits, strict=True) if split in chosen]


def _chosen(splits: Iterable[str], wanted: Wanted, what: str) -> list[str]:
    """Those of a source's splits that are wanted; all of them must mean train, val or test."""
    splits = list(dict.fromkeys(splits))
    for name in wanted.splits:
        if name not in splits:
            raise UserError(f"{what}: splits: {did_you_mean(name, splits)}")
    chosen = [name for name in splits if not wanted.splits or name in wanted.splits]
    for name in chosen:
        if split_named(name) is None:
            raise UserError(
                f"{what}: whether the split {name!r} is to train or to test on is not clear; "
                "splits=train,test takes those alone"
            )
    return chosen


# --- copying ----------------------------------------------------------------------------------------


def import_images(kind: str, source: str, out: Path, wanted: Wanted, on_error: str) -> str:
    """Copy a source into the new folder `out`, which appears when it is whole; says what was copied.

    Args:
        kind: of SOURCES.
        on_error: "stop" at an image that cannot be used, or "skip": leave it out and count it.

    Raises:
        UserError: names the file, the column and the row of what cannot be used.
    """
    if os.path.lexists(out):
        raise UserError(f"out={out}: is there already")
    rows = with_bar(SOURCES[kind](source, wanted), "copying images")
    try:
        with new_folder(out, "import") as temporary:
            with (temporary / MANIFEST).open("w", encoding="utf-8", newline="") as file:
                counts, problems = _copy(rows, temporary, file, wanted, on_error)
            if not counts:
                because = f": {problems[0]}" if problems else ""
                raise UserError(f"{kind}={source}: not one usable image{because}")
    except OSError as error:
        raise UserError(f"out={out}: cannot be written: {error.strerror or error}") from None
    of_splits = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    lines = [f"{shown(out)}: {of_splits} images; {len(problems)} left out"]
    lines += [f"  {shown(problem)}" for problem in problems[:LISTED]]
    how = f"recipe=own data.root={out} data.manifest={MANIFEST}"
    return "\n".join([*lines, shown(f"train on them with {how}")])


def _copy(
    rows: Iterable[Row], folder: Path, manifest: TextIO, wanted: Wanted, on_error: str
) -> tuple[Counter[str], list[str]]:
    """Write images and manifest; how many images of each split, and what is wrong with those left out."""
    counts: Counter[str] = Counter()
    problems: list[str] = []
    plan = None
    for number, row in enumerate(rows):
        if plan is None:
            plan = _Plan.of(row, wanted)
            writer = csv.writer(manifest, lineterminator="\n")
            writer.writerow(["path", *plan.labels.values(), "split", "source"])
        cells = plan.cells(row)
        try:
            content, suffix = plan.image_of(row)
        except UserError as error:
            if on_error == "stop":
                raise UserError(f"{error}; on_error=skip leaves such images out") from None
            problems.append(str(error))
            continue
        path = Path("images") / f"{number // A_FOLDER:05d}" / f"{number:08d}{suffix}"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
        split = plan.split_of(row)
        writer.writerow([path.as_posix(), *cells, split, as_text(row.place)])
        counts[split] += 1
    return counts, problems


@dataclass(frozen=True)
class _Plan:
    """Which columns of a source are what, as its first example shows.

    Args:
        image: the column of images.
        labels: column of the source: what it is called in the manifest.
        optional: those of these whose cells may be empty.
        split: the column that says the split, if any does.
    """

    image: str
    labels: dict[str, str]
    optional: set[str]
    split: str | None

    @classmethod
    def of(cls, row: Row, wanted: Wanted) -> _Plan:
        names = {name: name for name in row.columns}
        table = Table(Path(row.place), names, [])
        images = [name for name, cell in row.columns.items() if _is_image(cell)]
        image = wanted.image or (images[0] if len(images) == 1 else "")
        columns = table.label_columns(wanted.labels)
        if not columns and len(row.likely) == 1:
            columns = list(row.likely)
        for key, chosen in (("image", [image]), ("label", columns)):
            if not chosen or not set(chosen) <= names.keys():
                raise UserError(
                    f"{row.place}: which column holds the {key} is not clear: has {', '.join(names)}; "
                    f"{key}=COLUMN says it"
                )
        labels, optional = dict.fromkeys(columns, "label"), set[str]()
        if len(columns) > 1:  # annotators
            labels = {name: f"label_{i}" for i, name in enumerate(columns, start=1)}
            optional = set(columns)
        if (clean := table.only(CLEAN, "the clean labels")) is not None:
            labels[clean] = "clean_label"
            optional.add(clean)
        return cls(image, labels, optional, table.only(SPLITS, "the split"))

    def cells(self, row: Row) -> list[str]:
        """The labels of an example, as text."""
        found = []
        for column in self.labels:
            value = row.columns.get(column)
            if is_missing(value) and column in self.optional:
                found.append("")
                continue
            try:
                found.append(class_of(value))
            except ValueError as error:
                raise UserError(f"{row.place}: {column} {error}") from None
        return found

    def split_of(self, row: Row) -> str:
        """train, val or test."""
        name = str(row.columns.get(self.split)) if self.split else row.split
        split = split_named(name)
        if split is None:
            raise UserError(f"{row.place}: {self.split} is {name!r}, valid: train, val, test")
        return split

    def image_of(self, row: Row) -> tuple[bytes, str]:
        """The encoded bytes of an example's image, and the suffix of its format."""
        cell = row.columns.get(self.image)
        if isinstance(cell, dict) and cell.get("bytes") is None and cell.get("path"):
            try:
                with importlib.import_module("fsspec").open(cell["path"], "rb") as file:
                    cell = file.read()
            except Exception as error:  # a file that is gone, the network
                raise UserError(f"{row.place}: {self.image}: {first_line(error)}") from None
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            kind = type(content).__name__
            raise UserError(f"{row.place}: {self.image} is a {kind}, valid: the bytes of an image")
        try:
            with Image.open(io.BytesIO(content), formats=formats()) as image:
                kind = str(image.format).lower()
        except Exception:  # on damaged files Pillow raises nearly every type
            raise UserError(
                f"{row.place}: {self.image} is no image of a known format: {content[:12]!r}…"
            ) from None
        return content, ".jpg" if kind in ("jpeg", "mpo") else f".{kind}"


def _is_image(value: Any) -> bool:
    return isinstance(value, bytes) or (
        isinstance(value, dict) and {"bytes", "path"} <= value.keys()
    )
