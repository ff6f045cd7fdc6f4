"""The programs in benchmarks/, as modules."""

import importlib
from types import ModuleType

import pytest

from helpers import ROOT


def benchmark(name: str) -> ModuleType:
    """benchmarks/NAME.py, which imports others of that folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module(name)
