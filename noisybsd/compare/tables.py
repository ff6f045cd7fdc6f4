"""A comparison as tables: in the terminal, as Markdown and as CSV.

The first two show the same rounded cells; the terminal shows only the main columns by default. CSV has
unrounded numbers, fractions in [0,1].
"""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from noisybsd.compare.runs import METRICS, SPREAD, Metric
from noisybsd.compare.sections import Comparison, Difference, Row, Section, condition, describe
from noisybsd.errors import shown
from noisybsd.files import naming, write_text

UNKNOWN = "–"
WORDS = ("network", "networks", "source")  # columns at a table's end
LEFT = ("method", "epoch", *WORDS, "; ".join(WORDS))  # the others are numbers


@dataclass(frozen=True)
class Table:
    """Cells as shown, in plain text."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def main_tables(section: Section) -> Iterator[Table]:
    """What the terminal shows of a section: main metrics, the headline's difference, published numbers."""
    first, *others = (m for m in _known(section) if m.main)
    compared = {row.label: base for row in section.rows if (base := section.baseline_of(row))}

    def difference(row: Row) -> str:
        base = compared.get(row.label)
        if base is None:
            return "baseline" if row in compared.values() else UNKNOWN
        pairs = _pairs(row, base)
        few = "" if pairs == str(len(row.runs)) else f" (pairs={pairs})"
        return _difference(row, base, first) + few

    columns: dict[str, Callable[[Row], str]] = {
        "method": lambda row: row.label,
        "n": lambda row: str(len(row.runs)),
        first.heading: lambda row: _mean(row, first),
    }
    told = ""
    if compared:
        columns["difference"] = difference
        told = f" difference: of {first.heading} to {section.baseline} [95 % confidence interval]."
    columns |= {m.heading: partial(_mean, metric=m) for m in others}
    yield Table(
        f"{section.title}: {describe(section)}.{told}{_mixing(section)}",
        tuple(columns),
        tuple(tuple(cell(row) for cell in columns.values()) for row in section.rows),
    )
    yield from _published_tables(section)


def section_tables(section: Section) -> Iterator[Table]:
    """All tables of a section: measured values, differences to the baseline, published numbers."""
    mixing, known = _mixing(section), _known(section)
    yield Table(
        f"{section.title}: {describe(section)}.{mixing}",
        ("method", "n", *(m.heading for m in known)),
        tuple((r.label, str(len(r.runs)), *(_mean(r, m) for m in known)) for r in section.rows),
    )
    compared = [(row, base) for row in section.rows if (base := section.baseline_of(row))]
    if compared:
        paired = [metric for metric in known if metric.paired]
        yield Table(
            f"{section.title}: difference to {section.baseline} [95 % confidence interval].{mixing}",
            ("method", "pairs", *(m.heading for m in paired)),
            tuple(
                (row.label, _pairs(row, base), *(_difference(row, base, m) for m in paired))
                for row, base in compared
            ),
        )
    yield from _published_tables(section)


def _known(section: Section) -> list[Metric]:
    """The metrics that some row has."""
    return [m for m in METRICS if any(row.values(m) for row in section.rows)]


def _mixing(section: Section) -> str:
    return "".join(f" {note}." for note in section.notes)


def _published_tables(section: Section) -> Iterator[Table]:
    if section.published:
        yield Table(
            f"{section.title}: measured here and published. Epochs, networks and protocols of the "
            "published numbers differ.",
            ("method", "accuracy %", "epoch", *WORDS),
            tuple(_beside_published(section)),
        )


def _scaled(value: float, metric: Metric, sign: str = "") -> str:
    value = 100 * value if metric.percent else value
    return f"{value:{sign},.{metric.digits}f}".replace("-", "−")


def _mean(row: Row, metric: Metric) -> str:
    summary = row.summary(metric)
    if summary is None:
        return UNKNOWN
    spread = summary.std is not None and metric.spread
    text = _scaled(summary.mean, metric) + (
        f" ± {_scaled(summary.std or 0.0, metric)}" if spread else ""
    )
    return text if summary.n == len(row.runs) else f"{text} (n={summary.n})"


def _pairs(row: Row, base: Row) -> str:
    return str(len(set(row.seeds) & set(base.seeds)))


def _difference(row: Row, base: Row, metric: Metric) -> str:
    found = row.difference(base, metric)
    if found is None:
        return UNKNOWN
    mean = _scaled(found.mean, metric, "+")
    if found.low is None or found.high is None:
        return mean
    return f"{mean} [{_scaled(found.low, metric, '+')}, {_scaled(found.high, metric, '+')}]"


