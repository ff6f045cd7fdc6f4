"""A folder of each class, in which its images are links: for programs that read labels so."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from noisybsd.data.find import is_system
from noisybsd.data.images import ImageFiles
from noisybsd.data.splits import Split
from noisybsd.data.temporary import new_folder
from noisybsd.errors import UserError, brief
from noisybsd.files import naming


def link_classes(
    folder: Path, root: Path, splits: Mapping[str, Split], class_names: Sequence[str]
) -> None:
    """Make `folder`, whole or not at all, of links to image files: SPLIT/CLASS/FILE.

    A link has the name of its file; of two images of a class that are called alike, the later one's is
    numbered. Files that are missing get no link.

    Args:
        root: the folder that the images' paths start from.
        splits: by their folder; "" is `folder` itself.

    Raises:
        UserError: the folder is there already or cannot be made, the images are in no files or all missing,
            or the name of a class cannot be that of a folder.
    """
    what = f"links={folder}"
    if os.path.lexists(folder):
        raise UserError(f"{what}: is there already; name a new folder")
    for name in class_names:
        if not name or "/" in name or is_system(name):
            raise UserError(f"{what}: class {brief(name)} can be no folder's name; use out=FILE")
    with naming(f"{what}: cannot be written"), new_folder(folder, "links") as temporary:
        made = [_link(temporary / name, root, split, class_names) for name, split in splits.items()]
        if not any(made):
            raise UserError(f"{what}: no image file of the dataset is in {root}; use out=FILE")


def _link(folder: Path, root: Path, split: Split, class_names: Sequence[str]) -> int:
    """Make the links of a split, and say how many."""
    made = 0
    if not isinstance(split.images, ImageFiles):
        raise UserError(
            "links: the images of this dataset are in no files of their own; use out=FILE"
        )
    for path, label in zip(split.images.paths, split.labels.tolist(), strict=True):
        file, inside = Path(os.path.abspath(root / path)), folder / class_names[label]  # noqa: PTH100
        if not file.exists():
            continue
        inside.mkdir(parents=True, exist_ok=True)
        link, number = inside / file.name, 1
        while os.path.lexists(link):
            number += 1
            link = inside / f"{file.stem}-{number}{file.suffix}"
        link.symlink_to(file)
        made += 1
    return made
