"""Promises on held-out steps of real traces."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayes_sched.plots.style import (
    BLUE,
    GREY,
    ORANGE,
    figure_legend,
    label_outer,
    log_axis,
    new_figure,
    styled,
)

LEAST = 3e-4
"""Where a share of 0 is drawn."""
_COLOURS = {"decode": BLUE, "mixed": ORANGE}
_MARKERS = {"random": ("o", True), "blocks": ("s", False)}
_HELD_OUT = {"random": "held out at random", "blocks": "100 in a row"}
_COLUMNS = 2


@styled
def promise_calibration(calibration: pd.DataFrame, *, interval: float) -> Figure:
    """Draw realised against predicted shares of steps that exceed a limit, a panel a trace.

    How to read it: on the diagonal as many held-out steps exceed a limit as was predicted. Above it, limits
    are exceeded more often than predicted, so that promises are broken; below it, less often. Both axes are
    logarithmic; a share of 0 is drawn at the bottom, with the interval above it.

    Parameters
    ----------
    calibration : DataFrame
        Of :func:`bayes_sched.promises.trace_tables.calibration_table`.
    interval : float
        Probability of the intervals.

    Returns
    -------
    Figure
    """
    traces = list(dict.fromkeys(calibration["trace"]))
    num_rows = -(-len(traces) // _COLUMNS)
    figure, axes = new_figure(
        f"Do as many held-out steps exceed a limit as predicted? ({interval:.0%} intervals)",
        height_in=1.1 + 2.15 * num_rows,
        rows=num_rows,
        columns=_COLUMNS,
        sharex=True,
        sharey=True,
    )
    for ax, trace in zip(axes.flat, traces, strict=False):
        _draw_trace(ax, calibration[calibration["trace"] == trace])
        ax.set_title(trace.replace("_", " ", 1), fontsize=7.5)
    for ax in list(axes.flat)[len(traces) :]:
        ax.set_visible(False)
    label_outer(axes, xlabel="predicted share", ylabel="realised share")
    figure_legend(figure, axes[0, 0], columns=2)
    return figure


def _draw_trace(ax: Axes, rows: pd.DataFrame) -> None:
    log_axis(ax.xaxis, sparse=True)
    log_axis(ax.yaxis, sparse=True)
    ax.set(xlim=(LEAST, 1.0), ylim=(LEAST / 1.3, 1.0))
    ax.plot([LEAST, 1.0], [LEAST, 1.0], color=GREY, linewidth=0.8)
    for regime, colour in _COLOURS.items():
        for split, (marker, is_filled) in _MARKERS.items():
            chosen = rows[(rows["regime"] == regime) & (rows["split"] == split)]
            shift = 1.0 if is_filled else 1.12
            place = chosen["predicted"] * shift
            ax.vlines(place, chosen["lower"].clip(lower=LEAST), chosen["upper"], color=colour, linewidth=0.8)
            ax.plot(
                place,
                chosen["realised"].clip(lower=LEAST),
                marker,
                color=colour,
                markersize=3.5,
                markerfacecolor=colour if is_filled else "white",
                label=f"{regime} steps, {_HELD_OUT[split]}",
            )
