"""What all figures share: colours and style, axes, legends, files; observed steps, and where none are."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from cycler import cycler
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, StrMethodFormatter

from bayes_sched.steps import MAX_POINTS, POSSIBLE, sample_steps

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, YELLOW = "#56B4E9", "#CC79A7", "#F0E442"
INK, GREY, HATCH, BAND, VEIL = "#222222", "#8C8C8C", "#C4C4C4", "#DDDDDD", "#F4F4F4"

CYCLE = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, INK, YELLOW)
"""Colours of things that are told apart only by colour, such as chains."""

WIDTH_IN = 4.8
"""Width of every figure, inches."""
DPI = 144
ORDER: Final = ("total_tokens", "batch_size")
"""Dims of a surface as matplotlib takes them: tokens upwards, requests to the right."""
X_LABEL: Final = "requests in the step, B"
Y_LABEL: Final = "tokens in the step, S"
SHARED: Any = {"sharex": True, "sharey": True}

_TITLE_CHARACTERS = 58
_PATTERN = "////"
_MAX_DOTS = 1500

type AxesGrid = np.ndarray[tuple[int, int], np.dtype[np.object_]]

STYLE: Any = {
    **dict.fromkeys(("figure.dpi", "savefig.dpi"), DPI),
    **dict.fromkeys(("figure.facecolor", "savefig.facecolor"), "white"),
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), 9.0),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8.0),
    **dict.fromkeys(("axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    **dict.fromkeys(("grid.linewidth", "hatch.linewidth"), 0.6),
    "font.family": "DejaVu Sans",
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "grid.color": "#E3E3E3",
    "lines.linewidth": 1.5,
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
    title: str, *, height_in: float, rows: int = 1, columns: int = 1, **share: Any
) -> tuple[Figure, AxesGrid]:
    """Return a figure with a title that states what it shows, and its axes, dims (row, column)."""
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **share)
    wrapped = "\n".join(textwrap.wrap(title, _TITLE_CHARACTERS))
    figure.suptitle(wrapped, x=0.01, ha="left", fontsize=10.0, fontweight="bold")
    return figure, axes


def new_axes(title: str, *, height_in: float) -> tuple[Figure, Axes]:
    """Return a figure of one plot."""
    figure, axes = new_figure(title, height_in=height_in)
    return figure, axes[0, 0]


def new_panels(
    title: str, number: int, *, head_in: float, each_in: float, columns: int = 1, **share: Any
) -> tuple[Figure, AxesGrid]:
    """Return a figure of so many panels, rows `each_in` high; axes left over are hidden."""
    rows = -(-number // columns)
    figure, axes = new_figure(title, height_in=head_in + each_in * rows, rows=rows, columns=columns, **share)
    for ax in axes.flat[number:]:
        ax.set_visible(False)
    return figure, axes


def shade(
    ax: Axes, x: Any, low: Any, high: Any, label: str | None = None, *, color: str = SKY, **look: Any
) -> None:
    """Fill the band between two lines, without an edge."""
    ax.fill_between(x, low, high, label=label, **{"color": color, "linewidth": 0, **look})


def log_axis(axis: Axis, *, sparse: bool = False) -> None:
    """Give an axis a logarithmic scale with plain numbers at 1, 2, 5 (or at 1 alone) of each decade."""

    def plain(value: float, _: object) -> str:
        exponent = math.log10(value) if value > 0.0 else 0.0
        return f"{value:g}" if -4.5 < exponent < 4.5 else f"$10^{{{exponent:.0f}}}$"

    axes = axis.axes
    (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
    major = LogLocator(subs=(1.0,), numticks=5) if sparse else LogLocator(subs=(1.0, 2.0, 5.0))
    axis.set_major_locator(major)
    axis.set_major_formatter(FuncFormatter(plain))
    axis.set_minor_locator(NullLocator())


def log_axes(ax: Axes, *, sparse: bool = False) -> None:
    """Give both axes logarithmic scales."""
    log_axis(ax.xaxis, sparse=sparse)
    log_axis(ax.yaxis, sparse=sparse)


def percent_axis(axis: Axis) -> None:
    """Write shares as percentages."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))


def count_axis(axis: Axis) -> None:
    """Write whole numbers, thousands set apart."""
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def rank_axes(ax: Axes, reach: float) -> None:
    """Set both axes (and those that share them) to relative ranks and to deviations around zero."""
    ax.set(ylim=(-reach, reach), xlim=(0.0, 1.0), xticks=[0.0, 0.5, 1.0])
    ax.set_xticklabels(["0", "0.5", "1"])


def hatch_extrapolation(axes: Axes, x: Any, where: Any, *, label: str | None = None) -> None:
    """Hatch the parts of an axis (`x`, `where`: dims (x,)) in which the trace holds no steps.

    They reach to the first point that holds some: one marked point alone has no width.
    """
    marked = np.asarray(where, bool)
    wide = (marked | np.append(False, marked[:-1]) | np.append(marked[1:], False)).tolist()
    lower, upper = axes.get_ylim()
    look: Any = {"facecolor": VEIL, "hatch": _PATTERN, "linewidth": 0.0, "zorder": 0.5}
    axes.fill_between(x, lower, upper, where=wide, label=label, **look)
    axes.set_ylim(lower, upper)


