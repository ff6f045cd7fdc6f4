"""noisybsd: image classifiers from partly wrong labels."""

import importlib
import os
import sys
from typing import Any

__version__ = "0.1.0"

# OpenMP reads this when torch is imported. Its threads spin at every barrier by default: on a machine
# with other work they then steal the cores from each other (two threads on two busy cores: 23 images/s
# on digits, 1,800 with sleeping waits).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if sys.argv[:1] == ["-m"] and "-m" in sys.orig_argv:  # `python -m noisybsd.NAME` imports this first
    from noisybsd.commands import check_command

    check_command(sys.orig_argv[sys.orig_argv.index("-m") + 1])


def __getattr__(name: str) -> Any:
    """`noisybsd.load`, imported when it is first asked for: torch takes seconds."""
    if name == "load":
        return importlib.import_module("noisybsd.engine.classifier").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
