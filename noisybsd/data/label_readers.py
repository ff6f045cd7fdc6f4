"""Files that may hold labels, read as tables whatever their kind: NumPy, torch, CSV, Parquet, text.

Dimensions: N samples.
"""

from __future__ import annotations

import _codecs
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from noisybsd.data.images import image_suffixes
from noisybsd.data.names import ImageNames, whole_number
from noisybsd.data.tables import Table, read_table
from noisybsd.errors import UserError, first_line


class _Indices(Sequence[str]):
    """Where elements of an array are in it: `index 3`."""

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, i: Any) -> Any:
        return f"index {i}"


def _arrays(path: Path, content: Any) -> Table:
    """Arrays by name, or one array of labels; text as lists of strings."""
    columns = content if isinstance(content, dict) else {"label": content}
    read: dict[str, Any] = {}
    for name, value in columns.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "US" and value.ndim == 1:
            value = value.tolist()
        elif isinstance(value, list | tuple):
            plain = all(type(each) is int for each in value)
            value = np.array(value, object) if plain else list(value)
        read[str(name)] = value
    return Table(path, read, _Indices())


def _read_numpy(path: Path, images: ImageNames | None) -> Table:
    return _arrays(path, load_numpy(path))


def _read_torch(path: Path, images: ImageNames | None) -> Table:
    # what CIFAR-N's files hold, which numpy 1 wrote: the constructor has another name in numpy 2
    reconstruct = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    allowed: list[Any] = [
        reconstruct,
        (reconstruct, "numpy.core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        np.dtypes.Int64DType,
        _codecs.encode,
    ]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on other protocols of pickle: read, or refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged pickle can raise anything
        raise UserError(
            f"{path}: damaged, or holds more than tensors, lists and int64 arrays; other objects "
            "are not loaded, because they could run code"
        ) from None
    if isinstance(content, dict) and content and all(isinstance(v, int) for v in content.values()):
        labels = list(content.values())
        return Table(path, {"path": list(content), "label": np.array(labels, object)}, _Indices())
    if isinstance(content, dict):
        content = {str(name): _plain(value) for name, value in content.items()}
    return _arrays(path, _plain(content))


def _plain(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


def _read_table(path: Path, images: ImageNames | None) -> Table:
    return read_table(path, lambda cell: _names_image(cell, images))


def _names_image(cell: str, images: ImageNames | None) -> bool:
    looks_so = Path(cell).suffix.lower() in image_suffixes()
    return looks_so or (
        images is not None and whole_number(cell) is None and bool(images.find(cell))
    )


def _read_text(path: Path, images: ImageNames | None) -> Table:
    lines = [line.strip() for line in text_lines(path)]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(f"{path}: holds no numbers")
    rows = [f"line {i + 1}" for i in range(len(lines))]
    parts = [re.split(r"[\t,;|]\s*|\s+(?=\S+$)", line) for line in lines]
    if all(len(part) == 2 and _names_image(part[0], images) for part in parts):
        columns = dict(zip(("path", "label"), map(list, zip(*parts, strict=True)), strict=True))
        return Table(path, columns, rows)
    return Table(path, {"label": lines}, rows)


LABEL_READERS: dict[str, Callable[[Path, ImageNames | None], Table]] = {
    ".npy": _read_numpy,
    ".npz": _read_numpy,
    ".pt": _read_torch,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".parquet": _read_table,
    ".txt": _read_text,
}


def existing(path: str | Path, suffixes: Sequence[str] | Mapping[str, Any], what: str) -> Path:
    path = Path(path).expanduser()
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{path}: got suffix {path.suffix!r}, {what} end in {', '.join(suffixes)}")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    return path


def load_numpy(path: Path) -> Any:
    """An array, or a dict of arrays; never a pickled object."""
    try:
        content = np.load(path, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            return content
        with content:
            return dict(content)
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{path}: not readable as numpy arrays: {first_line(error)}") from None


def text_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8.

    Raises:
        UserError: it is not one, or not there.
    """
    try:
        return path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as text: {error}") from None
