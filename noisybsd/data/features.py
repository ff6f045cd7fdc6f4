"""Features of images on disk, each under a hash of its image: none is computed twice.

Dimensions: N images, A views of each, F feature width.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from noisybsd.data.images import ImageFiles
from noisybsd.errors import UserError
from noisybsd.files import user_path

KEY = 16  # bytes of a hash
HALF = 6.5e4  # the largest number that float16 holds, nearly


def image_keys(images: Tensor | ImageFiles) -> list[bytes]:
    """A hash of each image: of its pixels, or of what its file holds."""

    def key(content: object) -> bytes:
        return hashlib.blake2b(content, digest_size=KEY).digest()  # type: ignore[arg-type]

    if isinstance(images, ImageFiles):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda i: key(images.content(i)), range(len(images))))
    return [key(image.data) for image in images.cpu().contiguous().numpy()]


def read_embeddings(file: str, rows: int, manifest: object) -> Tensor:
    """Anyone's embeddings of images, one of each: (N,1,F) float16.

    Args:
        file: what data.embeddings names, a .npy of (N,F) numbers.
        rows: N, of the table whose row i is row i of the embeddings.

    Raises:
        UserError: not such a file, of another length, or not finite.
    """
    path = user_path(file, "data.embeddings")
    what = f"data.embeddings={file}"
    if not path.is_file():
        raise UserError(f"{what}: there is no such file")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{what}: cannot be read as a .npy file: {error}") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "fiu":
        shape = getattr(array, "shape", "an archive")
        raise UserError(f"{what}: holds {shape}; valid: a .npy of numbers, a row for each image")
    if len(array) != rows:
        raise UserError(
            f"{what}: has {len(array):,} rows, {manifest} has {rows:,}; row i of the one is to be row i of "
            "the other"
        )
    for first in range(0, rows, 8192):
        bad = ~(np.abs(array[first : first + 8192]) <= HALF).all(axis=1)
        if bad.any():
            row = first + int(bad.argmax())
            raise UserError(f"{what}: row {row} holds NaN, or numbers beyond ±{HALF:,.0f}")
    return torch.from_numpy(array.astype(np.float16))[:, None]


class FeatureStore:
    """The features of one backbone and one kind of views, in a folder: a file of keys and one of rows.

    Rows are appended, the row before its key, so that a killed process leaves whole rows behind, and the
    next one goes on after them.

    Args:
        folder: made if it is not there.
        shape: (A,F), of a row, float16.

    Raises:
        UserError: the folder cannot be made or written to.
    """

    def __init__(self, folder: Path, shape: tuple[int, int]):
        self.folder, self.shape = folder, shape
        self._row_bytes = 2 * shape[0] * shape[1]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._keys, self._rows = (folder / name for name in ("keys.bin", "rows.f16"))
            for path in (self._keys, self._rows):
                path.touch()
        except OSError as error:
            raise UserError(
                f"network.cache: {folder} cannot be written to ({error.strerror}); network.cache=FOLDER "
                "names another place for the features"
            ) from None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store, after whoever else does."""
        with self._keys.open("rb") as handle:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def known(self) -> dict[bytes, int]:
        """The row of each key."""
        keys = self._keys.read_bytes()
        return {keys[i * KEY : (i + 1) * KEY]: i for i in range(self._count())}

    def _count(self) -> int:
        """How many rows are whole and have their key."""
        keys, rows = (path.stat().st_size for path in (self._keys, self._rows))
        return min(keys // KEY, rows // self._row_bytes)

    def append(self, keys: Sequence[bytes], rows: Tensor) -> None:
        """Add the features (n,A,F) of n images. The caller holds the store."""
        count = self._count()
        assert rows.shape[1:] == self.shape and len(keys) == len(rows)
        try:
            for path, size, content in (
                (self._rows, self._row_bytes, rows.half().cpu().contiguous().numpy().tobytes()),
                (self._keys, KEY, b"".join(keys)),
            ):
                with path.open("r+b") as file:
                    file.seek(count * size)  # over what a killed process left half-written
                    file.write(content)
                    file.truncate()
        except OSError as error:
            raise UserError(
                f"network.cache: {self.folder}: {error.strerror}; network.cache=FOLDER names another place "
                "for the features"
            ) from None

    def rows(self, keys: Sequence[bytes]) -> Tensor:
        """The features of images whose keys are known, (N,A,F) float16."""
        known = self.known()
        if not keys:
            return torch.empty(0, *self.shape, dtype=torch.float16)
        stored = np.memmap(self._rows, np.float16, "r", shape=(len(known), *self.shape))
        return torch.from_numpy(stored[[known[key] for key in keys]])
