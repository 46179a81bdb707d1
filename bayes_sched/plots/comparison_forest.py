"""The parameters of several servers as a forest plot."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatterMathtext, LogLocator, NullLocator

from bayes_sched.comparison import Comparison
from bayes_sched.comparison.verdicts import rope_bounds
from bayes_sched.plots.comparison_maps import MAX_PAIRS
from bayes_sched.plots.style import BAND, CYCLE, GREY, INK, new_figure, styled

_MARKERS = ("o", "s", "D")
_LONG_LABEL = 30


@styled
def parameter_forest(comparison: Comparison) -> Figure:
    """Draw the ratio of each parameter and combination between servers, with its credible interval.

    How to read it: a filled mark is a quantity that the data identify on both servers; right of the grey bar
    it is larger on the first. A hollow one is not identified: its place is the priors' doing, and there is no
    verdict. The grey bar is the region of practical equivalence.

    Parameters
    ----------
    comparison : Comparison

    Returns
    -------
    Figure
    """
    table = comparison.parameter_ratios[comparison.parameter_ratios["kind"] != "noise"]
    names = table["name"].drop_duplicates().tolist()
    pairs = table[["gpu", "other"]].drop_duplicates().head(MAX_PAIRS)
    figure, axes = new_figure(
        "Ratio of each parameter between servers", height_in=1.5 + 0.26 * len(names) * max(1, len(pairs) - 1)
    )
    ax: Axes = axes[0, 0]
    low, high = rope_bounds(comparison.rope)
    ax.axvspan(low, high, color=BAND, zorder=0.4)
    ax.axvline(1.0, color=GREY, linewidth=0.8, zorder=0.5)
    handles: list[Line2D | Patch] = []
    offsets = np.linspace(-0.28, 0.28, len(pairs)) if len(pairs) > 1 else np.zeros(1)
    for number, (gpu, other) in enumerate(pairs.itertuples(index=False)):
        chosen = table[(table["gpu"] == gpu) & (table["other"] == other)].set_index("name")
        marker, colour = _MARKERS[number], CYCLE[number]
        for place, name in enumerate(names):
            _draw(ax, chosen.loc[name], place + offsets[number], marker, colour)
        handles.append(Line2D([], [], color=colour, marker=marker, label=f"{gpu} over {other}"))
    handles.append(
        Line2D([], [], color=GREY, marker="o", markerfacecolor="white", linestyle=":", label="not identified")
    )
    handles.append(Patch(facecolor=BAND, label="practical equivalence"))
    _axes(ax, comparison, names)
    longest = max(len(str(handle.get_label())) for handle in handles)
    figure.legend(handles=handles, loc="outside lower left", ncols=1 if longest > _LONG_LABEL else 2)
    return figure


def _draw(ax: Axes, row: pd.Series, y: float, marker: str, colour: str) -> None:
    is_known = bool(row["identified"])
    ax.plot(
        [float(row["ratio_lower"]), float(row["ratio_upper"])],
        [y, y],
        color=colour if is_known else GREY,
        linestyle="-" if is_known else ":",
        linewidth=1.6 if is_known else 1.0,
    )
    ax.plot(
        float(row["ratio_median"]),
        y,
        marker=marker,
        markersize=4.5,
        color=colour if is_known else GREY,
        markerfacecolor=colour if is_known else "white",
    )


def _axes(ax: Axes, comparison: Comparison, names: list[str]) -> None:
    symbols = {p.name: f"${p.symbol}$" for p in comparison.members[0].fit.model.parameters}
    meanings = comparison.parameters.drop_duplicates("name").set_index("name")["unit"]
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(numticks=8))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(LogFormatterMathtext())
    ax.set_yticks(range(len(names)), [f"{symbols.get(name, name)}  [{meanings.loc[name]}]" for name in names])
    ax.set_ylim(len(names) - 0.4, -0.6)
    number_of_parameters = sum(name in symbols for name in names)
    ax.axhline(number_of_parameters - 0.5, color=INK, linewidth=0.6)
    ax.set_xlabel(f"ratio ({100 * comparison.probability:g}% credible interval)")
    ax.grid(axis="y", visible=False)
