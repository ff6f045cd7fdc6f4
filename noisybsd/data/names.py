"""Names of classes, splits and images as people write them, and mistakes in them.

Dimensions: N images, K classes.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from noisybsd.errors import UserError, did_you_mean

UNKNOWN = -1  # among clean labels: nobody has verified that image's label


def as_text(name: object) -> str:
    r"""A name whose bytes that are no UTF-8 became escapes such as \udce9, so that any file can hold it."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def examples(names: Sequence[str], most: int = 3) -> str:
    """The first few of `names`, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


# --- splits -------------------------------------------------------------------------------------

SPLITS = {
    "train": ("train", "training", "trainset", "trainingset", "traindata", "trainingdata"),
    "val": ("val", "valid", "validation", "dev", "development", "valset", "validationset"),
    "test": ("test", "testing", "eval", "evaluation", "testset", "evalset", "testdata"),
}
_SPLIT = {name: split for split, names in SPLITS.items() for name in names}


def split_named(name: str) -> str | None:
    """Which split, train, val or test, people call `name`; None: it is the name of no split."""
    return _SPLIT.get(re.sub(r"[\s_.-]", "", name).casefold())


# --- classes ------------------------------------------------------------------------------------

# What pandas reads as a missing value; and its own words for one.
_MISSING = {
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "NaT", "None", "n/a", "nan", "null"),
}
_WHOLE = re.compile(r"([+-]?[0-9]+)(\.0*)?")  # a whole number, perhaps written as a float
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?inf(inity)?", re.I)


def is_missing(value: Any) -> bool:
    """Whether a cell of a table is empty: None, NaN, or a text that stands for them."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and value.strip() in _MISSING)


def class_of(value: Any, known: Iterable[str] = ()) -> str:
    """The class that a cell of a table names: its text without surrounding white space.

    A whole number may be written as a float: 2.0 is class 2.

    Args:
        known: names of classes, which are accepted even where they look like a mistake.

    Raises:
        ValueError: the cell names no class; says what it is.
    """
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
    text = as_text(text.strip())
    if text in known:
        return text
    if is_missing(value):
        raise ValueError(f"is {value!r}, which stands for a missing value")
    if not isinstance(value, str | bytes | bool | int | float | Decimal | np.generic):
        raise ValueError(f"is a {type(value).__name__}, {_short(value)}")
    if number := _WHOLE.fullmatch(text):
        if int(number[1]) < 0:
            raise ValueError(f"is {text!r}, a negative number")
        return str(int(number[1])) if number[2] else text
    if _NUMBER.fullmatch(text):
        raise ValueError(f"is {text!r}, a number that is not whole")
    return text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def whole_number(name: str) -> int | None:
    """The whole number that a name writes, perhaps as a float; None: it is none."""
    found = _WHOLE.fullmatch(name)
    return int(found[1]) if found else None


def in_order(names: Iterable[str]) -> list[str]:
    """Names of classes in the order of their labels: by alphabet, or, of numbers alone, by size."""
    ordered = sorted(names)
    numbers = [whole_number(name) for name in ordered]
    if None in numbers:
        return ordered
    return sorted(ordered, key=lambda name: whole_number(name) or 0)


def refuse_lookalikes(names: Iterable[str], source: object) -> None:
    """Refuse names of classes of which two are likely meant to be one.

    These differ in case, in white space, in how an accented letter is encoded (Unicode's NFC and NFD), or
    write the same number.

    Raises:
        UserError: names both, and the way out where they are two classes indeed.
    """
    seen: dict[str, str] = {}
    for name in names:
        folded = _folded(name)
        if folded in seen:
            one, other = ascii(seen[folded]), ascii(name)
            raise UserError(
                f"{source}: classes {one} and {other} differ only in {_difference(seen[folded], name)}: "
                "probably they are one class. Write them alike; if they are two, list the classes of "
                "your data in a card of your own (docs/data.md says how)"
            )
        seen[folded] = name


def _folded(name: str) -> str:
    """What likely names of one class have in common."""
    number = whole_number(name.strip())
    if number is not None:
        return str(number)
    folded = "".join(unicodedata.normalize("NFKC", name).split())
    # single letters are told apart by case: pictures of letters are sorted so
    return folded if len(folded) == 1 else unicodedata.normalize("NFKC", folded.casefold())


def _difference(one: str, other: str) -> str:
    if one == other:
        return "bytes that are no UTF-8"
    if whole_number(one.strip()) is not None:
        return "how they write a number"
    if unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other):
        return "how an accented letter is encoded (Unicode NFC and NFD)"
    if "".join(one.split()) == "".join(other.split()):
        return "white space"
    if one.casefold() == other.casefold():
        return "case"
    return "case, white space or the encoding of letters"


def labels_of(
    names: Sequence[str], class_names: Sequence[str], wrong: Callable[[int, str], UserError]
) -> npt.NDArray[np.int64]:
    """Labels (N,) of the classes named; `wrong` makes the error for row i."""
    number = {name: i for i, name in enumerate(class_names)}
    for i, name in enumerate(names):
        if name not in number:
            raise wrong(i, f"class {unknown_class(name, class_names)}")
    return np.array([number[name] for name in names], dtype=np.int64)


