"""noisybsd: image classifiers from partly wrong labels, and which labels are wrong.

The names in `__all__` are the library; docs/library.md introduces them. Importing the package imports
nothing else and changes no state of the process; a name is imported when it is first asked for.
"""

import importlib
import sys
from typing import Any

__version__ = "0.1.0"

# where each public name comes from; __init__.pyi says the same to type checkers
_HOME = {
    "BSD": "methods.beliefs",
    "cross_entropy": "methods.parts",
    "simclr": "methods.contrastive",
    "supcon": "methods.contrastive",
    "FeatureBank": "models.bank",
    "Views": "data.views",
    "Dataset": "data.dataset",
    "inject_noise": "library",
    "load_dataset": "library",
    "find_label_issues": "report.arrays",
    "label_table": "report.arrays",
    "noise_matrix": "report.arrays",
    "noise_rate": "report.arrays",
    "write_report": "report.arrays",
    "Run": "library",
    "Classifier": "engine.classifier",
    "load": "engine.classifier",
}
__all__ = [
    "BSD",
    "Classifier",
    "Dataset",
    "FeatureBank",
    "Run",
    "Views",
    "cross_entropy",
    "find_label_issues",
    "inject_noise",
    "label_table",
    "load",
    "load_dataset",
    "methods",
    "noise_matrix",
    "noise_rate",
    "simclr",
    "supcon",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for: torch takes seconds."""
    if name in ("methods", "train"):  # modules; that of the command `train` can be called
        return importlib.import_module(f"noisybsd.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"noisybsd.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if sys.argv[:1] == ["-m"] and "-m" in sys.orig_argv:  # `python -m noisybsd.NAME` imports this first
    from noisybsd.commands import check_command

    check_command(sys.orig_argv[sys.orig_argv.index("-m") + 1])
