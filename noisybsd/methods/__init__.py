"""Target rules, losses and contrastive terms, and the presets that make methods of them.

Each method has one network and one stage, over the same loop. Each formula is its paper's; where the
authors' public code says more or says otherwise, that is named. Schedules that papers give in epochs are
shares of the run here, so that a method can run in any recipe's budget. The published numbers are in
presets.py.

For a loop of one's own: `build(name, labels, num_classes, epochs=…)`, and `METHODS`, the presets by name.
"""

import importlib
from typing import Any

__all__ = ["METHODS", "Method", "build"]
_HOME = {"METHODS": "presets", "Method": "alone", "build": "alone"}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for: torch takes seconds."""
    if name in _HOME:
        return getattr(importlib.import_module(f"noisybsd.methods.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
