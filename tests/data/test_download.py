"""Downloads against a local server that cuts, lies and refuses."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import io
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.local_server import Handler, Server, serving

from noisybsd.data.cards import Download
from noisybsd.data.download import ATTEMPTS, download, fetch
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


def test_a_full_disk_is_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("noisybsd.data.download.os.fsync", full)
    with pytest.raises(UserError, match=r"file\.part: cannot be written: No space left"):
        download(server.url + "/file", tmp_path / "file", expected=SHA, pause=60)


def test_a_file_larger_than_the_disk_is_refused_before_it_comes(
    server: Server, tmp_path: Path
) -> None:
    server.answer = lambda to: to.say(200, b"x", Content_Length=1 << 60)
    with pytest.raises(
        UserError, match=r"file\.part: no room: the file has 1,152,921,504,606,846,976"
    ):
        download(server.url + "/file", tmp_path / "file", expected=SHA)
    assert files(tmp_path) == []


def test_a_link_in_the_place_of_the_part_is_not_followed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "file.part").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match=r"file\.part: is a symbolic link; remove it"):
        download(server.url + "/file", tmp_path / "file", expected=SHA)
    assert (tmp_path / "precious").read_text() == "mine"


# --- servers that answer wrongly ----------------------------------------------------------------


def test_a_changed_file_is_not_continued(server: Server, tmp_path: Path) -> None:
    """Without a checksum, the server's mark of the version is all that tells two files apart."""
    server.tag, server.cut = '"one"', 1000
    with pytest.raises(UserError, match="broke"):
        download(server.url + "/file", tmp_path / "file", size=len(CONTENT), pause=0)
    assert files(tmp_path) == ["file.part", "file.part.json"]
    server.tag, server.cut = '"two"', None
    server.files["/file"] = CONTENT[::-1]
    download(server.url + "/file", tmp_path / "file", size=len(CONTENT))
    assert (tmp_path / "file").read_bytes() == CONTENT[::-1] and files(tmp_path) == ["file"]
    assert server.asked[-1] == f"bytes={1000 * ATTEMPTS}-"


def test_without_any_mark_of_the_version_a_download_begins_anew(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "file.part").write_bytes(b"of another version")
    download(server.url + "/file", tmp_path / "file", size=len(CONTENT))
    assert server.asked == [None] and (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_from_the_beginning_is_not_appended(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    span = f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"
    server.answer = lambda to: to.say(206, CONTENT, Content_Range=span, Content_Length=len(CONTENT))
    download(server.url + "/file", tmp_path / "file", expected=SHA)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_from_elsewhere_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    server.answer = lambda to: to.say(206, b"x", Content_Range="bytes 5-5/9", Content_Length=1)
    with pytest.raises(UserError, match="sends another part than from byte 1000"):
        download(server.url + "/file", tmp_path / "file", expected=SHA, pause=0)


HTML = b"<!DOCTYPE html><title>Log in</title>"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda to: to.say(204, b""), "HTTP 204 .*no file in it"),
        (
            lambda to: to.say(
                200, HTML, Content_Type="text/html; charset=utf-8", Content_Length=36
            ),
            "answers with a web page, not with the file: perhaps it wants you to log in",
        ),
        (lambda to: to.say(200, HTML, Content_Length=36), "is a web page, not the file"),
        (lambda to: to.say(200, b"abc", Content_Length="abc"), "answers Content-Length: 'abc'"),
        (lambda to: to.say(200, b"abc"), "neither the server nor the card says how long"),
        (lambda to: to.say(302, b"", Location="http://[::1"), "not a usable address"),
    ],
)
def test_an_answer_that_is_no_file_is_refused(
    server: Server, tmp_path: Path, answer: Callable[[Handler], None], message: str
) -> None:
    server.answer = answer
    with pytest.raises(UserError, match=message + ".*put the file at"):
        download(server.url + "/file", tmp_path / "file", pause=0)
    assert files(tmp_path) == []


