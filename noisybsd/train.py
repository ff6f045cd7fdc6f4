"""Train an image classifier: `python -m noisybsd.train recipe=NAME key=value …`.

In Python, call the module: `noisybsd.train("digits_sym40", epochs=3)`, see `noisybsd.library.train`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from noisybsd.errors import asks_for_help, command

if TYPE_CHECKING:
    from pathlib import Path

    from noisybsd.library import Run

USAGE = """\
usage: python -m noisybsd.train recipe=NAME [key=value …]

Train an image classifier on partly wrong labels. A recipe says data, network, schedule and method;
key=value changes any of its settings, e.g.

  python -m noisybsd.train recipe=digits_sym40
  python -m noisybsd.train recipe=digits_sym40 --help    (what the recipe sets, and what else there is)
  python -m noisybsd.train recipe=cifar10n_worst data.root=data seed=1 method=ce
  torchrun --nproc-per-node 8 -m noisybsd.train recipe=clothing1m    (on 8 GPUs)

results.json names the commit that trained. In a copy of a checkout, set NOISYBSD_COMMIT to it.
"""


@command
def main(arguments: list[str]) -> int:
    if asks_for_help(arguments):
        from noisybsd.describe import describe

        chosen = any(argument.startswith(("recipe=", "method=")) for argument in arguments)
        print(describe(arguments) if chosen else f"{USAGE}\n{describe([])}")
        return 0 if arguments else 2
    from noisybsd.training import run  # here, since torch takes seconds to import

    return run(arguments)


class _Train(ModuleType):
    """The module as a function: a function `noisybsd.train` would be lost where this module is imported."""

    def __call__(self, recipe: str | Path, **settings: Any) -> Run:
        from noisybsd.library import train

        return train(recipe, **settings)


sys.modules[__name__].__class__ = _Train

if __name__ == "__main__":
    sys.exit(main())
