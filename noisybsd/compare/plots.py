"""A comparison as pictures: curves over epochs, accuracy against noise rate, reliability diagrams.

Up to seven rows share one panel; more get a panel each, with all others behind in grey. Colours are those
of Okabe and Ito, told apart by the colour-blind; the baseline is black and dashed.

Dimensions: X points of a line, S seeds, B bins.
"""

from __future__ import annotations

import itertools
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisybsd.compare.runs import METRICS
from noisybsd.compare.sections import MUST_AGREE, Row, Section, condition, describe, group
from noisybsd.files import naming, write_atomically

FloatArray = npt.NDArray[np.float64]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BASELINE = "#000000"
GREY = "#c4c4c4"
IN_ONE_PANEL = 7

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.edgecolor": "#808080",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "text.parse_math": False,  # a name may hold two $
    "svg.hashsalt": "noisybsd",  # the same picture is the same file
}


@dataclass(frozen=True)
class Line:
    """Mean and standard deviation over seeds.

    Args:
        x: (X,).
        mean: (X,), NaN where unknown.
        std: (X,), None for one seed.
    """

    label: str
    x: FloatArray
    mean: FloatArray
    std: FloatArray | None
    is_baseline: bool


def draw(sections: Sequence[Section], directory: Path) -> list[Path]:
    """Draw every figure that `sections` have data for, as PNG and SVG.

    Raises:
        UserError: `directory` cannot be written, or a run's metrics.jsonl is damaged.
    """
    written = []
    with matplotlib.rc_context(_STYLE):
        for name, figure in _figures(sections):
            for suffix in (".png", ".svg"):
                file = directory / f"{re.sub(r'[^A-Za-z0-9.=+-]+', '_', name)}{suffix}"
                with naming(f"plots={directory}: cannot be written"):
                    directory.mkdir(parents=True, exist_ok=True)
                metadata = {"Date": None} if suffix == ".svg" else None
                write_atomically(
                    file, partial(figure.savefig, format=suffix[1:], dpi=160, metadata=metadata)
                )
                written.append(file)
    return written


def _figures(sections: Sequence[Section]) -> Iterator[tuple[str, Figure]]:
    for section in sections:
        for name, what, field in (
            ("accuracy", "test accuracy (%)", "test_accuracy"),
            ("memorised", "memorised wrong labels (% of the wrong ones)", "memorised_fraction"),
        ):
            lines = [line for row in section.rows if (line := _curve(row, field, section))]
            if lines:
                figure = _line_figure(lines, "epoch", what, marker="")
                _leave_out_the_start(figure, lines)
                yield (
                    f"{section.title}-{name}",
                    _titled(figure, section, _spread(section.rows, "band")),
                )
        if figure_or_none := _reliability_figure(section):
            yield f"{section.title}-reliability", figure_or_none
    for family in _families(sections):
        lines = list(_rate_lines(family))
        figure = _line_figure(
            lines, "synthetic noise, noise.rate (%)", "test accuracy, last epoch (%)", marker="o"
        )
        name = "+".join(dict.fromkeys(section.recipe for section in family))
        rows = [row for section in family for row in section.rows]
        noise = family[0].runs[0].settings["noise.name"]
        figure.suptitle(
            f"{name}: accuracy against the rate of {noise} noise\n{_spread(rows, 'bar')}",
            fontsize=9,
        )
        yield f"{name}-noise_rate", figure


def _titled(figure: Figure, section: Section, text: str) -> Figure:
    mixing = "\nMIXED, see the table's caption" if section.notes else ""
    what = textwrap.fill(describe(section), 105)
    figure.suptitle(f"{section.title}\n{what}\n{text}{mixing}", fontsize=9)
    return figure


def _spread(rows: Sequence[Row], shown_by: str) -> str:
    counts = sorted({len(row.runs) for row in rows})
    n = "–".join(map(str, dict.fromkeys([counts[0], counts[-1]])))
    band = f"; {shown_by}: ± 1 standard deviation" if counts[-1] > 1 else ""
    return f"mean over n = {n} seed{'' if counts == [1] else 's'}{band}"


def _curve(row: Row, field: str, section: Section) -> Line | None:
    """A metric of metrics.jsonl over epochs, in percent; None where some run does not know it."""
    curves = [run.curve(field) for run in row.runs]
    if any(value is None for curve in curves for value in curve):
        return None
    values = 100 * np.array(curves, dtype=np.float64)  # (S,X)
    std = values.std(axis=0, ddof=1) if len(values) > 1 else None
    epochs = np.arange(1, values.shape[1] + 1, dtype=np.float64)
    return Line(row.label, epochs, values.mean(axis=0), std, _is_baseline(row, section))


def _is_baseline(row: Row, section: Section) -> bool:
    return section.baseline in (row.method, row.label)


def _families(sections: Sequence[Section]) -> Iterator[list[Section]]:
    """Sections that differ in noise.rate and in nothing else of data, budget, network and optimiser; of
    several recipes, too."""

    def key(section: Section) -> tuple[str, ...]:
        settings = section.runs[0].settings
        kind = condition({**settings, "noise.rate": 0.0})
        optimizer = [name for name in settings if name.startswith("optimizer.")]
        return (kind, *(str(settings[name]) for name in (*MUST_AGREE, *optimizer)))

    for family in group(sections, key).values():
        rates = [section.runs[0].rate for section in family]
        if len(set(rates)) > 1 and len(set(rates)) == len(rates):
            yield sorted(family, key=lambda section: section.runs[0].rate)


