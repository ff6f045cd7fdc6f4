"""Downloads against a local server that cuts, lies and refuses; archives that try to escape."""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.local_server import Server, serving

from noisybsd.data.cards import Download
from noisybsd.data.download import ATTEMPTS, download, fetch, unpack
from noisybsd.errors import UserError

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({"/file": CONTENT}) as server:
        yield server


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_arrives_and_nothing_else(server: Server, tmp_path: Path) -> None:
    path = download(server.url + "/file", tmp_path / "sub" / "file", expected=SHA)
    assert path.read_bytes() == CONTENT
    assert files(tmp_path / "sub") == ["file"]


def test_a_cut_download_resumes_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.cut = 400_000
    download(server.url + "/file", tmp_path / "file", expected=SHA, pause=0)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=400000-", "bytes=800000-"]


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "file.part").write_bytes(b"x" * 1000)
    download(server.url + "/file", tmp_path / "file", expected=SHA)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_what_an_earlier_call_left_is_continued(server: Server, tmp_path: Path) -> None:
    server.cut = 1000
    with pytest.raises(UserError, match=f"broke {ATTEMPTS} times.*file.part"):
        download(server.url + "/file", tmp_path / "file", expected=SHA, pause=0)
    assert files(tmp_path) == ["file.part"]
    assert (tmp_path / "file.part").stat().st_size == 1000 * ATTEMPTS
    server.cut, server.asked = None, []
    download(server.url + "/file", tmp_path / "file", expected=SHA)
    assert server.asked == [f"bytes={1000 * ATTEMPTS}-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_complete_part_needs_no_second_copy(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    download(server.url + "/file", tmp_path / "file", expected=SHA)
    assert len(server.asked) == 1
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"another version", b"x" * (len(CONTENT) + 5)])
def test_a_part_of_another_file_is_thrown_away(server: Server, tmp_path: Path, left: bytes) -> None:
    (tmp_path / "file.part").write_bytes(left)
    download(server.url + "/file", tmp_path / "file", expected=SHA)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = b"something else"
    with pytest.raises(UserError, match=r"sha256 is .* expected .*removed"):
        download(server.url + "/file", tmp_path / "file", expected=SHA)
    assert files(tmp_path) == []


def test_a_server_that_cuts_and_lies_is_given_up(server: Server, tmp_path: Path) -> None:
    server.files["/file"], server.cut = b"something else", 4
    (tmp_path / "file.part").write_bytes(b"some")
    with pytest.raises(UserError, match="removed"):
        download(server.url + "/file", tmp_path / "file", expected=SHA, pause=0)
    assert files(tmp_path) == []


def test_a_full_disk_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"file\.part: cannot be written: No space left"):
        download(server.url + "/file", tmp_path / "file", expected=SHA, pause=60)


def test_404_says_what_to_put_where(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone: HTTP 404 .*put the file at .*file yourself"):
        download(server.url + "/gone", tmp_path / "file")
    assert files(tmp_path) == []


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.busy = 2
    download(server.url + "/file", tmp_path / "file", expected=SHA, pause=0)
    assert (tmp_path / "file").read_bytes() == CONTENT and len(server.asked) == 3
    server.busy = ATTEMPTS
    with pytest.raises(UserError, match=f"broke {ATTEMPTS} times .HTTP 503"):
        download(server.url + "/file", tmp_path / "other", pause=0)


def test_two_that_want_the_same_fetch_it_once(server: Server, tmp_path: Path) -> None:
    server.pause = 0.2
    item = Download(file="file", url=server.url + "/file", checksum=SHA)
    threads = [threading.Thread(target=fetch, args=(item, tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files(tmp_path) == ["file"] and len(server.asked) == 1


def test_an_interruption_keeps_what_has_come(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow server: what came in small pieces is in the file before a whole chunk is there."""
    read1, pieces = http.client.HTTPResponse.read1, 0

    def interrupted(self: http.client.HTTPResponse, n: int = -1) -> bytes:
        nonlocal pieces
        pieces += 1
        if pieces == 4:
            raise KeyboardInterrupt
        return read1(self, 1000)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(http.client.HTTPResponse, "read1", interrupted)
        download(server.url + "/file", tmp_path / "file", expected=SHA)
    assert (tmp_path / "file.part").stat().st_size == 3000


def test_a_root_that_cannot_be_made_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "root").write_text("a file")
    item = Download(file="sub/file", url=server.url + "/file")
    with pytest.raises(UserError, match="root: cannot be made: File exists"):
        fetch(item, tmp_path / "root")
    assert server.asked == []


def test_no_network_says_so_at_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match="no connection"):
        download(f"http://127.0.0.1:{port}/file", tmp_path / "file", pause=60)


def tar(path: Path, *members: tuple[str, bytes | None]) -> Path:
    """A tar file of (name, content); content None makes a symbolic link to /etc."""
    with tarfile.open(path, "w:gz") as bundle:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc"
                bundle.addfile(info)
            else:
                info.size = len(content)
                bundle.addfile(info, io.BytesIO(content))
    return path


def test_unpack_tar_and_zip(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", ("top/one.txt", b"1"), ("top/deep/two.txt", b"2"))
    assert unpack(archive, tmp_path / "out") == ["top"]
    assert (tmp_path / "out/top/deep/two.txt").read_bytes() == b"2"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as bundle:
        bundle.writestr("other/one.txt", "1")
    assert unpack(tmp_path / "a.zip", tmp_path / "out") == ["other"]
    assert files(tmp_path / "out") == ["other", "top"]


@pytest.mark.parametrize("name", ["../evil", "/evil", "top/../../evil"])
def test_members_outside_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"refused to unpack.*evil"):
        unpack(tar(tmp_path / "a.tar.gz", (name, b"x")), tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as bundle:
        bundle.writestr(name, "x")
    with pytest.raises(UserError, match=r"refused to unpack.*evil"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert files(tmp_path / "out") == []


def test_links_outside_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="refused to unpack"):
        unpack(tar(tmp_path / "a.tar.gz", ("link", None)), tmp_path / "out")


def test_a_damaged_archive_leaves_nothing(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", ("one", b"1" * 5000), ("two", bytes(range(256)) * 99))
    archive.write_bytes(archive.read_bytes()[:-60])
    with pytest.raises(UserError, match=r"a\.tar\.gz: damaged"):
        unpack(archive, tmp_path / "out")
    assert files(tmp_path / "out") == []


@pytest.mark.parametrize("at", [20, 100, 300])
def test_flipped_bytes_are_a_damaged_archive(tmp_path: Path, at: int) -> None:
    noise = bytes(hashlib.sha512(bytes([i])).digest()[0] for i in range(200)) * 5
    archive = tar(tmp_path / "a.tar.gz", ("one", noise), ("two", noise[::-1]))
    content = bytearray(archive.read_bytes())
    content[at : at + 30] = b"\xff" * 30
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tar\.gz: damaged"):
        unpack(archive, tmp_path / "out")
    assert files(tmp_path / "out") == []


def test_no_room_to_unpack_is_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    archive = tar(tmp_path / "a.tar.gz", ("one", b"1"))
    monkeypatch.setattr(tarfile.TarFile, "extractall", full)
    with pytest.raises(UserError, match=r"out: cannot unpack .*a\.tar\.gz: No space left"):
        unpack(archive, tmp_path / "out")


def test_unpack_does_not_overwrite(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", ("top/one.txt", b"new"))
    (tmp_path / "out/top").mkdir(parents=True)
    with pytest.raises(UserError, match="is there already"):
        unpack(archive, tmp_path / "out")
