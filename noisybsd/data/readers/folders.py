"""Anyone's own images, one folder per class, with or without folders for the splits.

`arrange` decides, by the names and the content of the folders alone, which are splits and which are
classes; where both are possible, it refuses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from noisybsd.data.cards import Card
from noisybsd.data.find import Found, find_images
from noisybsd.data.names import (
    as_text,
    in_order,
    refuse_lookalikes,
    split_named,
    unknown_class,
)
from noisybsd.data.splits import Read, Split, file_split, need
from noisybsd.errors import UserError, counted
from noisybsd.settings import DataConfig

_INSTEAD = "or list the images in data.manifest=FILE"


@dataclass
class Arrangement:
    """Which images are of which split and class.

    Args:
        splits: train, val and test, those that have images: class folder: its images.
        places: train, val and test: their folders, relative to data.root.
        empty: folders among those of the classes to train on in which there is no image.
        stray: how many images are in no folder of a class.
        unused: folders with images that are of no split and no class, relative to data.root.
        base: the folder below data.root in which all these are; empty: data.root itself.
    """

    splits: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    stray: int = 0
    unused: list[str] = field(default_factory=list)
    base: str = ""


def read_folders(card: Card, data: DataConfig) -> Read:
    """root/<class>/…, or root/train/<class>/… with root/test/<class>/…, by any of their usual names."""
    root = need(Path(data.root), card)
    found = find_images(root)
    plan = arrange(found, root, card.classes)
    if "train" not in plan.splits:
        folders = " and ".join(f"{as_text(place)}/" for place in plan.places.values())
        raise UserError(f"{root}: has {folders} and no folder of training images, train/")
    class_names = _class_names(card, [*plan.splits["train"], *plan.empty], root)
    train = _split(card, data, plan.splits["train"], class_names)
    for name in class_names:
        if name not in {as_text(folder) for folder in plan.splits["train"]}:
            where = as_text(root / plan.places["train"] / name)
            otherwise = (
                "remove the folder" if name in map(as_text, plan.empty) else "change the card"
            )
            raise UserError(
                f"{where}: no image in it; every class needs one at least: put some there, or {otherwise}"
            )
    chosen = next((name for name in ("test", "val") if name in plan.splits), None)
    test = _split(card, data, plan.splits[chosen], class_names) if chosen else None
    return _read(found, plan, train, test, class_names, ("train", chosen))


def read_folders_to_test(card: Card, data: DataConfig) -> Read:
    """The same for a network that is trained already: test images, or all of a folder without splits."""
    root = need(Path(data.root), card)
    found = find_images(root)
    plan = arrange(found, root, card.classes)
    chosen = next(name for name in ("test", "val", "train") if name in plan.splits)
    class_names = _class_names(card, plan.splits[chosen], root)
    if not plan.splits[chosen]:
        images = counted(plan.stray, "image", "images")
        raise UserError(
            f"data.root={root}: has {images} and no folder of a class with images; expected "
            f"<class>/, {_INSTEAD}; images without labels are for python -m noisybsd.predict"
        )
    test = _split(card, data, plan.splits[chosen], class_names)
    return _read(found, plan, test, None, class_names, (chosen,))


def _read(
    found: Found,
    plan: Arrangement,
    train: Split,
    test: Split | None,
    class_names: tuple[str, ...],
    used: tuple[str | None, ...],
) -> Read:
    notices = [f"the images are those in {as_text(plan.base)}/"] if plan.base else []
    notices += [f"not used: {as_text(name)}/" for name in plan.unused]
    if "val" in used:
        notices.append(f"the test images are those in {as_text(plan.places['val'])}/")
    for name, folders in plan.splits.items():
        if name not in used:
            count = sum(map(len, folders.values()))
            notices.append(f"not used: {as_text(plan.places[name])}/ and its {count:,} images")
    left_out = found.left_out + Counter({"in no folder of a class": plan.stray})
    return Read(
        train,
        test,
        class_names,
        "unverified",
        found.problems,
        left_out=left_out,
        notices=notices,
    )


def _class_names(card: Card, folders: Iterable[str], root: Path) -> tuple[str, ...]:
    """The card's classes, or those that have a folder."""
    names = [as_text(folder) for folder in folders]
    if card.classes:
        for name in names:
            if name not in card.classes:
                raise UserError(f"{root}: folder {unknown_class(name, card.classes)}")
        return card.classes
    refuse_lookalikes(names, root)
    if len(names) < 2:
        raise UserError(
            f"{root}: needs a folder of images for each of two or more classes, "
            f"found {', '.join(f'{name}/' for name in names) or 'none'}; {_INSTEAD}"
        )
    return tuple(in_order(names))


def _split(
    card: Card, data: DataConfig, folders: dict[str, list[str]], class_names: tuple[str, ...]
) -> Split:
    images = {as_text(folder): paths for folder, paths in folders.items()}
    for name, paths in images.items():
        if name not in class_names:
            raise UserError(
                f"{as_text(Path(data.root, paths[0]).parent)}: class {unknown_class(name, class_names)}"
            )
    paths = [path for name in class_names for path in images.get(name, [])]
    labels = [i for i, name in enumerate(class_names) for _ in images.get(name, [])]
    return file_split(card, data, paths, labels)


# --- which folders are splits and which are classes ---------------------------------------------


