"""Compare finished runs: `python -m noisybsd.compare runs/… [baseline=ce] [out=FILE] [plots=DIR]`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from noisybsd.compare import tables
from noisybsd.compare.runs import find_runs
from noisybsd.compare.sections import Comparison, compare, notes
from noisybsd.errors import UserError, asks_for_help, brief, command, did_you_mean, shown
from noisybsd.files import kind_of, user_path

USAGE = """\
usage: python -m noisybsd.compare RUN-OR-FOLDER… [key=value …]

Compare finished runs: a table for each recipe, with a row for each method and for each setting in which
the runs differ: mean ± standard deviation over its seeds, and the difference to a baseline, paired by
seed, with its 95 % confidence interval. Folders are searched for run directories.

  python -m noisybsd.compare runs/sweep
  python -m noisybsd.compare runs/sweep baseline=elr columns=all
  python -m noisybsd.compare runs/sweep out=table.md,table.csv plots=plots published=true

keys:
  baseline=METHOD    the method, or the whole label of a row, that the others are compared with; default: ce
  columns=main       all: the terminal shows every metric and its difference; files always have them
  out=FILE[,FILE…]   write the tables too, as .csv or .md
  plots=DIR          draw accuracy and memorised wrong labels over epochs, accuracy against noise rate,
                     and reliability diagrams, as PNG and SVG
  published=false    true: show published numbers beside ours
  mix=false          true: compare runs of one recipe whose data, noise conventions or budgets differ; the
                     tables then say so
"""


_KEYS = ("baseline", "columns", "out", "plots", "published", "mix")


def _options(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Paths and options. A path may hold a `=`, as the run directories of a sweep do.

    Raises:
        UserError: lists every mistake.
    """
    is_option = [re.match(r"\w+=", a) is not None and not _is_there(a) for a in arguments]
    paths = [a for a, option in zip(arguments, is_option, strict=True) if not option]
    given = [a.split("=", 1) for a, option in zip(arguments, is_option, strict=True) if option]
    options: dict[str, Any] = {"baseline": None, "columns": "main", "out": [], "plots": None}
    mistakes = [
        f"{key}: unknown key, {did_you_mean(key, _KEYS)}" for key, _ in given if key not in _KEYS
    ]
    options |= dict(given)
    for key in ("published", "mix"):
        value = options.get(key, "false")
        options[key] = value == "true"
        if value not in ("true", "false"):
            mistakes.append(f"{key}: got {brief(value)}; valid: true, false")
    if options["columns"] not in ("main", "all"):
        mistakes.append(f"columns: {did_you_mean(options['columns'], ('main', 'all'))}")
    try:
        if "out" in dict(given):
            options["out"] = [user_path(name, "out") for name in options["out"].split(",")]
        if options["plots"] is not None:
            options["plots"] = user_path(options["plots"], "plots")
    except UserError as error:
        mistakes.append(str(error))
        options["out"] = []
    mistakes += [
        f"out: got {brief(str(file))}; valid: a file name that ends in .csv or .md"
        for file in options["out"]
        if file.suffix not in (".csv", ".md")
    ]
    if not paths:
        mistakes.append("give run directories, or folders that contain some; --help says more")
    if mistakes:
        raise UserError("\n".join(mistakes))
    return paths, options


def _is_there(text: str) -> bool:
    """Whether an argument is the path of something."""
    try:
        return kind_of(Path(text), "") is not None
    except UserError:  # too long for one, e.g.
        return False


@command
def main(arguments: list[str]) -> int:
    if asks_for_help(arguments):
        print(USAGE, end="")
        return 0 if arguments else 2
    paths, options = _options(arguments)
    runs, unfinished = find_runs(paths)
    sections = compare(runs, options["baseline"], options["mix"], options["published"])
    comparison = Comparison(
        sections,
        tuple(notes(sections, unfinished, options["published"])),
        shlex.join(["python", "-m", "noisybsd.compare", *arguments]),
    )
    # files first: whoever reads the tables, as `head` does, may close the pipe
    written = list(options["out"])
    for file in written:
        tables.write(comparison, file)
    if options["plots"]:
        from noisybsd.compare.plots import draw  # Matplotlib takes a second

        written += draw(sections, options["plots"])
    tables.show(comparison, every=options["columns"] == "all")
    for file in written:
        print(f"written to {shown(file)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