def _beside_published(section: Section) -> Iterator[tuple[str, ...]]:
    """Ours (last epoch) and the published ones, the highest first."""
    rows: list[tuple[float, tuple[str, ...]]] = []
    for row in section.rows:
        summary = row.summary(METRICS[0])
        assert summary is not None
        run = row.runs[0]
        source = f"measured here, n={summary.n}"
        for key, kind in (("data.limit", "training"), ("data.test_limit", "test")):
            if run.settings[key] is not None:
                source += f", on the first {run.settings[key]} {kind} images"
        if any(r.results.get("data", {}).get("pixels_verified") is False for r in row.runs):
            source += ", not the official pixels"
        network = run.settings["network.name"]
        cells = (row.label, _mean(row, METRICS[0]), "last", network, "1", source)
        rows.append((100 * summary.mean, cells))
    for entry in section.published:
        cells = (
            f"{entry['method']} (published)",
            entry["value"],
            entry["kind"],
            entry["network"] or UNKNOWN,
            entry["networks"] or UNKNOWN,
            entry["source"],
        )
        rows.append((float(entry["value"]), cells))
    yield from (cells for _, cells in sorted(rows, key=lambda each: -each[0]))


def show(comparison: Comparison, every: bool = False) -> None:
    """Print to the terminal: the main columns, or `every` one. A table that is too wide continues below."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=250, soft_wrap=True)
    tables = section_tables if every else main_tables
    headings = set()
    for section in comparison.sections:
        for table in tables(section):
            headings |= set(table.headings)
            console.print(Text(f"\n{shown(table.caption)}", style="bold"))
            for columns in _parts(table, console.width):
                console.print()
                console.print(_drawn(columns))
    console.print(f"\n{SPREAD}")
    meant = [metric for metric in METRICS if metric.heading in headings]
    grid = RichTable.grid(padding=(0, 2))
    for metric in meant:
        grid.add_row(metric.heading, metric.meaning)
    console.print(grid)
    hidden = [m.heading for section in comparison.sections for m in _known(section)]
    hidden = [heading for heading in dict.fromkeys(hidden) if heading not in headings]
    if hidden:
        console.print(Text(f"not shown: {', '.join(hidden)}; columns=all or out=FILE has them"))
    console.print()
    for note in comparison.notes:
        console.print(Text(shown(note)))


def _drawn(columns: list[tuple[str, ...]]) -> RichTable:
    """Columns, heading first, as rich draws them."""
    drawn = RichTable(box=SIMPLE_HEAD, show_edge=False)
    for heading, *_ in columns:
        justify: Literal["left", "right"] = "left" if heading in LEFT else "right"
        whole = justify == "right" or heading == "epoch"
        drawn.add_column(Text(heading), justify=justify, overflow="fold", no_wrap=whole)
    for row in zip(*(cells for _, *cells in columns), strict=True):
        drawn.add_row(*(Text(shown(cell)) for cell in row))  # brackets are no markup
    return drawn


def _parts(table: Table, width: int) -> list[list[tuple[str, ...]]]:
    """The columns, heading first, in parts at most `width` wide and about as wide as each other.

    The first column is in every part. A part of two columns may be wider. Columns of words, at the end, are
    not parted but joined into one, which can be wrapped.
    """
    columns = list(zip(table.headings, *table.rows, strict=True))
    if table.headings[-len(WORDS) :] == WORDS:
        if _width(columns) > width:
            words = zip(*columns[-len(WORDS) :], strict=True)
            columns[-len(WORDS) :] = [tuple("; ".join(cells) for cells in words)]
        return [columns]
    parts = _packed(columns, width)
    for narrower in range(width - 1, 0, -1):
        tighter = _packed(columns, narrower)
        if len(tighter) > len(parts):
            break
        parts = tighter
    return parts


def _packed(columns: list[tuple[str, ...]], width: int) -> list[list[tuple[str, ...]]]:
    first, *others = columns
    parts = [[first]]
    for column in others:
        if _width([*parts[-1], column]) > width and len(parts[-1]) > 1:
            parts.append([first])
        parts[-1].append(column)
    return parts


def _width(columns: list[tuple[str, ...]]) -> int:
    """As drawn: a space on both sides of a column, and one between two."""
    return sum(max(map(len, column)) + 3 for column in columns) - 1


def write(comparison: Comparison, file: Path) -> None:
    """Write in the format that the file's suffix names, a key of WRITERS."""
    with naming(f"out={file}: cannot be written"):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, WRITERS[file.suffix](comparison))


