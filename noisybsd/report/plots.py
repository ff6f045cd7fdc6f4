"""The report's plots: matplotlib figures as inline SVG that follows the page's colours and font.

Colours are drawn as placeholders, which become the page's CSS variables, so that one picture is readable
on light and dark ground.

Dimensions: K classes, E epochs.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

# colours that occur in no figure: what the page calls them
_VARIABLES = {
    "#010101": "--ink",
    "#020202": "--muted",
    "#030303": "--line",
    "#040404": "--given",
    "#050505": "--suggested",
    "#060606": "--third",
}
INK, MUTED, LINE, GIVEN, SUGGESTED, THIRD = _VARIABLES

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 12,  # of a figure that is WIDTH wide, which the page shows a little larger or smaller
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "legend.fontsize": 11.5,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
}

WIDTH = 5.6  # of every figure, so that the letters of all are of one size
CLICKABLE = 30  # classes up to which every cell of the heat map is an element of its own
NUMBERED = 12  # classes up to which it also shows its number
NAME = 16  # characters of a class name on an axis

Matrix = npt.NDArray[np.float64]


def transition_plot(matrix: Matrix, class_names: Sequence[str]) -> str:
    """The transition matrix (K,K) as a heat map; cell (a, b) has the id `cell-a-b` up to CLICKABLE."""
    classes = len(class_names)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, WIDTH), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(False)
        # small probabilities are the interesting ones: the square root tells them apart
        shade = np.sqrt(np.nan_to_num(matrix).clip(0, 1))
        if classes <= CLICKABLE:
            for a, b in np.ndindex(matrix.shape):
                _cell(axes, a, b, float(matrix[a, b]), float(shade[a, b]), classes <= NUMBERED)
        else:
            ink = np.zeros((classes, classes, 4))
            ink[..., :3] = np.array([70, 130, 180]) / 255  # a picture cannot follow the theme
            ink[..., 3] = shade
            axes.imshow(ink, interpolation="nearest", aspect="auto")
        axes.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5))
        axes.set(xlabel="given label", ylabel="class by belief")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        shown = np.arange(0, classes, max(1, -(-classes // 40)))
        size = 11 if classes <= NUMBERED else 8 if classes <= CLICKABLE else 6
        short = [_short(class_names[k]) for k in shown.tolist()]
        upright = max(map(len, short)) * classes <= 24
        axes.set_xticks(shown, short, rotation=0 if upright else 90, fontsize=size)
        axes.set_yticks(shown, short, fontsize=size)
        return _svg(figure, "Transition matrix: how each class is labelled")


def _cell(axes: Axes, a: int, b: int, value: float, shade: float, number: bool) -> None:
    # a pixel of space between cells
    cell = Rectangle((b - 0.48, a - 0.48), 0.96, 0.96, facecolor=SUGGESTED, alpha=shade, lw=0)
    cell.set_gid(f"cell-{a}-{b}")
    axes.add_patch(cell)
    if number and np.isfinite(value):
        text = f"{value:.2f}".removeprefix("0") if value < 0.995 else "1"
        axes.text(b, a, text, ha="center", va="center", fontsize=10, color=INK)


def curves_plot(
    epochs: Sequence[float],
    lines: Sequence[tuple[str, Sequence[float | None], str, str]],
    level: tuple[str, float] | None = None,
) -> str:
    """Rates over epochs.

    Args:
        epochs: (E,).
        lines: label, values (E,), colour and line style of each.
        level: label and height of a horizontal line.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
        axes = figure.add_subplot()
        marker = "o" if len(epochs) < 2 else None
        for label, values, colour, style in lines:
            numbers = np.array([np.nan if v is None else v for v in values], float)
            axes.plot(epochs, numbers, style, color=colour, label=label, marker=marker)
        if level is not None:
            axes.axhline(level[1], color=MUTED, lw=1, ls=(0, (2, 2)), label=level[0])
        axes.set(xlabel="epoch", ylim=(-0.02, 1.02))
        axes.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
        return _svg(figure, ", ".join(label for label, *_ in lines) + " over epochs")


def reliability_plot(diagram: dict[str, list[Any]]) -> str:
    """Accuracy by confidence, from `metrics.reliability`; below it how many images are in each bin."""
    bins = len(diagram["count"])
    width = 1 / bins
    centres = (np.arange(bins) + 0.5) * width
    accuracy = np.array([np.nan if v is None else v for v in diagram["accuracy"]], float)
    count = np.array(diagram["count"], float)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        bars = {"width": 0.9 * width, "lw": 0}
        axes.bar(centres, accuracy, color=SUGGESTED, alpha=0.75, label="accuracy", **bars)
        axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=(0, (2, 2)), label="confidence")
        axes.set(ylim=(0, 1.02))
        axes.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)
        below.bar(centres, count / max(count.sum(), 1), color=MUTED, alpha=0.6, **bars)
        below.set(xlim=(0, 1), xlabel="confidence", ylabel="images")
        below.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
        below.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
        return _svg(figure, "Accuracy against confidence on the test set")


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= NAME else name[: NAME - 1] + "…"


def _svg(figure: Figure, label: str) -> str:
    """The figure as an SVG element; `label` is plain text that no user wrote."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a $ in a class name is a $
    buffer = io.StringIO()
    fonts = logging.getLogger("matplotlib.font_manager")
    level = fonts.level
    fonts.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # glyphs our font lacks: the page's may not
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    fonts.setLevel(level)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.S)
    svg = re.sub(r'style="[^"]*"', _themed, svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _themed(style: re.Match[str]) -> str:
    """An SVG style attribute in the page's font and colours."""
    text = re.sub(r'font-family: [^;"]*', "font-family: var(--font)", style[0])
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text