def unknown_class(name: str, class_names: Sequence[str]) -> str:
    """The rest of a sentence that says `name` is no class."""
    alike = next((each for each in class_names if _folded(each) == _folded(name)), None)
    if alike is not None:
        return f"got {name!a}, which differs from {alike!a} only in {_difference(name, alike)}"
    return did_you_mean(name, class_names)


# --- images -------------------------------------------------------------------------------------


class ImageNames:
    """Finds images by the names that tables call them.

    A name may be the image's path from `root`; a path that leads there from another folder or from
    nowhere, with either kind of slash; the end of the path, if no other image's ends so; or that
    without the suffix. Where nothing else fits, capitals do not matter.

    Args:
        paths: (N,) relative to `root`.
        root: the folder they are in.
    """

    def __init__(self, paths: Sequence[str], root: str | Path):
        self.paths = paths
        self._number = {path: i for i, path in enumerate(paths)}
        self._roots = {Path(root).absolute(), Path(root).resolve()}
        self._indices: dict[tuple[bool, bool], dict[str, list[int]]] = {}

    def find(self, name: str) -> list[int]:
        """The images that `name` may mean: none, one, or several."""
        if name in self._number:
            return [self._number[name]]
        inside = self.inside(name)
        if inside is None:
            return []
        if inside in self._number:
            return [self._number[inside]]
        tried = ((suffix, fold) for fold in (False, True) for suffix in (True, False))
        return next(filter(None, (self._ending(inside, *how) for how in tried)), [])

    def inside(self, name: str) -> str | None:
        """A name as a path from the root with plain slashes; None: it leads elsewhere."""
        path = plain(name)
        if path.startswith("/") or re.match("[A-Za-z]:/", path):
            return next(
                (
                    Path(path).relative_to(root).as_posix()
                    for root in self._roots
                    if Path(path).is_relative_to(root)
                ),
                None,
            )
        return None if path.split("/")[0] in ("..", ".", "") else path

    def _ending(self, name: str, with_suffix: bool, fold: bool) -> list[int]:
        """Images whose whole path, without its suffix or with it, ends in the parts of `name`."""
        if (with_suffix, fold) not in self._indices:
            index: dict[str, list[int]] = {}
            for i, path in enumerate(self.paths):
                index.setdefault(self._parts(path, with_suffix, fold)[-1], []).append(i)
            self._indices[with_suffix, fold] = index
        wanted = folded_path(name).split("/") if fold else name.split("/")
        candidates = self._indices[with_suffix, fold].get(wanted[-1], [])
        return [i for i in candidates if self._ends(i, wanted, with_suffix, fold)]

    def _ends(self, i: int, wanted: list[str], with_suffix: bool, fold: bool) -> bool:
        parts = self._parts(self.paths[i], with_suffix, fold)
        for root in self._roots:
            above = folded_path(root.as_posix()) if fold else root.as_posix()
            if [*above.split("/"), *parts][-len(wanted) :] == wanted:
                return True
        return False

    def _parts(self, path: str, with_suffix: bool, fold: bool) -> list[str]:
        if not with_suffix:
            path = os.path.splitext(path)[0]  # noqa: PTH122 (up to a million times)
        return (folded_path(path) if fold else path).split("/")


def plain(name: str) -> str:
    """A path as a person wrote it, with plain slashes and without `.` and `..` where these lead nowhere."""
    return os.path.normpath(name.strip().replace("\\", "/")) if name.strip() else ""


def folded_path(path: str) -> str:
    """A path without what systems write differently: capitals, and the encoding of accented letters."""
    return unicodedata.normalize("NFC", path).casefold()


def match(
    names: Sequence[str], images: ImageNames, source: str, place: Callable[[int], str]
) -> npt.NDArray[np.int64]:
    """For each image (N,), the row of a table that names it.

    Args:
        names: one for each row.
        source: the table and column, for errors.
        place: where row i is in the table.

    Raises:
        UserError: a name that is no image's, or may be several's; an image named twice or not at all.
    """
    row_of: dict[int, int] = {}
    strangers = []
    for row, name in enumerate(names):
        found = images.find(name)
        if not found:
            strangers.append(f"{name!r} ({place(row)})")
        elif len(found) > 1:
            several = " and ".join(repr(as_text(images.paths[i])) for i in found[:2])
            raise UserError(
                f"{source}: {place(row)}: {name!r} may mean {several}; write paths from data.root"
            )
        elif row_of.setdefault(found[0], row) != row:
            raise UserError(
                f"{source}: {place(row)}: {name!r} is already on {place(row_of[found[0]])}; if several "
                "people labelled it, say who in a column annotator"
            )
    if strangers:
        more = f" and {len(strangers) - 3:,} more" if len(strangers) > 3 else ""
        raise UserError(
            f"{source}: no training image is called {', '.join(strangers[:3])}{more}; the images are "
            f"called {examples([as_text(path) for path in images.paths])}, from data.root"
        )
    if missing := [as_text(path) for i, path in enumerate(images.paths) if i not in row_of]:
        raise UserError(
            f"{source}: names {len(row_of):,} of {len(images.paths):,} training images, not "
            f"{examples(missing)}; to train on some images only, list them in data.manifest"
        )
    return np.array([row_of[i] for i in range(len(images.paths))], dtype=np.int64)


def kinds(names: Mapping[str, int]) -> str:
    """Counted things in a sentence: `3 a, 2 b`."""
    return ", ".join(f"{count:,} {name}" for name, count in names.items())