def markdown(comparison: Comparison) -> str:
    def line(cells: tuple[str, ...]) -> str:
        return f"| {' | '.join(_markdown_escape(cell) for cell in cells)} |\n"

    parts = []
    for section in comparison.sections:
        parts.append(f"## {_markdown_escape(section.title)}\n")
        for table in section_tables(section):
            rule = "".join("|---" if h in LEFT else "|---:" for h in table.headings) + "|\n"
            body = "".join(map(line, table.rows))
            parts.append(f"{_markdown_escape(table.caption)}\n")
            parts.append(line(table.headings) + rule + body)
    lines = [_legend(), *comparison.notes, f"made by: `{comparison.command}`"]
    parts.append("".join(f"- {_markdown_escape(note)}\n" for note in lines))
    return "\n".join(parts)


def _legend() -> str:
    """What the columns of the whole tables mean, in a line."""
    return f"{SPREAD}. " + "; ".join(f"{m.heading}: {m.meaning}" for m in METRICS)


def _markdown_escape(text: str) -> str:
    return re.sub(r"([\\|*<])", r"\\\1", text)


def _provenance(comparison: Comparison) -> Iterator[str]:
    yield f"made by: {comparison.command}"
    yield _legend()
    yield from comparison.notes
    for section in comparison.sections:
        yield f"{section.title}: {describe(section)}; n: " + ", ".join(
            f"{row.label} {len(row.runs)}" for row in section.rows
        )
        yield from (f"{section.title}: {note}" for note in section.notes)


def csv_text(comparison: Comparison) -> str:
    """Comment lines that begin with #, then one line for each row and each published number."""
    text = io.StringIO()
    for note in _provenance(comparison):
        text.writelines(f"# {line}\n" for line in note.splitlines())
    records = [r for section in comparison.sections for r in _records(section)]
    columns = dict.fromkeys(key for record in records for key in record)
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _records(section: Section) -> Iterator[dict[str, Any]]:
    for row in section.rows:
        run = row.runs[0]
        known = [r.results.get("noise_rate") for r in row.runs]
        real = [rate for rate in known if rate is not None]
        yield {
            "kind": "measured",
            "recipe": section.recipe,
            "dataset": run.settings["data.name"],
            "labels_or_noise": condition(run.settings),
            "method": row.method,
            "settings": " ".join(row.settings),
            "n": len(row.runs),
            "seeds": " ".join(map(str, row.seeds)),
            "network": run.settings["network.name"],
            "networks": 1,
            "epochs": run.settings["epochs"],
            "batch_size": run.settings["batch_size"],
            "data_limit": run.settings["data.limit"],
            "noise_rate": statistics.fmean(real) if real else None,
            **_mean_columns(row),
            **_difference_columns(section, row),
            "published_accuracy": None,
            "published_epoch": None,
            "source": None,
            "data_sha256": " ".join(str(r.results["data_sha256"])[:12] for r in row.runs),
            "mixed": "; ".join(section.notes),
        }
    for entry in section.published:
        yield {
            "kind": "published",
            "recipe": section.recipe,
            "dataset": entry["dataset"],
            "labels_or_noise": entry["labels_or_noise"],
            "method": entry["method"],
            "network": entry["network"],
            "networks": entry["networks"],
            "published_accuracy": Decimal(entry["value"]) / 100,
            "published_epoch": entry["kind"],
            "source": entry["source"],
        }


def _mean_columns(row: Row) -> dict[str, float | None]:
    columns: dict[str, float | None] = {}
    for metric in METRICS:
        summary = row.summary(metric)
        columns[metric.key] = summary.mean if summary else None
        columns[f"{metric.key}_std"] = summary.std if summary else None
    return columns


def _difference_columns(section: Section, row: Row) -> dict[str, Any]:
    base = section.baseline_of(row)
    columns: dict[str, Any] = {
        "baseline": base.label if base else None,
        "pairs": _pairs(row, base) if base else None,
    }
    for metric in METRICS:
        if metric.paired:
            found: Difference | None = row.difference(base, metric) if base else None
            columns[f"{metric.key}_difference"] = found.mean if found else None
            columns[f"{metric.key}_difference_low"] = found.low if found else None
            columns[f"{metric.key}_difference_high"] = found.high if found else None
    return columns


WRITERS: dict[str, Callable[[Comparison], str]] = {
    ".csv": csv_text,
    ".md": markdown,
}
