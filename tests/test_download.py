"""Downloads against a local server that cuts, lies and refuses; archives that try to escape."""

from __future__ import annotations

import hashlib
import io
import socket
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_server import Server, serving

from noisybsd.download import ATTEMPTS, download, unpack
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


def test_unpack_does_not_overwrite(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", ("top/one.txt", b"new"))
    (tmp_path / "out/top").mkdir(parents=True)
    with pytest.raises(UserError, match="is there already"):
        unpack(archive, tmp_path / "out")