def arrange(found: Found, root: Path, classes: Iterable[str] = ()) -> Arrangement:
    """Which images of those found in `root` are of which split and class.

    Args:
        classes: names that are known to be of classes.

    Raises:
        UserError: the folders may be read in two ways, or one of a split is empty.
    """
    plan = Arrangement()
    tree = _tree(found, "")
    while len(full := [name for name, inside in tree.items() if any(inside.values())]) == 1:
        (only,) = full
        if split_named(only) or only in classes or "" in tree[only]:
            break  # a split, or a folder of images
        if len(tree) > 1 and "train" not in map(split_named, tree[only]):
            break  # the others are classes that have no image yet
        plan.base = f"{plan.base}/{only}".lstrip("/")
        tree = _tree(found, plan.base + "/")
    plan.stray = sum(1 for path in found.paths if "/" not in path.removeprefix(plan.base + "/"))
    _Arranging(root, plan, tree).arrange()
    return plan


Tree = dict[
    str, dict[str, list[str]]
]  # folder: its folders, "" for itself: images at any depth there


def _tree(found: Found, base: str) -> Tree:
    tree: Tree = {}
    for folder in found.folders:
        if folder.startswith(base):
            first, *rest = folder[len(base) :].split("/")
            inside = tree.setdefault(first, {})
            if len(rest) == 1:
                inside.setdefault(rest[0], [])
    for path in found.paths:
        if path.startswith(base) and "/" in path[len(base) :]:
            first, *rest = path[len(base) :].split("/")
            tree[first].setdefault(rest[0] if len(rest) > 1 else "", []).append(path)
    return tree


class _Arranging:
    """Folders of one level, told apart by name (`train`, `test`, …) and by what is in them."""

    def __init__(self, root: Path, plan: Arrangement, tree: Tree):
        self.root = root
        self.plan = plan
        self.tree = tree
        self.full = {name for name, inside in tree.items() if any(inside.values())}
        self.named = {  # split: folders called so
            split: [name for name in tree if split_named(name) == split]
            for split in ("train", "val", "test")
        }
        self.others = [name for name in tree if split_named(name) is None]

    def arrange(self) -> None:
        splits = [name for names in self.named.values() for name in names]
        if self._splits_within_classes():
            return
        others = [name for name in self.others if name in self.full]
        if not splits:
            self._classes()
        elif self._is_tested():
            self._splits(others)
        elif others and all("" in self.tree[name] for name in splits):
            self._classes()  # one of them may be called train
        elif others:
            self.refuse(
                f"{self._list(splits)} may be a split or a class beside {self._list(others)}: move one "
                "of them elsewhere"
            )
        elif all([*self.tree[name]] == [""] for name in splits):
            self.refuse(
                f"the images of {self._list(splits)} are in no folder of a class; expected "
                "train/<class>/ and test/<class>/"
            )
        else:
            self._splits(others)

    def _is_tested(self) -> bool:
        """Whether there are folders for training and for testing that hold the same classes."""
        train, *more = [
            {k for name in names for k, v in self.tree[name].items() if k and v}
            for names in self.named.values()
        ]
        return bool(train) and any(train & each for each in more)

    def _classes(self) -> None:
        self.plan.places["train"] = self.plan.base
        self.plan.splits["train"] = {
            name: sorted(path for paths in inside.values() for path in paths)
            for name, inside in self.tree.items()
            if name in self.full
        }
        self.plan.empty = [name for name in self.tree if name not in self.full]

    def _splits(self, others: list[str]) -> None:
        self.plan.unused += [self._path(name) for name in others]
        for split, names in self.named.items():
            if not names:
                continue
            if len(names) > 1:
                self.refuse(f"{self._list(names)} are both folders of the {split} split: keep one")
            (name,) = names
            inside = self.tree[name]
            if split == "val" and name not in self.full and self.named["test"]:
                continue
            if name not in self.full:
                raise UserError(
                    f"{as_text(self.root / self._path(name))}: no image in it; without that folder a "
                    "share of the training images is held out"
                )
            self.plan.stray += len(inside.get("", []))
            folders = {folder: paths for folder, paths in inside.items() if folder and paths}
            if folders:
                self.plan.splits[split], self.plan.places[split] = folders, self._path(name)
            else:
                self.plan.unused.append(self._path(name))
            if split == "train":
                self.plan.empty = [k for k, v in inside.items() if k and not v]

    def _splits_within_classes(self) -> bool:
        """Arrange <class>/train/… and <class>/test/…, where the folders are such."""
        within = {
            name: {folder: split_named(folder) for folder, paths in inside.items() if paths}
            for name, inside in self.tree.items()
            if name in self.full
        }
        split = {name for name, splits in within.items() if {"train"} < {*splits.values()} - {None}}
        if not split:
            return False
        for name, splits in within.items():
            if name not in split or None in splits.values():
                self.refuse(
                    f"folders for training and testing are in {self._list(sorted(split))}, but "
                    f"{self._list([name])} has images outside of such folders"
                )
            for folder, paths in self.tree[name].items():
                depth = len(self._path(name).split("/")) + 2
                if any(len(path.split("/")) > depth for path in paths):
                    self.refuse(
                        f"{self._list(sorted(split))} look like datasets of their own; choose one, "
                        f"e.g. data.root={as_text(self.root / self._path(name))}"
                    )
                if paths:
                    part = splits[folder] or ""
                    self.plan.splits.setdefault(part, {}).setdefault(name, []).extend(paths)
                    self.plan.places.setdefault(part, self._path(f"*/{folder}"))
        self.plan.empty = [name for name in self.tree if name not in self.full]
        return True

    def _path(self, name: str) -> str:
        return f"{self.plan.base}/{name}".lstrip("/")

    def _list(self, names: list[str]) -> str:
        shown = [f"{as_text(self._path(name))}/" for name in names]
        return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")

    def refuse(self, reason: str) -> NoReturn:
        raise UserError(f"{as_text(self.root)}: {reason}; {_INSTEAD}")
