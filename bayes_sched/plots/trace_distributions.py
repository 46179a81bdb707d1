"""How the batches of a trace are spread: over requests, and over time taken."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bayes_sched.analysis import TraceAnalysis
from bayes_sched.analysis.statistics import REGIMES
from bayes_sched.numbers import number
from bayes_sched.plots.points import Floats
from bayes_sched.plots.style import BLUE, INK, ORANGE, figure_legend, log_axis, new_figure, styled
from bayes_sched.plots.trace_times import REGIME_COLOURS, TIME_LABELS

_NUM_BINS = 60
_TITLES = {"schedule_ms": "How long scheduling takes", "latency_ms": "How long the model runs"}


@styled
def request_distributions(analysis: TraceAnalysis) -> Figure:
    """Draw how many prefill and how many decode requests the batches hold.

    How to read it: each bar is the share of the batches with so many requests of that kind, on a logarithmic
    scale, so that rare batches show.

    Parameters
    ----------
    analysis : TraceAnalysis

    Returns
    -------
    Figure
    """
    figure, axes = new_figure("Requests a batch", height_in=4.2, rows=2)
    kinds = (("num_prefill_reqs", "prefill", ORANGE), ("num_decode_reqs", "decode", BLUE))
    for ax, (name, kind, colour) in zip(axes[:, 0], kinds, strict=True):
        values = analysis.steps[name].to_numpy(float)
        width = max(1, int(np.ceil((values.max() + 1) / _NUM_BINS)))
        edges = np.arange(0, values.max() + 1 + width, width) - 0.5
        counts, _ = np.histogram(values, edges)
        ax.bar(edges[:-1], counts / len(values), width=0.9 * width, align="edge", color=colour)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
        ax.set_ylim(0.5 / len(values), 2.0)
        ax.set_xlabel(f"{kind} requests a batch" + (f", in bars of {width}" if width > 1 else ""))
        ax.set_ylabel("share of batches")
        ax.grid(visible=False, axis="x")
        ax.locator_params(axis="x", integer=True)
    return figure


@styled
def time_histogram(analysis: TraceAnalysis, name: str) -> Figure:
    """Draw the histogram of the schedule or the model-run time, kind by kind of batch.

    How to read it: the bars of the kinds stand on top of each other; the lines mark the time that half, 95%
    and 99% of all batches keep.

    Parameters
    ----------
    analysis : TraceAnalysis
    name : str
        ``schedule_ms`` (if the trace holds it) or ``latency_ms``.

    Returns
    -------
    Figure
    """
    figure, axes = new_figure(_TITLES[name], height_in=3.2)
    ax = axes[0, 0]
    steps = analysis.steps[analysis.steps[name] > 0]
    values = steps[name].to_numpy(float)
    edges = _log_edges(values)
    below = np.zeros(len(edges) - 1)
    for regime in REGIMES:
        chosen = values[(steps["regime"] == regime).to_numpy()]
        if not len(chosen):
            continue
        counts = np.histogram(chosen, edges)[0] + below
        ax.stairs(counts, edges, baseline=below, fill=True, color=REGIME_COLOURS[regime], label=regime)
        below = counts
    log_axis(ax.xaxis, sparse=np.log10(edges[-1] / edges[0]) > 3.0)
    ax.set_ylim(0.0, 1.18 * float(below.max()))
    _mark_quantiles(ax, values)
    ax.set_xlabel(f"{TIME_LABELS[name]}, logarithmic bars")
    ax.set_ylabel("batches")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    not_drawn = len(analysis.steps) - len(steps)
    if not_drawn:
        ax.set_title(f"{not_drawn:,} batches without a time above 0 are left out", fontsize=8.0)
    figure_legend(figure, ax, columns=3)
    return figure


def _log_edges(values: Floats) -> Floats:
    low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 1.0)
    if high <= 1.001 * low:
        low, high = 0.9 * low, 1.1 * high
    edges: Floats = np.geomspace(low, high, _NUM_BINS + 1)
    edges[0], edges[-1] = low, high  # a rounded edge would lose the extreme batch
    return edges


def _mark_quantiles(ax: Axes, values: Floats) -> None:
    if not len(values):
        return
    top = ax.get_ylim()[1]
    for level, height in ((0.5, 0.99), (0.95, 0.93), (0.99, 0.87)):
        at = float(np.quantile(values, level))
        ax.axvline(at, color=INK, linewidth=0.8, linestyle=":")
        ax.annotate(
            f"{level:.0%}: {number(at)}", (at, height * top), (2, 0), textcoords="offset points",
            fontsize=7.0, va="top",
        )  # fmt: skip