def _rate_lines(family: Sequence[Section]) -> Iterator[Line]:
    points = [(section.runs[0].rate, row, section) for section in family for row in section.rows]
    for label, members in group(points, lambda point: point[1].label).items():
        summaries = [summary for _, row, _ in members if (summary := row.summary(METRICS[0]))]
        yield Line(
            label,
            np.array([100 * rate for rate, _, _ in members]),
            np.array([100 * summary.mean for summary in summaries]),
            # one seed has no bar: a bar of length 0 would say that seeds do not differ
            np.array([np.nan if s.std is None else 100 * s.std for s in summaries]),
            any(_is_baseline(row, section) for _, row, section in members),
        )


def _line_figure(lines: Sequence[Line], x_label: str, y_label: str, marker: str) -> Figure:
    """One panel with all lines, or, for more than a few, a panel for each."""
    colours = dict(
        zip(
            (line.label for line in lines if not line.is_baseline),
            itertools.cycle(COLOURS),
            strict=False,
        )
    )
    if len(lines) <= IN_ONE_PANEL:
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        # in the legend in the order in which they end
        for line in sorted(lines, key=lambda line: -line.mean[-1]):
            _plot(axes, line, BASELINE if line.is_baseline else colours[line.label], marker)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return figure
    figure, panels = _grid(len(lines))
    baselines = [line for line in lines if line.is_baseline]
    for panel, line in zip(panels, lines, strict=True):
        for other in lines:
            panel.plot(other.x, other.mean, color=GREY, linewidth=0.7)
        for each in baselines:
            _plot(panel, each, BASELINE, "")
        if not line.is_baseline:
            _plot(panel, line, COLOURS[0], marker)
        panel.set_title(f"{line.label}  {line.mean[-1]:.1f}", fontsize=8.5, loc="left")
    compared = f"; black, dashed: {baselines[0].label}" if len(baselines) == 1 else ""
    figure.supxlabel(f"{x_label}   (number: where the line ends; grey: the others{compared})")
    figure.supylabel(y_label)
    return figure


def _plot(axes: Axes, line: Line, colour: str, marker: str) -> None:
    style = "--" if line.is_baseline else "-"
    if marker:
        error = line.std if line.std is not None and np.isfinite(line.std).any() else None
        axes.errorbar(
            line.x,
            line.mean,
            error,
            color=colour,
            linestyle=style,
            marker=marker,
            markersize=4,
            capsize=2.5,
            label=line.label,
        )
        return
    axes.plot(line.x, line.mean, color=colour, linestyle=style, label=line.label)
    if line.std is not None:
        low, high = line.mean - line.std, line.mean + line.std
        axes.fill_between(line.x, low, high, color=colour, alpha=0.18, linewidth=0)


def _leave_out_the_start(figure: Figure, lines: Sequence[Line]) -> None:
    """Choose the scale by the later epochs: the first tenth spans most of it, and may be cut off."""
    later = np.concatenate([line.mean[len(line.mean) // 10 :] for line in lines])
    low, high = later.min(), max(line.mean.max() for line in lines)
    margin = 0.08 * (high - low) or 1.0
    for axes in figure.axes:
        axes.set_ylim(low - margin, high + margin)


def _grid(count: int, height: float = 2.0) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels that share their axes, about four in a line, `height` inches each."""
    columns = min(4, count) if count != 5 else 3
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(2.3 * columns + 0.6, height * lines + 1.1), layout="constrained")
    panels = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    for unused in panels[count:]:
        unused.set_visible(False)
    for above in panels[max(0, count - columns) : count]:
        above.tick_params(labelbottom=True)
    return figure, panels[:count]


def _reliability_figure(section: Section) -> Figure | None:
    """Accuracy against confidence in 15 bins, all seeds' test images together. Guo et al. 2017, figure 1."""
    rows = [row for row in section.rows if all(run.results.get("reliability") for run in row.runs)]
    if not rows:
        return None
    figure, panels = _grid(len(rows), height=2.6)
    for panel, row in zip(panels, rows, strict=True):
        count, confidence, accuracy = pooled_reliability(row)
        edges = np.linspace(0, 100, len(count) + 1)
        share = 100 * count / count.sum()
        panel.bar(edges[:-1], share, np.diff(edges), align="edge", color="#d9d9d9", linewidth=0)
        panel.plot([0, 100], [0, 100], color="#808080", linestyle=":", linewidth=1)
        filled = count > 0
        panel.plot(
            100 * confidence[filled],
            100 * accuracy[filled],
            color=COLOURS[0],
            marker="o",
            markersize=3.5,
        )
        ece = [run.results["test_ece_last"] for run in row.runs]
        panel.set_title(f"{row.label}\nECE {np.mean(ece):.3f}", fontsize=8.5, loc="left")
        panel.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
    figure.supxlabel(
        "confidence (%)   (grey: share of the test images, %; dotted: perfect calibration)"
    )
    figure.supylabel("accuracy (%)")
    counts = _spread(rows, "").split(";")[0].removeprefix("mean over ")
    return _titled(
        figure, section, f"reliability, last epoch; test predictions of {counts} together"
    )


def pooled_reliability(row: Row) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Number of images (B,), mean confidence (B,) and accuracy (B,) in each bin, all seeds together.

    An empty bin has NaN for its means.
    """
    diagrams = [run.results["reliability"] for run in row.runs]
    count = np.array([d["count"] for d in diagrams], dtype=np.float64)  # (S,B)
    total = count.sum(axis=0)
    means = []
    for name in ("confidence", "accuracy"):
        values = np.array(
            [[v or 0.0 for v in d[name]] for d in diagrams], dtype=np.float64
        )  # (S,B)
        weighted = (values * count).sum(axis=0)
        means.append(np.divide(weighted, total, out=np.full_like(total, np.nan), where=total > 0))
    return total, means[0], means[1]
