"""A user's mistake, and the sentence that answers it."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """Something the user can put right. Commands print it without a traceback and exit with 2."""


def did_you_mean(value: str, options: Iterable[str]) -> str:
    """The rest of an error sentence: the value received, the nearest option, all options."""
    known = sorted(options)
    close = difflib.get_close_matches(str(value), known, n=1, cutoff=0.4)
    nearest = f", did you mean {close[0]}?" if close else ";"
    return f"got {value!r}{nearest} valid: {', '.join(known)}"


def command(main: Callable[[list[str]], int]) -> Callable[..., int]:
    """Make a command of a function of its arguments: user errors become a message and exit code 2."""

    @functools.wraps(main)
    def wrapper(arguments: list[str] | None = None) -> int:
        try:
            return main(sys.argv[1:] if arguments is None else arguments)
        except UserError as error:
            print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
            return 2

    return wrapper
