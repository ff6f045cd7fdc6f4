"""Files: opened without surprises, written whole or not at all; JSON; and where the package's own lie."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from noisybsd.errors import UserError, brief, did_you_mean

PACKAGE = Path(__file__).resolve().parent

_TEMPORARY = ".noisybsd.tmp"  # what the names of unfinished files end in; no other program's do


def resource_dir(name: str) -> Path:
    """`recipes` or `datasets`: inside the package in a wheel, beside it in a checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def resource_names(folder: str) -> list[str]:
    """What a YAML file in `recipes` or `datasets` is called: its name without the suffix."""
    return sorted(path.stem for path in resource_dir(folder).glob("*.yaml"))


def resource(name: str, folder: str, key: str) -> Path:
    """The YAML file that `key=name` means: one of `resource_names`, or any by its path.

    Raises:
        UserError: there is none.
    """
    is_path = name.endswith((".yaml", ".yml")) or "/" in name
    path = user_path(name, key) if is_path else resource_dir(folder) / f"{name}.yaml"
    if kind_of(path, f"{key}={name}") is None:
        if is_path:
            raise UserError(f"{key}={name}: there is no such file")
        raise UserError(f"{key}: {did_you_mean(name, resource_names(folder))}")
    return path


# --- paths that people give ------------------------------------------------------------------------


def user_path(text: str, key: str) -> Path:
    """The path that `key=text` names, with `~` and `~user` replaced.

    Raises:
        UserError: see `expanded`; begins with the key.
    """
    try:
        return expanded(text)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def expanded(text: str) -> Path:
    """A path with `~` and `~user` replaced.

    Raises:
        UserError: it is empty, holds a NUL character, or names a user that this machine does not know.
    """
    if text == "" or "\0" in text:
        raise UserError(f"got {brief(text)}; valid: a path, without NUL characters")
    try:
        return Path(text).expanduser() if text.startswith("~") else Path(text)
    except RuntimeError:
        raise UserError(
            f"got {brief(text)}: this machine knows no such home folder; write the whole path"
        ) from None


def output_file(text: str, suffixes: Collection[str]) -> Path:
    """The path of a file that a command is to write.

    Raises:
        UserError: it has none of the `suffixes`, or its folder is not there; says what was received and
            what is valid.
    """
    path = expanded(text)
    if path.suffix.lower() not in suffixes:
        raise UserError(f"got {brief(text)}; valid: a file that ends in {' or '.join(suffixes)}")
    if kind_of(path.parent, f"got {brief(text)}") != "folder":
        raise UserError(f"got {brief(text)}; there is no folder {path.parent}; make it first")
    return path


def spare_inputs(out: Path, inputs: Iterable[tuple[str, str | Path | None]]) -> None:
    """Refuse to write over a file that the command reads.

    Args:
        inputs: keys and the files that they name, perhaps files that are not there.
    """
    for key, path in inputs:
        try:
            same = path is not None and Path(path).expanduser().samefile(out)
        except (OSError, ValueError, RuntimeError):  # one of them is no file
            continue
        if same:
            raise UserError(f"{out}: is read as {key}, and would be overwritten; use another out")


def identity(path: str | Path) -> tuple[int, int]:
    """What two paths to one folder have in common, what it keeps when it is renamed, and no other has."""
    status = Path(path).stat()
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Answer what the operating system refuses about a path with a sentence that begins with `what`.

    Raises:
        UserError: in place of an OSError, and of the ValueError or RuntimeError by which Python refuses
            names with NUL or other letters than the system's, and links in a circle.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{what}: {error.strerror or error}") from error
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{what}: {error}") from error


def kind_of(path: Path, what: str) -> Literal["file", "folder", "other"] | None:
    """What is at `path`; `other` is a FIFO, a socket or a device, and None is nothing.

    Raises:
        UserError: it cannot be found out, e.g. for want of a permission; begins with `what`.
    """
    with naming(what):
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"


def open_file(path: Path, mode: str, *, through_links: bool = True) -> BinaryIO:
    """Open the file at `path` in a binary mode. Never waits, as opening a FIFO does.

    Raises:
        OSError: it cannot be opened, or is a folder, a FIFO, a socket or a device; or a link, if these are
            not to be followed.
    """
    more = os.O_NONBLOCK if through_links else os.O_NONBLOCK | os.O_NOFOLLOW

    def opener(name: str, flags: int) -> int:
        descriptor = os.open(name, flags | more, 0o666)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(None, "is no file, but a folder, a FIFO, a socket or a device", name)
        return descriptor

    return cast(BinaryIO, open(path, mode, opener=opener))


def read_text(path: Path, what: str | None = None, largest: int | None = None) -> str:
    """The text of a file in UTF-8.

    Args:
        what: begins the error sentence; default: the path.
        largest: bytes that a file of this kind may have.

    Raises:
        UserError: the file is not there, not to be read, too large, or no text.
    """
    what = what or str(path)
    with naming(f"{what}: cannot be read"), open_file(path, "rb") as file:
        content = file.read() if largest is None else file.read(largest + 1)
    if largest is not None and len(content) > largest:
        raise UserError(f"{what}: has more than {largest:,} bytes; is this the right file?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{what}: is no text in UTF-8 (byte {error.start})") from None


# --- writing ------------------------------------------------------------------------------------------


def write_atomically(
    path: Path, write: Callable[[BinaryIO], object], keep: Path | None = None
) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place: whole or not at all.

    Args:
        keep: where the file that is replaced stays, if there is one.

    Raises:
        UserError: the disk is full, or not writable; what was at `path` is still there.
    """
    if kind_of(path, f"{path}: cannot be written") in ("folder", "other"):
        raise UserError(f"{path}: cannot be written: something that is no file is there")
    temporary = _temporary(path)
    try:
        with open_file(temporary, "w+b", through_links=False) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            _keep(path, keep)
        temporary.replace(path)
        _sync_directory(path.parent)
    except (OSError, RuntimeError) as error:
        # torch.save hides the system's error behind one of its own
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise UserError(f"{path}: cannot be written: {cause.strerror or cause}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _temporary(path: Path, mark: str = "") -> Path:
    """A name beside `path` that is this process's own, and short enough for every file system."""
    return path.with_name(f".{path.name[:40]}.{os.getpid()}{mark}{_TEMPORARY}")


def _keep(path: Path, keep: Path) -> None:
    """Give the file at `path` the name `keep` too, so that `path` exists at every moment."""
    link = _temporary(path, ".old")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links: for a moment, only `keep` exists
        path.replace(keep)
    else:
        link.replace(keep)


def _sync_directory(directory: Path) -> None:
    """Make a rename in `directory` last."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_temporary(name: str) -> bool:
    """Whether `write_atomically` gave a file this name."""
    return name.startswith(".") and name.endswith(_TEMPORARY)


def remove_temporaries(directory: Path) -> None:
    """Remove what processes that were killed while writing left in `directory`, and nothing else."""
    for temporary in directory.glob(f".*{_TEMPORARY}"):
        if temporary.is_file() or temporary.is_symlink():
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, whole or not at all. Surrogates become escapes."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` whole or not at all. NaN is not JSON: it raises ValueError."""
    # a name that is no text in UTF-8 holds surrogates; JSON writes them as the escapes that result
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line, whole or not at all."""
    write_text(path, "".join(map(_line, rows)))


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Add one JSON object as a line."""
    with naming(f"{path}: cannot be written"), open_file(path, "ab") as file:
        file.write(_line(row).encode())


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
