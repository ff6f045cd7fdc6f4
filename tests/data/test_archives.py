"""Archives that are whole, damaged, hostile, or packed in a way that Python cannot unpack."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import io
import lzma
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from noisybsd.data import archives
from noisybsd.data.archives import Damaged, unpack
from noisybsd.errors import UserError


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
    monkeypatch.setattr(tarfile.TarFile, "extract", full)
    with pytest.raises(UserError, match=r"out: cannot unpack .*a\.tar\.gz: No space left"):
        unpack(archive, tmp_path / "out")


def test_unpack_does_not_overwrite(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", ("top/one.txt", b"new"))
    (tmp_path / "out/top").mkdir(parents=True)
    with pytest.raises(UserError, match="is there already"):
        unpack(archive, tmp_path / "out")


# --- tars that end too early or too late ---------------------------------------------------------


def plain_tar(members: int = 9, size: int = 700, **info: object) -> bytes:
    """A tar of files that do not compress, each of `size` bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as bundle:
        for i in range(members):
            member = tarfile.TarInfo(f"top/{i}.bin")
            member.size = size
            for key, value in info.items():
                setattr(member, key, value)
            bundle.addfile(member, io.BytesIO(os.urandom(size)))
    return buffer.getvalue()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
}


@pytest.mark.parametrize("suffix", PACK)
def test_a_whole_tar_is_unpacked(tmp_path: Path, suffix: str) -> None:
    archive = tmp_path / f"a.{suffix}"
    archive.write_bytes(PACK[suffix](plain_tar()))
    assert unpack(archive, tmp_path / "out") == ["top"] and len(files(tmp_path / "out/top")) == 9


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("damage", ["header", "member boundary", "more after it", "middle"])
def test_a_tar_that_is_not_whole_is_refused(tmp_path: Path, suffix: str, damage: str) -> None:
    """tarfile itself takes a damaged header, and an end at a member, for the end of the archive."""
    content = bytearray(plain_tar())
    member = 512 + 1024  # a header, and a file in whole blocks
    if damage == "header":
        content[4 * member : 4 * member + 100] = b"\xff" * 100
    elif damage == "member boundary":
        del content[4 * member :]
    elif damage == "more after it":
        content += plain_tar(2)
    packed = bytearray(PACK[suffix](bytes(content)))
    if damage == "middle":
        if suffix == "tar":
            packed[4 * member + 140 : 4 * member + 160] = bytes(20)
        else:
            packed[len(packed) // 2 :] = packed[len(packed) // 2 : -9]
    archive = tmp_path / f"a.{suffix}"
    archive.write_bytes(packed)
    with pytest.raises(Damaged, match=rf"a\.{suffix}: damaged"):
        unpack(archive, tmp_path / "out")
    assert files(tmp_path / "out") == []


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.xz", "tar.bz2"])
def test_every_cut_of_a_compressed_tar_is_noticed(tmp_path: Path, suffix: str) -> None:
    content = PACK[suffix](plain_tar(3))
    archive = tmp_path / f"a.{suffix}"
    for end in range(1, len(content), len(content) // 23):
        archive.write_bytes(content[:end])
        with pytest.raises(Damaged):
            unpack(archive, tmp_path / "out")
    assert files(tmp_path / "out") == []


@pytest.mark.parametrize("date", ["1e400", "-5", "99999999999999", "nan", "1.5"])
def test_odd_dates_do_not_matter(tmp_path: Path, date: str) -> None:
    (tmp_path / "a.tar").write_bytes(plain_tar(pax_headers={"mtime": date}))
    assert unpack(tmp_path / "a.tar", tmp_path / "out") == ["top"]


def test_deep_folders_are_refused(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", ("d/" * 1500 + "x", b"1"))
    with pytest.raises(UserError, match=r"1501 folders deep, at most 64"):
        unpack(archive, tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as bundle:
        bundle.writestr("d/" * 1500 + "x", "1")
    with pytest.raises(UserError, match=r"1501 folders deep, at most 64"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert files(tmp_path / "out") == []


def test_names_that_are_no_text_are_unpacked(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", (os.fsdecode(b"top/caf\xe9"), b"1"))
    assert unpack(archive, tmp_path / "out") == ["top"]
    assert files(tmp_path / "out/top") == [os.fsdecode(b"caf\xe9")]


# --- zips, and what Python cannot unpack --------------------------------------------------------


def zipped(path: Path, compression: int = zipfile.ZIP_DEFLATED) -> bytearray:
    with zipfile.ZipFile(path, "w", compression) as bundle:
        bundle.writestr("top/a.bin", os.urandom(3000))
    return bytearray(path.read_bytes())


def patched(content: bytearray, local: int, central: int, value: int) -> bytes:
    """A zip with another byte at these places of its two headers."""
    content[local] = value
    content[content.index(b"PK\1\2") + central] = value
    return bytes(content)


@pytest.mark.parametrize(
    ("places", "value", "message"),
    [
        ((6, 8), 1, "'top/a.bin' is encrypted: unpack it by hand, with its password"),
        ((8, 10), 9, "packed in a way that Python cannot unpack .*unpack it by hand"),
        ((8, 10), 99, "packed in a way that Python cannot unpack"),
    ],
)
def test_a_zip_that_python_cannot_unpack(
    tmp_path: Path, places: tuple[int, int], value: int, message: str
) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(patched(zipped(archive), *places, value))
    with pytest.raises(UserError, match=message):
        unpack(archive, tmp_path / "out")
    assert files(tmp_path / "out") == []


@pytest.mark.parametrize(
    "compression",
    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA],
)
def test_a_damaged_zip_leaves_nothing(tmp_path: Path, compression: int) -> None:
    archive = tmp_path / "a.zip"
    content = zipped(archive, compression)
    content[700:760] = bytes(60)
    archive.write_bytes(content)
    with pytest.raises(Damaged, match=r"a\.zip: damaged"):
        unpack(archive, tmp_path / "out")
    archive.write_bytes(content[:2000])
    with pytest.raises(Damaged, match=r"a\.zip: damaged"):
        unpack(archive, tmp_path / "out")
    assert files(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("start", "name"),
    [(b"7z\xbc\xaf'\x1c", "7z"), (b"Rar!\x1a\7", "rar"), (b"\x28\xb5\x2f\xfd", "zstd")],
)
def test_other_archives_are_named(tmp_path: Path, start: bytes, name: str) -> None:
    (tmp_path / "a").write_bytes(start + bytes(100))
    with pytest.raises(UserError, match=f"a {name} archive, which Python cannot unpack"):
        unpack(tmp_path / "a", tmp_path / "out")


# --- size, room, and folders left behind ---------------------------------------------------------


@pytest.mark.parametrize("suffix", ["tar.gz", "zip"])
def test_a_bomb_is_refused(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "ALLOWED", 1000)
    archive, content = tmp_path / f"a.{suffix}", bytes(3_000_000)
    if suffix == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as bundle:
            bundle.writestr("top/a", content)
    else:
        tar(archive, ("top/a", content))
    with pytest.raises(UserError, match=r"refused to unpack: [0-9,]+ bytes that become 3,000,000"):
        unpack(archive, tmp_path / "out")
    assert files(tmp_path / "out") == []


def test_no_room_is_said_before_it_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = type("Usage", (), {"free": 100})
    monkeypatch.setattr("noisybsd.data.archives.shutil.disk_usage", lambda _: free)
    archive = tar(tmp_path / "a.tar.gz", ("top/a", bytes(5000)))
    with pytest.raises(UserError, match=r"out: no room to unpack .*100 bytes are free"):
        unpack(archive, tmp_path / "out")
    assert files(tmp_path / "out") == []


KILLED = """
import sys, tarfile, time
from pathlib import Path
from noisybsd.data.archives import unpack
tarfile.TarFile.extract = lambda *_, **__: (print("unpacking", flush=True), time.sleep(60))
unpack(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    archive, out = tar(tmp_path / "a.tar.gz", ("top/a", b"1")), tmp_path / "out"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", KILLED, archive, out], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        for process in started:
            assert process.stdout is not None and process.stdout.readline() == "unpacking\n"
        assert len(files(out)) == 2
        started[0].send_signal(signal.SIGKILL)
        started[0].wait()
        (out / ".noisybsd-unpack-notes.txt").write_text("a file of mine")
        unpack(archive, out)
        assert len(files(out)) == 3 and {".noisybsd-unpack-notes.txt", "top"} < {*files(out)}
    finally:
        for process in started:
            process.kill()
            process.wait()
