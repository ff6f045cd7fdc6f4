"""Unpacking tar and zip archives: whole or not at all, and nothing beyond what they should hold."""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
import os
import shutil
import tarfile
import zipfile
import zlib
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from noisybsd.data.names import as_text
from noisybsd.data.temporary import temporary_folder
from noisybsd.errors import UserError, first_line

# keeps owners and modes of an archive out; Python has it from 3.11.4
_DATA_ALONE: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}

DEEPEST = 64  # folders within each other
EXPANDS = 100  # times its own size that an archive's content may have ...
ALLOWED = 1 << 28  # ... beyond these bytes, which any may have
_BLOCK = tarfile.BLOCKSIZE
# what Python's libraries raise on damaged bytes
_FAULTS = (
    *(zlib.error, lzma.LZMAError, EOFError, tarfile.TarError, zipfile.BadZipFile),
    *(ValueError, OverflowError, KeyError, IndexError, RecursionError),
)
_OTHERS = {b"7z\xbc\xaf": "7z", b"Rar!": "rar", b"\x28\xb5\x2f\xfd": "zstd"}


class Damaged(UserError):
    """An archive that cannot be unpacked because its bytes are not right."""


def unpack(archive: Path, folder: Path, keep: str | None = None) -> list[str]:
    """Unpack a tar or zip archive into `folder`; each top-level entry appears whole or not at all.

    Args:
        keep: the one top-level entry that is wanted; None: all.

    Returns:
        The top-level entries that are in `folder` now.

    Raises:
        Damaged: a damaged or truncated archive.
        UserError: one that is encrypted, or packed in a way that Python cannot unpack, or with members
            that lead outside the folder; no room.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder, "unpack") as temporary:
            content = temporary / "content"
            content.mkdir()
            _extract(archive, content)
            entries = sorted(entry.name for entry in content.iterdir())
            if keep is not None and keep not in entries:
                raise Damaged(f"{archive}: unpacked, but there is no {keep} in it")
            entries = [name for name in entries if keep in (None, name)]
            for name in entries:
                if os.path.lexists(folder / name):
                    raise UserError(
                        f"{folder / name}: is there already; remove it to unpack {archive}"
                    )
                shutil.move(content / name, folder / name)
        return entries
    except OSError as error:
        raise UserError(f"{folder}: cannot unpack {archive}: {error.strerror or error}") from None


def _extract(archive: Path, target: Path) -> None:
    with archive.open("rb") as file:
        start = file.read(6)
    for mark, name in _OTHERS.items():
        if start.startswith(mark):
            raise UserError(
                f"{archive}: a {name} archive, which Python cannot unpack: unpack it by hand"
            )
    try:
        if start[:4] in (b"PK\3\4", b"PK\5\6"):
            _extract_zip(archive, target)
        else:
            _extract_tar(archive, target, start)
    except UserError:
        raise
    except (OSError, *_FAULTS) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise Damaged(f"{archive}: damaged or not an archive: {first_line(error)}") from None


# --- zip ----------------------------------------------------------------------------------------


def _extract_zip(archive: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as bundle:
            members = bundle.infolist()
            for member in members:
                _refuse_name(archive, member.filename)
                if member.flag_bits & 1:
                    raise UserError(
                        f"{archive}: member {as_text(member.filename)!r} is encrypted: unpack it by hand, "
                        "with its password"
                    )
            size = sum(member.file_size for member in members)
            _refuse_bomb(archive, size, size, target)
            bundle.extractall(target)
    except NotImplementedError as error:
        raise UserError(
            f"{archive}: packed in a way that Python cannot unpack ({first_line(error)}): unpack it by hand"
        ) from None


# --- tar ----------------------------------------------------------------------------------------


class _Watched:
    """A tar's bytes, of which the last block read is known: at the end, that must be an end marker."""

    def __init__(self, stream: IO[bytes]):
        self.stream = stream
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        self.last = self.stream.read(size)
        return self.last

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()


def _extract_tar(archive: Path, target: Path, start: bytes) -> None:
    """Extract member by member, once through; then see that the archive ends as it should."""
    with _opened(archive, start) as stream:
        watched, size = _Watched(stream), 0
        with tarfile.open(fileobj=watched, mode="r:") as bundle:  # type: ignore[call-overload]
            for member in bundle:
                _refuse_name(archive, member.name)
                if not (member.isreg() or member.isdir()):
                    raise UserError(
                        f"{archive}: refused to unpack: member {as_text(member.name)!r} is neither file nor "
                        "folder"
                    )
                size += member.size
                _refuse_bomb(archive, size, member.size, target)
                member.mtime = _date(member.mtime)
                bundle.extract(member, target, **_DATA_ALONE)
                bundle.members = []  # or else a million of them stay in memory
        if watched.last != bytes(_BLOCK):
            raise Damaged(f"{archive}: damaged or truncated: it does not end as a tar does")
        for rest in iter(partial(stream.read, 1 << 20), b""):
            if rest.strip(b"\0"):
                raise Damaged(f"{archive}: damaged: there is more after its end")


def _opened(archive: Path, start: bytes) -> Any:
    """The bytes of a tar, whatever compresses it."""
    if start.startswith(b"\x1f\x8b"):
        return gzip.open(archive)
    if start.startswith(b"BZh"):
        return bz2.open(archive)
    if start.startswith((b"\xfd7zXZ", b"\x5d\0\0")):
        return lzma.open(archive)
    return archive.open("rb")


def _date(seconds: float) -> float:
    """A member's date, as far as a file system can hold it."""
    return seconds if math.isfinite(seconds) and 0 <= seconds < 1 << 32 else 0


# --- what is refused ----------------------------------------------------------------------------


def _refuse_name(archive: Path, name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{archive}: refused to unpack: member {as_text(name)!r} leads outside")
    if len(path.parts) > DEEPEST:
        raise UserError(
            f"{archive}: refused to unpack: member {as_text(name)[:60]!r}… is {len(path.parts)} folders "
            f"deep, at most {DEEPEST} are accepted"
        )


def _refuse_bomb(archive: Path, size: int, needed: int, target: Path) -> None:
    """Refuse content of `size` bytes so far that is out of proportion to the archive, or has no room.

    Args:
        needed: the bytes that are not on the disk yet.
    """
    packed = archive.stat().st_size
    if size > ALLOWED + EXPANDS * packed:
        raise UserError(
            f"{archive}: refused to unpack: {packed:,} bytes that become {size:,} or more"
        )
    free = shutil.disk_usage(target).free
    if needed > free:
        raise UserError(
            f"{target.parent.parent}: no room to unpack {archive}: {free:,} bytes are free"
        )