def label_outer(grid: AxesGrid, *, xlabel: str, ylabel: str) -> None:
    """Label the lowest visible axes of each column and the leftmost of each row."""
    for column in grid.T:
        for ax in [ax for ax in column if ax.get_visible()][-1:]:
            ax.set_xlabel(xlabel)
            ax.tick_params(labelbottom=True)
    for row in grid:
        if row[0].get_visible():
            row[0].set_ylabel(ylabel)


def figure_legend(figure: Figure, axes: Axes, *extra: Artist, columns: int = 2) -> Figure:
    """Put the legend of one of the axes under the figure, where it hides no data; return the figure."""
    handles, _ = axes.get_legend_handles_labels()
    legend = figure.legend(handles=[*handles, *extra], loc="outside lower left", ncols=columns)
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):  # dots, which are too faint and small to be seen alone
            handle.set_alpha(0.8)
            handle.set_sizes([14.0])
    return figure


def save_figure(figure: Figure, folder: Path, name: str, *, with_svg: bool = False) -> tuple[Path, ...]:
    """Write ``NAME.png``, and ``NAME.svg`` if that is wanted, into an existing folder; return their paths.

    The bytes do not depend on the time of writing.
    """
    paths = tuple(folder / f"{name}.{kind}" for kind in ("png", "svg")[: 1 + with_svg])
    with mpl.rc_context(STYLE):
        figure.savefig(paths[0], dpi=DPI, pil_kwargs={"compress_level": 3})  # of 9: half the time, 2 % more
        figure.set_layout_engine("none")  # keeps the layout that was just found instead of finding it again
        for svg in paths[1:]:
            figure.savefig(svg, metadata={"Date": None})
    return paths


def has_area(ax: Axes, surface: xr.DataArray, *, whose: str = "the trace holds") -> bool:
    """Return whether a surface has two sizes in each direction; if not, the axes say why they are empty."""
    if min(surface.shape) < 2:
        ax.text(0.5, 0.5, f"{whose} one B or one S only", transform=ax.transAxes, ha="center")
        return False
    return True


def draw_veil(ax: Axes, fine: xr.Dataset, is_extrapolation: xr.DataArray) -> None:
    """Hatch where data hold no such steps; both on a fine grid, dims (batch_size, total_tokens)."""
    hidden = is_extrapolation.astype(float).where(fine[POSSIBLE]).transpose(*ORDER)
    if min(hidden.shape) < 2 or not bool((hidden > 0.5).any()):
        return
    look: Any = {"levels": [0.5, 1.5], "colors": [VEIL], "alpha": 0.6, "hatches": [_PATTERN]}
    ax.contourf(hidden["batch_size"], hidden["total_tokens"], hidden, **look).set_linewidth(0.0)


def veil_handle(label: str = "no such steps in the trace") -> Patch:
    """Return the veil's entry in a legend."""
    return Patch(facecolor=VEIL, hatch=_PATTERN, linewidth=0.0, label=label)


def draw_seen(ax: Axes, steps: pd.DataFrame) -> None:
    """Dot the combinations of `batch_size` and `total_tokens` that `steps` holds."""
    cells = sample_steps(steps[["batch_size", "total_tokens"]].drop_duplicates(), _MAX_DOTS)
    look: Any = {"s": 1.5, "color": "black", "alpha": 0.6, "linewidths": 0, "rasterized": True}
    ax.scatter(cells["batch_size"], cells["total_tokens"], **look)


def draw_points(axes: Axes, x: Any, y: Any, *, label: str | None = None, size: float = 5.0) -> None:
    """Draw observed steps as small translucent dots; a picture inside an SVG, which stays small so."""
    alpha = float(np.clip(150.0 / max(len(x), 1), 0.15, 0.6))
    look: Any = {"color": INK, "linewidths": 0, "rasterized": True, "zorder": 1.5}
    axes.scatter(x, y, s=size, alpha=alpha, label=label, **look)


def draw_steps(
    ax: Axes, steps: pd.DataFrame, x: str, *, most: int = MAX_POINTS, label: str | None = None
) -> None:
    """Draw the latencies of so many observed steps at most against a column."""
    shown = sample_steps(steps, most)
    draw_points(ax, shown[x], shown["latency_ms"], label=label)


def limit_above(axes: Axes, values: Any, top: float, *, unit: str = "ms") -> None:
    """End the y axis at `top` and say in the corner how many observed values lie above it."""
    axes.set_ylim(0.0, top)
    above = int((np.asarray(values) > top).sum())
    if above:
        text = f"{above:,} step{'s' if above > 1 else ''} above {top:.3g} {unit}"
        axes.annotate(text, (0.02, 0.98), xycoords="axes fraction", va="top", fontsize=7.0)
