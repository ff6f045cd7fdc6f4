"""Write the tables of docs/*.md from the CSVs of results/, so that no number is copied by hand.

    python benchmarks/tables.py docs/performance.md docs/scaling.md

A table stands between two comments; the first says what it holds, the rows where all conditions hold:

    <!-- table results/cost/step.csv: method, ms, over_ce, n; width=8 -->
    <!-- end -->

A column `ms` is `ms` of the CSV, or `ms_median (ms_quartile1-ms_quartile3)`, or `ms_mean ± ms_std`.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = re.compile(
    r"(<!-- table (?P<file>\S+): (?P<columns>[^;]+?)(; (?P<where>.+?))? -->\n).*?(<!-- end -->)",
    re.DOTALL,
)

Row = dict[str, str]


def with_tables(text: str) -> str:
    """`text`, its tables as the CSVs are now."""
    return TABLE.sub(lambda m: m[1] + table(m["file"], m["columns"], m["where"] or "") + m[6], text)


def table(file: str, columns: str, where: str) -> str:
    names = columns.split(", ")
    conditions = [condition.split("=") for condition in where.split(", ") if condition]
    with (ROOT / file).open(newline="", encoding="utf-8") as stream:
        rows = [
            row
            for row in csv.DictReader(stream)
            if all(row[key] == value for key, value in conditions)
        ]
    lines = [[name.replace("_", " ") for name in names], ["---"] * len(names)]
    lines += [[cell(row, name) for name in names] for row in rows]
    made_by = " / ".join(
        sorted(
            {f"{row['hardware']}; {row['versions']}; commit {row['git_commit']}" for row in rows}
        )
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n`{file}`: {made_by}\n"


def cell(row: Row, name: str) -> str:
    if f"{name}_median" in row:
        median, low, high = (row[f"{name}_{part}"] for part in ("median", "quartile1", "quartile3"))
        return f"{number(median)} ({number(low)}–{number(high)})" if median else ""
    if f"{name}_mean" in row:
        mean, std = row[f"{name}_mean"], row[f"{name}_std"]
        return f"{number(mean)} ± {number(std)}" if mean else ""
    return number(row[name])


def number(text: str) -> str:
    """With three or four digits and thousands apart; what is no number, as it is."""
    try:
        value = float(text)
    except ValueError:
        return text
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if value % 1 else f"{value:g}"


if __name__ == "__main__":
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(__doc__)
        sys.exit()
    for document in map(Path, sys.argv[1:]):
        document.write_text(with_tables(document.read_text("utf-8")), "utf-8")
