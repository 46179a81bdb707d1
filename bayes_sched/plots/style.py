"""The look that all figures share: colours, axes, sizes, and how a figure becomes files.

Figures are drawn for a column as wide as a phone, so that their text stays legible there, and their colours
(Okabe and Ito) stay apart for colour-blind readers. No figure touches the state of ``matplotlib.pyplot``.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
VERMILLION = "#D55E00"
SKY = "#56B4E9"
PURPLE = "#CC79A7"
YELLOW = "#F0E442"
INK = "#222222"
GREY = "#8C8C8C"
VEIL = "#F4F4F4"
HATCH = "#C4C4C4"
BAND = "#DDDDDD"

CYCLE = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, INK, YELLOW)
"""Colours of things that are told apart only by colour, such as chains."""

WIDTH_IN = 4.8
"""Width of every figure, inches."""
DPI = 144
_TITLE_CHARACTERS = 58

type AxesGrid = np.ndarray[tuple[int, int], np.dtype[np.object_]]

STYLE: Any = {
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "hatch.linewidth": 0.6,
    "hatch.color": HATCH,
    "svg.hashsalt": "bayes-sched",
    "axes.prop_cycle": cycler(color=CYCLE),
}


def styled[**P, R](draw: Callable[P, R]) -> Callable[P, R]:
    """Run a plot function under the shared style, and leave the caller's settings as they were."""

    @wraps(draw)
    def draw_styled(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return draw_styled


def new_figure(
    title: str,
    *,
    height_in: float,
    rows: int = 1,
    columns: int = 1,
    sharex: bool | str = False,
    sharey: bool | str = False,
) -> tuple[Figure, AxesGrid]:
    """Return a figure with a title that states what it shows, and its axes, dims (row, column)."""
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)  # type: ignore[arg-type]
    wrapped = "\n".join(textwrap.wrap(title, _TITLE_CHARACTERS))
    figure.suptitle(wrapped, x=0.01, ha="left", fontsize=10.0, fontweight="bold")
    return figure, axes


def log_axis(axis: Axis, *, sparse: bool = False) -> None:
    """Give an axis a logarithmic scale with plain numbers at 1, 2, 5 (or at 1 alone) of each decade."""
    axes = axis.axes
    if axis is axes.xaxis:
        axes.set_xscale("log")
    else:
        axes.set_yscale("log")
    axis.set_major_locator(
        LogLocator(subs=(1.0,), numticks=5) if sparse else LogLocator(subs=(1.0, 2.0, 5.0))
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    axis.set_minor_locator(NullLocator())


def _plain(value: float) -> str:
    exponent = math.log10(value) if value > 0.0 else 0.0
    return f"{value:g}" if -4.5 < exponent < 4.5 else f"$10^{{{exponent:.0f}}}$"


def hatch_extrapolation(axes: Axes, x: Any, where: Any, *, label: str | None = None) -> None:
    """Hatch the parts of an axis (`x`, `where`: dims (x,)) in which the trace holds no steps."""
    lower, upper = axes.get_ylim()
    axes.fill_between(
        x,
        lower,
        upper,
        where=_widened(np.asarray(where, bool)).tolist(),
        facecolor=VEIL,
        hatch="////",
        linewidth=0.0,
        zorder=0.5,
        label=label,
    )
    axes.set_ylim(lower, upper)


def _widened(where: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Let a marked range reach the first unmarked point: one marked point alone has no width."""
    wide = where.copy()
    wide[1:] |= where[:-1]
    wide[:-1] |= where[1:]
    return wide if where.any() else where


def label_outer(grid: AxesGrid, *, xlabel: str, ylabel: str) -> None:
    """Label the lowest visible axes of each column and the leftmost of each row."""
    for column in grid.T:
        lowest = [ax for ax in column if ax.get_visible()][-1:]
        for ax in lowest:
            ax.set_xlabel(xlabel)
            ax.tick_params(labelbottom=True)
    for row in grid:
        if row[0].get_visible():
            row[0].set_ylabel(ylabel)


def figure_legend(figure: Figure, axes: Axes, *, columns: int = 2) -> None:
    """Put the legend of one of the axes under the figure, where it hides no data."""
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower left", ncols=columns)
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):  # dots, which are too faint and small to be seen alone
            handle.set_alpha(0.8)
            handle.set_sizes([14.0])


def save_figure(figure: Figure, folder: str | Path, name: str) -> tuple[Path, Path]:
    """Write ``NAME.png`` and ``NAME.svg`` into an existing folder and return their paths.

    The bytes do not depend on the time of writing.
    """
    png, svg = Path(folder) / f"{name}.png", Path(folder) / f"{name}.svg"
    with mpl.rc_context(STYLE):
        figure.savefig(png, dpi=DPI)
        figure.set_layout_engine("none")  # keeps the layout that was just found instead of finding it again
        figure.savefig(svg, metadata={"Date": None})
    return png, svg
