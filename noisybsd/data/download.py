"""Fetching and unpacking files: resumed where it broke, checked, never half-written.

A download grows in FILE.part and becomes FILE only when it is whole and its checksum holds.
torchvision's downloader cannot resume, which matters at 17 GB, so all downloads come through here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import logging
import os
import shutil
import socket
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from noisybsd.data.cards import Download
from noisybsd.errors import UserError

log = logging.getLogger("noisybsd")

# keeps owners and modes of an archive out; Python has it from 3.11.4
_DATA_ALONE: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}

CHUNK = 1 << 20
ATTEMPTS = 5
TIMEOUT = 30.0  # seconds without a byte


_DROPPED = (ConnectionError, TimeoutError)


class _Broken(Exception):
    """The connection ended too early: worth another attempt."""


def checksum(path: Path, algorithm: str) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def verify(path: Path, expected: str | None) -> None:
    """Compare a file with `algorithm:hexdigest`; None accepts any.

    Raises:
        UserError: names the file and both digests.
    """
    if expected is None:
        return
    algorithm, digest = expected.split(":")
    found = checksum(path, algorithm)
    if found != digest:
        raise UserError(f"{path}: {algorithm} is {found}, expected {digest}: not the official file")


def download(
    url: str,
    path: Path,
    *,
    expected: str | None = None,
    size: int | None = None,
    pause: float = 1.0,
) -> Path:
    """Download `url` to `path`, resuming what an earlier attempt left in PATH.part.

    Args:
        expected: `algorithm:hexdigest`, e.g. `sha256:ab12…`.
        size: bytes, for the progress display where the server does not say.
        pause: seconds before the second attempt, doubled for each further one.

    Raises:
        UserError: no network, no such file on the server, no room on the disk, a wrong checksum
            (the file is removed), a connection that keeps breaking (the next call resumes it).
    """
    part = path.with_name(path.name + ".part")
    _make(path.parent)
    left_over = part.exists()
    by_hand = f"or put the file at {path} yourself"
    for attempt in range(ATTEMPTS):
        try:
            _fetch(url, part, size)
            break
        except (_Broken, urllib.error.URLError, http.client.HTTPException, *_DROPPED) as error:
            reason = getattr(error, "reason", error)
            if isinstance(error, urllib.error.HTTPError):
                reason = f"HTTP {error.code} {error.reason}"
                if error.code < 500 and error.code != 429:  # others pass: a busy server
                    raise UserError(f"{url}: {reason}; {by_hand}") from None
            if isinstance(reason, socket.gaierror | ConnectionRefusedError):
                raise UserError(f"{url}: no connection ({reason}); {by_hand}") from None
            if attempt == ATTEMPTS - 1:
                raise UserError(
                    f"{url}: the connection broke {ATTEMPTS} times ({reason}); "
                    f"run it again to continue from {part}, {by_hand}"
                ) from None
            time.sleep(pause * 2**attempt)
        except OSError as error:
            raise UserError(f"{part}: cannot be written: {error.strerror or error}") from None
    try:
        verify(part, expected)
    except UserError as error:
        part.unlink()
        if left_over:  # perhaps the pieces are of two versions: once more, from the start
            return download(url, path, expected=expected, size=size, pause=pause)
        raise UserError(f"{error} (from {url}; removed); {by_hand}") from None
    part.replace(path)
    return path


def _fetch(url: str, part: Path, size: int | None) -> None:
    """Append to `part` what is missing of it."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "noisybsd", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        # nothing comes after what is here: it is whole, or it is of another file
        if error.headers.get("Content-Range", "").rpartition("/")[2] != str(have):
            part.unlink()
            _fetch(url, part, size)
        return
    with response:
        continues = response.status == 206
        start = have if continues else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else size
        with part.open("ab" if continues else "wb") as file:
            _copy(response, file, part.name.removesuffix(".part"), start, total)
            file.flush()
            os.fsync(file.fileno())
    if length and part.stat().st_size != total:
        raise _Broken(f"{part.stat().st_size} of {total} bytes")


def _copy(
    source: http.client.HTTPResponse, target: IO[bytes], name: str, start: int, total: int | None
) -> None:
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(name, total=total, completed=start)
        while True:
            try:
                chunk = source.read1(CHUNK)  # what is there: an interruption loses nothing
            except http.client.IncompleteRead as error:
                target.write(error.partial)
                raise _Broken("it ended early") from None
            except (http.client.HTTPException, OSError) as error:
                raise _Broken(str(error)) from None
            if not chunk:
                return
            target.write(chunk)
            progress.advance(task, len(chunk))


def fetch(item: Download, root: Path) -> None:
    """Get what a card's download makes into `root`: from the archive, if that lies there already.

    Does nothing where it is there, perhaps since another process has fetched it.

    Raises:
        UserError: see `download` and `unpack`.
    """
    path = root / item.file
    with _alone(root):
        if (root / item.makes).exists():
            return
        fetched = not path.exists()
        if fetched:
            download(item.url, path, expected=item.checksum, size=item.bytes)
        else:
            verify(path, item.checksum)
        if item.unpack is not None:
            if item.unpack not in unpack(path, root):
                raise UserError(f"{path}: unpacked, but there is no {item.unpack} in it")
            if fetched:  # a file that someone put there stays
                path.unlink()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process fetches into `folder`: they would write into one file."""
    _make(folder)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("waiting for another process that downloads into %s", folder)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from None


def unpack(archive: Path, folder: Path) -> list[str]:
    """Unpack a tar or zip archive into `folder`; each top-level entry appears whole or not at all.

    Returns:
        The top-level entries.

    Raises:
        UserError: a damaged archive, one with members that lead outside the folder, no room.
    """
    _make(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpack-") as temporary:
        try:
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as bundle:
                    _refuse_outside(archive, bundle.namelist())
                    bundle.extractall(temporary)
            else:
                with tarfile.open(archive) as bundle:
                    _refuse_outside(archive, bundle.getnames())
                    _refuse_links(archive, bundle.getmembers())
                    bundle.extractall(temporary, **_DATA_ALONE)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno:  # gzip's own has none
                raise UserError(f"{folder}: cannot unpack {archive}: {error.strerror}") from None
            raise UserError(f"{archive}: damaged or not an archive: {error}") from None
        entries = sorted(entry.name for entry in Path(temporary).iterdir())
        for name in entries:
            if (folder / name).exists():
                raise UserError(f"{folder / name}: is there already; remove it to unpack {archive}")
            shutil.move(Path(temporary) / name, folder / name)
    return entries


def _refuse_links(archive: Path, members: list[tarfile.TarInfo]) -> None:
    for member in members:
        if not (member.isreg() or member.isdir()):
            raise UserError(
                f"{archive}: refused to unpack: member {member.name!r} is neither file nor folder"
            )


def _refuse_outside(archive: Path, names: list[str]) -> None:
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{archive}: refused to unpack: member {name!r} leads outside")
