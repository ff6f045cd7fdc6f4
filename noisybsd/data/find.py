"""Image files in folders: which files are images, and which are left out and why."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from noisybsd.data.images import image_suffixes, is_image
from noisybsd.data.names import as_text
from noisybsd.errors import UserError
from noisybsd.files import identity

# Folders and files that network drives, archives, desktops and tools make for themselves.
_SYSTEM_FOLDERS = {
    *("@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "__macosx"),
    *("$recycle.bin", "recycler", "system volume information", "lost+found", "__pycache__"),
}
_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"}
_COPIES = (".bak", ".orig", ".old", ".tmp", ".temp", ".part", ".crdownload", "~")  # of other files


@dataclass
class Found:
    """What is in a folder.

    Args:
        paths: image files, relative to the folder, sorted.
        problems: entries that should be images and cannot be read, each with the reason.
        left_out: how many other files there are, by what they are.
        folders: all folders below it but system folders, relative to it.
    """

    paths: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    folders: list[str] = field(default_factory=list)


def is_system(name: str) -> bool:
    """Whether a folder of this name holds no images of its own: hidden, thumbnails, rubbish."""
    return name.startswith(".") or name.casefold() in _SYSTEM_FOLDERS


def find_images(folder: Path) -> Found:
    """Look for image files in `folder` at any depth.

    A file whose suffix Pillow reads is an image; one of another suffix, or of none, where its first bytes
    say so.

    Raises:
        UserError: a folder that cannot be read.
    """
    found = Found()

    def walk(path: str, prefix: str, above: frozenset[tuple[int, int]]) -> None:
        here = identity(path)
        if here in above:
            found.problems.append(f"{as_text(path)}: a symbolic link to a folder that it is in")
            return
        for entry in os.scandir(path):
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link in a circle: opened as a file, it says so
                is_folder = False
            if not is_folder:
                _look_at(entry, prefix, found)
            elif is_system(entry.name):
                count = sum(len(files) for _, _, files in os.walk(entry.path))
                found.left_out[f"in {as_text(entry.name)}/ (a system folder)"] += count
            else:
                found.folders.append(prefix + entry.name)
                walk(entry.path, f"{prefix}{entry.name}/", above | {here})

    try:
        parents = {*folder.absolute().parents, *folder.resolve().parents}
        walk(str(folder), "", frozenset(map(identity, parents)))
    except OSError as error:
        raise UserError(f"{as_text(error.filename)}: cannot be read: {error.strerror}") from None
    found.paths.sort()
    found.folders.sort()
    found.problems.sort()
    return found


def _look_at(entry: os.DirEntry[str], prefix: str, found: Found) -> None:
    """Take a file as an image, or count it as what it is."""
    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 (up to a million times)
    if entry.name.startswith(".") or entry.name.casefold() in _SYSTEM_FILES:
        found.left_out["hidden or system files"] += 1
    elif entry.name.lower().endswith(_COPIES):
        found.left_out["temporary files or copies of others"] += 1
    elif suffix in image_suffixes():
        if entry.is_symlink() or entry.is_file():
            found.paths.append(prefix + entry.name)
        else:
            found.problems.append(f"{as_text(entry.path)}: is no file but a pipe, socket or device")
    elif entry.is_file() and is_image(entry.path):
        found.paths.append(prefix + entry.name)
    else:
        ending = f"ending in {as_text(suffix)}" if suffix else "without a suffix"
        found.left_out[f"{ending} (no format that is read)"] += 1
