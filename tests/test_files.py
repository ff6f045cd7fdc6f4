"""Paths that people give, files that are no files, and writing that leaves nothing behind."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from noisybsd.errors import UserError
from noisybsd.files import (
    append_jsonl,
    kind_of,
    naming,
    open_file,
    read_text,
    remove_temporaries,
    user_path,
    write_atomically,
    write_json,
)


def answer(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # absolute ones may be too long


OTHERS: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "socket": make_socket,
    "folder": os.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
}


def test_home_folders_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert user_path("~/data", "data.root") == Path("/somewhere/data")
    assert user_path("./~x", "data.root") == Path("./~x")


@pytest.mark.parametrize("text", ["~nobody-of-this-name/x", "a\0b", ""])
def test_paths_that_cannot_be_are_answered_with_their_key(text: str) -> None:
    assert answer(lambda: user_path(text, "out")).startswith("out: got ")


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_file_is_named_and_never_waited_for(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.json"
    OTHERS[kind](path)
    assert kind_of(path, "x") == ("folder" if kind == "folder" else "other")
    for call in (
        lambda: read_text(path),
        lambda: append_jsonl(path, {}),
        lambda: write_json(path, {}),
    ):
        assert answer(call).startswith(f"{path}: cannot be ")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("name", ["x" * 300, "file/below", "loop", "a\0b"])
def test_paths_that_the_system_refuses(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    path = tmp_path / name
    assert answer(lambda: read_text(path, "key=value")).startswith("key=value: cannot be read: ")
    if name != "file/below":
        assert answer(lambda: kind_of(path, "key=value")).startswith("key=value: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every folder")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    assert answer(lambda: kind_of(tmp_path / "closed" / "x", "key")) == "key: Permission denied"


def test_other_errors_keep_their_kind() -> None:
    with pytest.raises(UserError, match=r"^mine$"), naming("what"):
        raise UserError("mine")
    with pytest.raises(KeyError), naming("what"):
        raise KeyError("a bug")


def test_text_that_is_too_large_or_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"ab\xff")
    assert answer(lambda: read_text(path)) == f"{path}: is no text in UTF-8 (byte 2)"
    assert "more than 2 bytes" in answer(lambda: read_text(path, largest=2))
    path.write_bytes(b"\xef\xbb\xbfab")
    assert read_text(path, largest=5) == "ab"


def test_names_that_are_no_text_survive_in_json(tmp_path: Path) -> None:
    content = {"skipped": ["caf\udce9.png: 猫"]}
    write_json(tmp_path / "x.json", content)
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == content
    append_jsonl(tmp_path / "x.jsonl", content)
    assert json.loads((tmp_path / "x.jsonl").read_text("ascii")) == content


def test_only_our_own_temporary_files_are_removed(tmp_path: Path) -> None:
    def stop(file: object) -> None:
        (temporary,) = tmp_path.glob(".results.json.*")
        os.link(temporary, kept := tmp_path / f"{temporary.name.removesuffix('.tmp')}2.tmp")
        kept.rename(temporary.with_name(temporary.name.replace(str(os.getpid()), "1")))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # a process that was killed
        write_atomically(tmp_path / "results.json", stop)
    assert len(list(tmp_path.iterdir())) == 1
    foreign = {".draft.tmp", ".cache.tmp", ".x.1.tmp", "y.noisybsd.tmp"}
    for name in foreign:
        (tmp_path / name).touch()
    (tmp_path / ".z.noisybsd.tmp").mkdir()
    remove_temporaries(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == foreign | {".z.noisybsd.tmp"}


def test_a_link_in_the_place_of_the_temporary_file_is_not_written_through(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    (tmp_path / f".x.csv.{os.getpid()}.noisybsd.tmp").symlink_to(target)
    assert "cannot be written" in answer(
        lambda: write_atomically(tmp_path / "x.csv", lambda file: file.write(b"new"))
    )
    assert target.read_text() == "precious"
    write_atomically(tmp_path / "x.csv", lambda file: file.write(b"new"))  # that link is gone


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250 + ".csv")
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"


def test_opening_follows_links_unless_told_not_to(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").symlink_to("a")
    with open_file(tmp_path / "b", "rb") as file:
        assert file.read() == b"a"
    with pytest.raises(OSError):
        open_file(tmp_path / "b", "rb", through_links=False)
