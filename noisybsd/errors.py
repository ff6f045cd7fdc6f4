"""A user's mistake, and the sentence that answers it."""

from __future__ import annotations

import contextlib
import difflib
import functools
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO

LONGEST = 1500  # characters of a line that a command says


class UserError(ValueError):
    """Something the user can put right. Commands print it without a traceback and exit with 2."""


def did_you_mean(value: str, options: Iterable[str]) -> str:
    """The rest of an error sentence: the value received, the option it may be a typo of, all options."""
    known = sorted(options)
    close = difflib.get_close_matches(str(value), known, n=1)  # a typo, and not another word
    nearest = f", did you mean {close[0]}?" if close else ";"
    return f"got {brief(value)}{nearest} valid: {', '.join(known)}"


def brief(value: object, longest: int = 200) -> str:
    """The value received, as an error sentence repeats it: its repr, the middle of a long one left out."""
    return _shortened(re.sub(r"\s*\n\s*", " ", repr(value)), longest)  # arrays have several lines


def counted(count: int, one: str, more: str) -> str:
    """A number and what there is of it: `one` for 1, else `more`."""
    return f"{count:,} {one if count == 1 else more}"


def shown(text: object) -> str:
    r"""Text as a terminal can show it, on one line.

    Control characters, which a terminal would obey, and bytes that are no text in UTF-8, which it could
    not print, become escapes such as \x1b and \udce9.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its type where it says nothing."""
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    return f"{text[: longest * 2 // 3]} … {text[-longest // 3 :]}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the main memory had no room: Python, NumPy, or torch's allocator for the CPU says so."""
    refused = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return refused or isinstance(error, MemoryError)


def is_out_of_gpu_memory(error: BaseException) -> bool:
    """Whether a GPU had no room: for a tensor, or for what CUDA and its libraries need themselves."""
    # torch's class by its name, for torch is not imported for this
    signs = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return type(error).__name__ == "OutOfMemoryError" or any(sign in str(error) for sign in signs)


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether the arguments of a command are none, or ask for help."""
    return not arguments or not {"-h", "--help", "help"}.isdisjoint(arguments)


def command(main: Callable[[list[str]], int]) -> Callable[..., int]:
    """Make a command of a function of its arguments, that ends without a traceback.

    A user's mistake is a message and exit code 2, and so is what the operating system refuses. Ctrl-C
    before there is anything to save is exit code 130. A reader that has seen enough (`… --help | head`)
    is no error.
    """

    @functools.wraps(main)
    def wrapper(arguments: list[str] | None = None) -> int:
        # OpenMP reads this when torch is imported. Its threads spin at every barrier by default: on a
        # machine with other work they then steal the cores from each other (two threads on two busy
        # cores: 23 images/s on digits, 1,800 with sleeping waits).
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        _prepare_streams()
        try:
            code = main(sys.argv[1:] if arguments is None else arguments)
            sys.stdout.flush()
            return code
        except UserError as error:
            return _tell(str(error), 2)
        except KeyboardInterrupt:
            return _tell("interrupted", 128 + signal.SIGINT, prefix="")
        except BrokenPipeError:
            _drop(sys.stdout)
            return 128 + signal.SIGPIPE
        except OSError as error:
            return _tell(f"{error.filename or 'output'}: {error.strerror or error}", 2)
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                first = str(error).split("\n", 1)[0]
                return _tell(
                    f"out of memory: {first}\nmake smaller what takes the most: network.width, "
                    "network.embedding_dim, batch_size, data.size, or data.limit",
                    2,
                )
            if not is_out_of_gpu_memory(error):
                raise
            first = str(error).splitlines()[0]
            return _tell(
                f"the GPU is out of memory: {first}\nsee what else runs on it, or use device=cpu", 2
            )

    return wrapper


def _tell(text: str, code: int, prefix: str = "error: ") -> int:
    """Print to standard error, a line for each line of `text`; return `code`."""
    lines = [prefix + _shortened(shown(line), LONGEST) for line in text.split("\n")]
    with contextlib.suppress(OSError):  # a closed terminal, a full disk: there is nobody to tell
        print("\n".join(lines), file=sys.stderr)
    for stream in (sys.stderr, sys.stdout):
        try:
            stream.flush()
        except OSError:
            _drop(stream)
    return code


def _drop(stream: TextIO) -> None:
    """Let the interpreter not try again, at its end, to write what nobody can read."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a number, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _prepare_streams() -> None:
    """Make the standard streams and the log take any text, also where a stream is closed."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:  # closed by `>&-`
            _occupy(number)
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    logging.raiseExceptions = False  # a log that cannot be written stops nothing
    logging.getLogger("noisybsd").addFilter(_escape_names)


def _occupy(number: int) -> None:
    """Keep a closed descriptor from being the next file's, into which libraries would print."""
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)


def _escape_names(record: logging.LogRecord) -> bool:
    """Write names of files and the like in a log's message as `shown` does."""
    lines = record.getMessage().split("\n")
    record.msg, record.args = "\n".join(map(shown, lines)), ()
    return True
