"""A user's mistake, and the sentence that answers it."""

from __future__ import annotations

import difflib
import functools
import os
import signal
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


def is_out_of_gpu_memory(error: RuntimeError) -> bool:
    """Whether a GPU had no room: for a tensor, or for what CUDA and its libraries need themselves."""
    # torch's class by its name, for torch is not imported for this
    signs = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return type(error).__name__ == "OutOfMemoryError" or any(sign in str(error) for sign in signs)


def command(main: Callable[[list[str]], int]) -> Callable[..., int]:
    """Make a command of a function of its arguments, that ends without a traceback.

    A user's mistake is a message and exit code 2, Ctrl-C before there is anything to save is exit code
    130, and a reader that has seen enough (`… --help | head`) is no error.
    """

    @functools.wraps(main)
    def wrapper(arguments: list[str] | None = None) -> int:
        try:
            return main(sys.argv[1:] if arguments is None else arguments)
        except UserError as error:
            print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 128 + signal.SIGINT
        except RuntimeError as error:
            if not is_out_of_gpu_memory(error):
                raise
            print(
                f"error: the GPU is out of memory: {str(error).splitlines()[0]}\n"
                "error: see what else runs on it, or use device=cpu",
                file=sys.stderr,
            )
            return 2
        except BrokenPipeError:
            # what is still buffered has no reader: the interpreter must not try to flush it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE

    return wrapper
