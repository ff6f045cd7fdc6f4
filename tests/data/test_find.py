"""Which files in folders are images, and what is said of the others."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from helpers import trees
from PIL import Image

from noisybsd.data.find import find_images
from noisybsd.data.images import formats, image_suffixes
from noisybsd.errors import UserError

PNG = Image.new("RGB", (8, 8), (9, 9, 9))


def file(path: Path, format: str = "PNG", image: Image.Image = PNG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as target:
        image.save(target, format)
    return path


def test_every_suffix_that_pillow_reads_is_that_of_an_image(tmp_path: Path) -> None:
    Image.init()
    other_programs = {"EPS", "WMF"}  # Ghostscript, and what Windows has
    for suffix, format in Image.registered_extensions().items():
        if format not in other_programs:
            file(tmp_path / f"a{suffix}")  # by its content where the suffix is none of an image
    found = find_images(tmp_path)
    assert len(found.paths) == sum(
        format not in other_programs for format in Image.registered_extensions().values()
    )
    assert {".jfif", ".avif", ".jp2", ".webp", ".tga", ".qoi"} <= image_suffixes()
    assert not {".eps", ".ps", ".pdf", ".mpg", ".h5", ".wmf"} & image_suffixes()
    assert not {"EPS", "IPTC", "MPEG", "PDF"} & {*formats()}


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "JPEG2000", "PPM"])
@pytest.mark.parametrize(
    "name", ["0001", "img.001", "Mr. Smith", "photo.jpg?size=large", "x.JPG", "x.Png"]
)
def test_an_image_without_a_suffix_is_known_by_its_content(
    tmp_path: Path, format: str, name: str
) -> None:
    file(tmp_path / "cat" / name, format)
    assert find_images(tmp_path).paths == [f"cat/{name}"]


def test_files_that_are_left_out_are_counted_by_what_they_are(tmp_path: Path) -> None:
    for name in ("notes.txt", "more.TXT", "README", "clip.mp4", "a.heic"):
        trees.lines(tmp_path / name, ["no image"])
    for name in (".DS_Store", "._0.png", "Thumbs.db", "desktop.ini"):
        file(tmp_path / name)
    for name in ("0.png.bak", "0.png~", "0.png.part"):
        file(tmp_path / name)
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    file(tmp_path / "0.png")
    found = find_images(tmp_path)
    assert found.paths == ["0.png"] and found.problems == []
    assert found.left_out == {
        "ending in .txt (no format that is read)": 2,
        "without a suffix (no format that is read)": 1,
        "ending in .mp4 (no format that is read)": 1,
        "ending in .heic (no format that is read)": 1,
        "ending in .eps (no format that is read)": 1,
        "hidden or system files": 4,
        "temporary files or copies of others": 3,
    }


@pytest.mark.parametrize(
    "folder",
    [
        *("@eaDir", "__MACOSX", "$RECYCLE.BIN", ".ipynb_checkpoints", ".Trashes", "#recycle"),
        *("System Volume Information", "lost+found", "@Recycle", "__pycache__", "RECYCLER"),
    ],
)
def test_system_folders_are_no_classes_and_hold_no_images(tmp_path: Path, folder: str) -> None:
    for place in (tmp_path, tmp_path / "cat"):
        for i in range(3):
            file(place / folder / "deep" / f"{i}.png")
    file(tmp_path / "cat/0.png")
    found = find_images(tmp_path)
    assert found.paths == ["cat/0.png"] and found.folders == ["cat"]
    assert found.left_out == {f"in {folder}/ (a system folder)": 6}


def test_pipes_and_sockets_are_named_and_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s.png"))
        found = find_images(tmp_path)
    assert found.paths == [] and len(found.problems) == 2
    assert "pipe.png: is no file but a pipe, socket or device" in found.problems[0]


def test_names_that_are_no_text_are_kept_and_can_be_told(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    file(tmp_path / os.fsdecode(b"\xff") / name)
    found = find_images(tmp_path)
    assert found.paths == [f"{os.fsdecode(bytes([255]))}/{name}"]
    assert (tmp_path / found.paths[0]).is_file()


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir(mode=0)
    with pytest.raises(UserError, match="cat: cannot be read: Permission denied"):
        find_images(tmp_path)
