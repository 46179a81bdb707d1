"""Schedule and model-run time of a trace: over time, and one against the other."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bayes_sched.analysis import TraceAnalysis
from bayes_sched.analysis.findings import SCHEDULE_RISE
from bayes_sched.analysis.over_time import axis_of
from bayes_sched.plots.points import MAX_POINTS, draw_points
from bayes_sched.plots.style import (
    BLUE,
    GREY,
    INK,
    SKY,
    VERMILLION,
    figure_legend,
    log_axis,
    new_figure,
    styled,
)
from bayes_sched.plots.trace_axis import TraceAxis

TIME_LABELS = {"schedule_ms": "schedule time (ms)", "latency_ms": "model-run time (ms)"}
REGIME_COLOURS = {"decode only": BLUE, "mixed": "#E69F00", "prefill only": "#009E73"}
_SHARES = (0.01, 0.1, 1.0)


@styled
def times_over_time(analysis: TraceAnalysis) -> Figure:
    """Draw schedule and model-run time over the time of the trace.

    How to read it: the lines are the medians of the batches that only decode and of those that prefill, the
    band holds 90% of all batches of a piece of time, and the dots are its slowest batch. A vertical line
    marks a sudden rise of the schedule time.

    Parameters
    ----------
    analysis : TraceAnalysis

    Returns
    -------
    Figure
    """
    names = [name for name in TIME_LABELS if name in analysis.steps]
    figure, axes = new_figure(
        "How long batches take, over time", height_in=1.1 + 1.9 * len(names), rows=len(names), sharex=True
    )
    place = TraceAxis(analysis)
    for ax, name in zip(axes[:, 0], names, strict=True):
        _draw_times(ax, analysis, place, name)
    rises = [f.start_s for f in analysis.findings if f.kind == SCHEDULE_RISE and f.start_s is not None]
    if rises and "schedule_ms" in names:
        for number, moment in enumerate(place.place(rises)):
            label = "sudden rise" if number == 0 else None
            axes[0, 0].axvline(float(moment), color=INK, linestyle="--", linewidth=1.0, label=label)
    axes[0, 0].set_title(place.pieces_text(), fontsize=8.0)
    place.label(axes[-1, 0])
    figure_legend(figure, axes[0, 0], columns=3)
    return figure


def _draw_times(ax: Axes, analysis: TraceAnalysis, place: TraceAxis, name: str) -> None:
    columns = [f"{name}_{q}" for q in ("p5", "p95", "decode", "prefill")]
    x, (low, high, decode, prefill) = place.stairs(columns)
    pieces = analysis.over_time
    centres = place.place((pieces["from"] + pieces["to"]) / 2)
    if len(analysis.steps) <= MAX_POINTS:
        draw_points(ax, place.place(axis_of(analysis.steps)), analysis.steps[name], size=3.0, label="batches")
    ax.fill_between(x, low, high, color=SKY, alpha=0.35, linewidth=0, label="5% to 95%")
    ax.plot(x, prefill, color=VERMILLION, linewidth=1.2, label="median with prefill")
    ax.plot(x, decode, color=BLUE, linewidth=1.2, label="median of decode only")
    ax.scatter(centres, pieces[f"{name}_max"], s=9.0, marker="^", color=INK, linewidths=0, label="slowest")
    ax.set_ylabel(TIME_LABELS[name])
    if _is_positive(pieces[f"{name}_p5"]):
        log_axis(ax.yaxis, sparse=_decades(pieces[f"{name}_p5"], pieces[f"{name}_max"]) > 2.0)


def _is_positive(values: pd.Series) -> bool:
    return bool((values.dropna() > 0).all())


def _decades(low: pd.Series, high: pd.Series) -> float:
    return float(np.log10(high.max() / low.min()))


@styled
def schedule_against_model_run(analysis: TraceAnalysis) -> Figure:
    """Draw the schedule time of each batch against its model-run time.

    How to read it: on the dashed lines scheduling takes 1%, 10% or 100% of the model run. Batches above the
    limit at the top of the plot waited for the scheduler.

    Parameters
    ----------
    analysis : TraceAnalysis
        Of a trace that holds the schedule time.

    Returns
    -------
    Figure
    """
    steps = analysis.steps
    steps = steps[(steps["schedule_ms"] > 0) & (steps["latency_ms"] > 0)]
    figure, axes = new_figure("Schedule time against model-run time", height_in=4.0)
    ax = axes[0, 0]
    x, y = steps["latency_ms"].to_numpy(float), steps["schedule_ms"].to_numpy(float)
    if len(steps) <= MAX_POINTS:
        for regime, rows in steps.groupby("regime", observed=True):
            colour = REGIME_COLOURS[str(regime)]
            ax.scatter(
                rows["latency_ms"], rows["schedule_ms"], s=6.0, color=colour, alpha=0.5, linewidths=0,
                rasterized=True, label=str(regime),
            )  # fmt: skip
        figure_legend(figure, ax, columns=3)
    elif len(steps):
        cells = ax.hexbin(
            x, y, gridsize=60, xscale="log", yscale="log", norm=LogNorm(), cmap="viridis_r", mincnt=1,
            linewidths=0.2,
        )  # fmt: skip
        bar = figure.colorbar(cells, ax=ax, label=f"batches a cell, of {len(steps):,}")
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    log_axis(ax.xaxis)
    log_axis(ax.yaxis, sparse=len(y) > 0 and np.log10(y.max() / y.min()) > 2.0)
    _draw_shares(ax, x)
    slow_ms = analysis.limits.slow_schedule_ms
    if len(y) and y.max() > slow_ms:
        ax.axhline(slow_ms, color=VERMILLION, linewidth=1.0)
        ax.annotate(
            f"{int((y > slow_ms).sum()):,} above {slow_ms:g} ms", (0.01, slow_ms), (0, 2),
            xycoords=("axes fraction", "data"), textcoords="offset points", ha="left", fontsize=7.0,
            color=VERMILLION, bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
    ax.set(xlabel=TIME_LABELS["latency_ms"], ylabel=TIME_LABELS["schedule_ms"])
    return figure


def _draw_shares(ax: Axes, x: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
    """Draw the lines of equal shares as far as they cross the plot."""
    if not len(x):
        return
    ax.autoscale_view()
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    for share in _SHARES:
        first, last = max(left, low / share), min(right, high / share)
        if first >= last:
            continue
        ax.plot([first, last], [share * first, share * last], color=GREY, linestyle="--", linewidth=0.8)
        ax.annotate(
            f"{share:.0%}", (last, share * last), (-2, -2), textcoords="offset points", fontsize=7.0,
            ha="right", va="top", color=INK,
        )  # fmt: skip
    ax.set(xlim=(left, right), ylim=(low, high))
