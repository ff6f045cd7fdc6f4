"""Fetching files: resumed where it broke, checked, never half-written.

A download grows in FILE.part and becomes FILE only when it is whole and its checksum holds.
torchvision's downloader cannot resume, which matters at 17 GB, so all downloads come through here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from noisybsd.data.archives import Damaged, unpack
from noisybsd.data.cards import Download
from noisybsd.errors import UserError
from noisybsd.files import naming

log = logging.getLogger("noisybsd")

CHUNK = 1 << 20
ATTEMPTS = 5
TIMEOUT = 30.0  # seconds without a byte
STALL = (
    30.0  # seconds in which an answer must begin, and in which it must bring SLOWEST bytes a second
)
SLOWEST = 1024
SPARE = 1 << 30  # bytes of the disk that a download of unknown length leaves free

_DROPPED = (ConnectionError, TimeoutError)


class _Broken(Exception):
    """The connection ended too early, or another file came: worth another attempt."""


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
        size: bytes that the file must have.
        pause: seconds before the second attempt, doubled for each further one.

    Raises:
        UserError: no network, no such file on the server, something else in its place (a login page), no
            room on the disk, a wrong size or checksum (the file is removed), a connection that keeps
            breaking (the next call resumes it).
    """
    part = _Part(path, url, expected, size)
    _make(path.parent)
    left_over = part.path.exists()
    shown, by_hand = without_password(url), f"or put the file at {path} yourself"
    for attempt in range(ATTEMPTS):
        try:
            _fetch(part)
            break
        except UserError as error:
            raise UserError(f"{error}; {by_hand}") from None
        except (http.client.InvalidURL, ValueError) as error:  # of the card or of a redirect
            raise UserError(
                f"{shown}: not a usable address: {_told(error, url)}; {by_hand}"
            ) from None
        except (_Broken, urllib.error.URLError, http.client.HTTPException, *_DROPPED) as error:
            reason = getattr(error, "reason", error)
            if isinstance(error, urllib.error.HTTPError):
                reason = f"HTTP {error.code} {_told(error.reason, url)}"
                if error.code < 500 and error.code != 429:  # others pass: a busy server
                    raise UserError(f"{shown}: {reason}; {by_hand}") from None
            if isinstance(reason, socket.gaierror | ConnectionRefusedError):
                raise UserError(f"{shown}: no connection ({reason}); {by_hand}") from None
            if attempt == ATTEMPTS - 1:
                raise UserError(
                    f"{shown}: the connection broke {ATTEMPTS} times ({_told(reason, url)}); "
                    f"run it again to continue from {part.path}, {by_hand}"
                ) from None
            time.sleep(pause * 2**attempt)
        except OSError as error:
            raise UserError(f"{part.path}: cannot be written: {error.strerror or error}") from None
    try:
        part.check()
    except UserError as error:
        part.remove()
        if left_over:  # perhaps the pieces are of two versions: once more, from the start
            return download(url, path, expected=expected, size=size, pause=pause)
        raise UserError(f"{error} (from {shown}; removed); {by_hand}") from None
    part.path.replace(path)
    part.remove()
    return path