def test_a_file_of_another_size_than_the_cards_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"file has 1,048,576 bytes, expected 99: not the official"):
        download(server.url + "/file", tmp_path / "file", size=99)
    server.answer = lambda to: to.say(200, b"x" * 500)  # it does not say how long it is
    with pytest.raises(UserError, match="sends more than the 99 bytes"):
        download(server.url + "/file", tmp_path / "file", size=99)
    server.answer = lambda to: to.say(200, b"x" * 50)
    with pytest.raises(UserError, match=r"has 50 bytes, expected 99 .*removed"):
        download(server.url + "/file", tmp_path / "file", size=99)
    assert files(tmp_path) == []


@pytest.mark.parametrize("headers_too", [False, True])
def test_a_server_that_trickles_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headers_too: bool
) -> None:
    def trickle(to: Handler) -> None:
        if not headers_too:
            to.say(200, b"", Content_Length=len(CONTENT))
        with contextlib.suppress(OSError):
            while not ended.wait(0.02):
                to.wfile.write(b"x")

    ended, server.answer = threading.Event(), trickle
    monkeypatch.setattr("noisybsd.data.download.STALL", 0.2)
    monkeypatch.setattr("noisybsd.data.download.ATTEMPTS", 2)
    try:
        with pytest.raises(UserError, match=r"broke 2 times"):
            download(server.url + "/file", tmp_path / "file", expected=SHA, pause=0)
    finally:
        ended.set()


@pytest.mark.parametrize("address", ["http://[::1", "http://a b/", "http://\x7f/"])
def test_an_address_that_is_none_is_answered(tmp_path: Path, address: str) -> None:
    with pytest.raises(UserError, match="not a usable address"):
        download(address, tmp_path / "file", pause=60)


def test_a_password_in_an_address_is_not_repeated(server: Server, tmp_path: Path) -> None:
    url = server.url.replace("//", "//me:secret@")
    server.answer = lambda to: to.say(404, b"")
    with pytest.raises(UserError) as error:
        download(url + "/file", tmp_path / "file", pause=0)
    assert "secret" not in str(error.value) and "127.0.0.1" in str(error.value)


def test_an_empty_answer_is_no_file(server: Server, tmp_path: Path) -> None:
    server.answer = lambda to: to.say(200, b"", Content_Length=0)
    with pytest.raises(UserError, match="/file: the server's file is empty; or put the file at"):
        download(server.url + "/file", tmp_path / "file", pause=0)
    assert not list(tmp_path.iterdir())


def test_redirects_in_a_circle_are_told_on_one_line(server: Server, tmp_path: Path) -> None:
    server.answer = lambda to: to.say(302, b"", Location="/file")
    with pytest.raises(UserError, match=r"^http://127.*/file: HTTP 302 .*; or put the file at"):
        download(server.url + "/file", tmp_path / "file", pause=0)


def test_a_damaged_archive_is_not_kept_to_fail_again(server: Server, tmp_path: Path) -> None:
    """Of an archive without a checksum, unpacking alone tells that it is not whole."""
    whole = tar_bytes(("top/one.txt", b"1" * 5000), ("top/two.txt", b"2" * 5000))
    item = Download(file="a.tar", url=server.url + "/file", unpack="top")
    server.files["/file"] = whole[: len(whole) // 2]
    with pytest.raises(
        UserError, match=r"a\.tar: damaged.*removed: run it again to download it anew"
    ):
        fetch(item, tmp_path)
    assert files(tmp_path) == []
    server.files["/file"] = whole
    fetch(item, tmp_path)
    assert files(tmp_path) == ["top"]
    # one that a person put there stays
    (tmp_path / "hand").mkdir()
    (tmp_path / "hand/a.tar").write_bytes(whole[:1000])
    with pytest.raises(UserError, match=r"a\.tar: damaged.*get it again from http"):
        fetch(item, tmp_path / "hand")
    assert files(tmp_path / "hand") == ["a.tar"]


def test_an_archive_cannot_plant_other_files(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = tar_bytes(("top/one.txt", b"1"), ("pack.json", b"{}"))
    fetch(Download(file="a.tar", url=server.url + "/file", unpack="top"), tmp_path)
    assert files(tmp_path) == ["top"]


def tar_bytes(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as bundle:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            bundle.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


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
