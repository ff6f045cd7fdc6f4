"""`python -m noisybsd` lists the commands."""

from __future__ import annotations

import sys

from noisybsd.commands import commands
from noisybsd.errors import command


@command
def main(arguments: list[str]) -> int:
    print("usage: python -m noisybsd.COMMAND …; each explains itself with --help\n")
    for name, line in commands().items():
        print(f"  {name:<10}{line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