class _Part:
    """What there is of a file so far, PATH.part, and, in PATH.part.json, which version of it that is.

    Args:
        path: where the whole file goes.
        expected: its checksum, `algorithm:hexdigest`.
        size: its bytes.
    """

    def __init__(self, path: Path, url: str, expected: str | None, size: int | None):
        self.path = path.with_name(path.name + ".part")
        self.url = url
        self.expected = expected
        self.size = size
        self._note = path.with_name(path.name + ".part.json")

    def have(self) -> int:
        """Bytes to continue from; 0 where nothing would tell another version of the file from this one.

        Raises:
            UserError: it is a link, through which a download would write elsewhere.
        """
        if self.path.is_symlink():
            raise UserError(f"{self.path}: is a symbolic link; remove it")
        size = self.path.stat().st_size if self.path.exists() else 0
        return size if self.expected or self.version() else 0

    def version(self) -> str | None:
        """The server's mark of the version that the bytes are of: its ETag, or its date."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads(self._note.read_text("utf-8"))
            if note["url"] == self.url:
                return str(note["version"])
        return None

    def begin(self, version: str | None) -> None:
        """Note the version of a file that begins anew."""
        self._note.unlink(missing_ok=True)
        if version is not None:
            self._note.write_text(json.dumps({"url": self.url, "version": version}), "utf-8")

    def check(self) -> None:
        """Compare size and checksum with what they should be.

        Raises:
            UserError: one of them differs, or, where neither is known, it is a web page.
        """
        with self.path.open("rb") as file:
            start = file.read(512).lstrip().lower()
        if self.expected is None and start.startswith((b"<!doctype html", b"<html")):
            raise UserError(f"{self.path}: is a web page, not the file")
        found = self.path.stat().st_size
        if self.size is not None and found != self.size:
            raise UserError(f"{self.path}: has {found:,} bytes, expected {self.size:,}")
        verify(self.path, self.expected)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


def without_password(url: str) -> str:
    """An address without the user name and password that it may hold."""
    return re.sub(r"//[^/?#]*@", "//", url)


def _told(reason: object, url: str) -> str:
    """What a library says of `url`, on one line, and without its user name and password."""
    text = " ".join(str(reason).split())
    user = re.search(r"//([^/?#]*)@", url)
    for word in filter(None, user[1].split(":") if user else []):
        text = text.replace(word, "***")
    return text


class _Punctual(http.client.HTTPConnection):
    """A connection whose answer must begin within STALL seconds, however it trickles in."""

    def getresponse(self) -> http.client.HTTPResponse:
        timer = threading.Timer(STALL, self._cut)
        timer.daemon = True
        timer.start()
        try:
            return super().getresponse()
        finally:
            timer.cancel()

    def _cut(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            self.sock.shutdown(socket.SHUT_RDWR)


class _PunctualSecure(_Punctual, http.client.HTTPSConnection):
    pass


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Punctual, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PunctualSecure, req)


def _fetch(part: _Part) -> None:
    """Append to `part` what is missing of it."""
    have, version = part.have(), part.version()
    headers = {"User-Agent": "noisybsd", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if version:
            headers["If-Range"] = version
    request = urllib.request.Request(part.url, headers=headers)
    try:
        response = urllib.request.build_opener(_Http, _Https).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        # nothing comes after what is here: it is whole, or it is of another file
        if error.headers.get("Content-Range", "").rpartition("/")[2] != str(have):
            part.remove()
            _fetch(part)
        return
    with response:
        start, total = _place(response, have, version)
        _refuse_other_files(response, part, total)
        if start == 0:
            part.begin(_version(response))
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | (0 if start else os.O_TRUNC)
        with open(os.open(part.path, flags, 0o666), "ab" if start else "wb") as file:  # noqa: PTH123
            _copy(response, file, part, start, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and part.path.stat().st_size != total:
        raise _Broken(f"{part.path.stat().st_size} of {total} bytes")


def _place(
    response: http.client.HTTPResponse, have: int, version: str | None
) -> tuple[int, int | None]:
    """Where in the file an answer begins, and the file's bytes, if the server says so.

    Raises:
        _Broken: it begins elsewhere than asked for, or is of another version of the file.
        UserError: it is no file.
    """
    length = response.headers.get("Content-Length")
    if length is not None and not length.isdecimal():
        raise UserError(
            f"{without_password(response.url)}: answers Content-Length: {length[:40]!r}"
        )
    if response.status == 200:
        return 0, None if length is None else int(length)
    if response.status != 206:
        raise UserError(
            f"{without_password(response.url)}: HTTP {response.status} {response.reason}: no file in it"
        )
    found = re.fullmatch(
        r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip()
    )
    if found is None or int(found[1]) not in (0, have):
        raise _Broken(f"the server sends another part than from byte {have}")
    if version is not None and int(found[1]) and _version(response) not in (None, version):
        raise _Broken("the file has changed on the server")
    end = int(found[2]) + 1
    return int(found[1]), end if found[3] == "*" else int(found[3])


def _version(response: http.client.HTTPResponse) -> str | None:
    """What marks the version of the file: its ETag, unless that is a weak one, or its date."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _refuse_other_files(response: http.client.HTTPResponse, part: _Part, total: int | None) -> None:
    """Refuse a web page, a file of another size, and one for which there is no room.

    Raises:
        UserError: says which.
    """
    shown = without_password(part.url)
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        to = "" if response.url == part.url else f", at {without_password(response.url)}"
        raise UserError(
            f"{shown}: the server answers with a web page{to}, not with the file: perhaps it wants you to "
            "log in or to agree to terms; open the address in a browser"
        )
    if total is None:
        if part.size is None and part.expected is None and not response.chunked:
            raise UserError(
                f"{shown}: neither the server nor the card says how long the file is, so nobody can tell "
                "whether it is whole"
            )
        return
    if part.size is not None and total != part.size:
        raise UserError(
            f"{shown}: the server's file has {total:,} bytes, expected {part.size:,}: not the official file"
        )
    if total == 0:
        raise UserError(f"{shown}: the server's file is empty")
    there = part.path.stat().st_size if part.path.exists() else 0
    free = shutil.disk_usage(part.path.parent).free
    if total - there > free:
        raise UserError(f"{part.path}: no room: the file has {total:,} bytes, {free:,} are free")


def _copy(
    source: http.client.HTTPResponse,
    target: IO[bytes],
    part: _Part,
    start: int,
    total: int | None,
) -> None:
    """Copy the rest of an answer, as long as it comes fast enough and is no longer than it may be."""
    console = Console(stderr=True)
    most, size = total if total is not None else part.size, start
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        name = part.path.name.removesuffix(".part")
        task = progress.add_task(name, total=most, completed=start)
        since, arrived = time.monotonic(), 0
        while True:
            try:
                chunk = source.read1(CHUNK)  # what is there: an interruption loses nothing
            except http.client.IncompleteRead as error:
                target.write(error.partial)
                raise _Broken("it ended early") from None
            except (http.client.HTTPException, OSError, ValueError) as error:
                raise _Broken(str(error)) from None
            if not chunk:
                return
            size += len(chunk)
            if most is not None and size > most:
                raise UserError(
                    f"{without_password(part.url)}: sends more than the {most:,} bytes of the file"
                )
            if most is None and shutil.disk_usage(part.path.parent).free < SPARE:
                raise UserError(f"{part.path}: no room: the server sends without end")
            target.write(chunk)
            progress.advance(task, len(chunk))
            arrived += len(chunk)
            if (passed := time.monotonic() - since) > STALL:
                if arrived < SLOWEST * passed:
                    raise _Broken(f"{arrived:,} bytes in {passed:.0f} s")
                since, arrived = time.monotonic(), 0


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
        if item.unpack is None:
            return
        try:
            unpack(path, root, item.unpack)
        except Damaged as error:
            if not fetched:
                raise UserError(
                    f"{error}; get it again from {without_password(item.url)}"
                ) from None
            path.unlink()
            raise UserError(f"{error}; removed: run it again to download it anew") from None
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
    with naming(f"{folder}: cannot be made"):
        folder.mkdir(parents=True, exist_ok=True)
