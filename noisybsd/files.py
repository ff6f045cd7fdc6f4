"""Files: written whole or not at all, JSON and YAML, and where the package's own lie."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from noisybsd.errors import UserError

PACKAGE = Path(__file__).resolve().parent


def resource_dir(name: str) -> Path:
    """`recipes` or `datasets`: inside the package in a wheel, beside it in a checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        UserError: names the file and, for a syntax error, the line.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__}, expected a mapping key: value")
    return {str(key): value for key, value in content.items()}


def write_atomically(
    path: Path, write: Callable[[BinaryIO], object], keep: Path | None = None
) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place: whole or not at all.

    Args:
        keep: where the file that is replaced stays, if there is one.

    Raises:
        UserError: the disk is full, or not writable; what was at `path` is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w+b") as file:
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


def _keep(path: Path, keep: Path) -> None:
    """Give the file at `path` the name `keep` too, so that `path` exists at every moment."""
    link = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
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


def remove_temporaries(directory: Path) -> None:
    """Remove what processes that were killed while writing left in `directory`."""
    for temporary in directory.glob(".*.tmp"):
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` whole or not at all. NaN is not JSON: it raises ValueError."""
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line, whole or not at all."""
    text = "".join(_line(row) for row in rows)
    write_atomically(path, lambda file: file.write(text.encode()))


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Add one JSON object as a line."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(_line(row))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
