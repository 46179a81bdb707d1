"""The load of a server over the time of a trace: tokens, requests, KV cache."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, StrMethodFormatter

from bayes_sched.analysis import TraceAnalysis
from bayes_sched.analysis.findings import KV_CACHE_FULL, QUEUE_BUILD_UP
from bayes_sched.plots.style import (
    BLUE,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    figure_legend,
    new_figure,
    styled,
)
from bayes_sched.plots.trace_axis import TraceAxis

LEVELS = ("num_waiting_reqs", "num_running_reqs", "kv_cache_usage")
"""Columns of `queue_and_cache`; one of them is enough."""


@styled
def tokens_over_time(analysis: TraceAnalysis) -> Figure:
    """Draw the tokens a second, prefilled and decoded ones on top of each other, over the time of the trace.

    How to read it: the height of both areas together is what the server processed. Without timestamps it is
    the tokens a batch.

    Parameters
    ----------
    analysis : TraceAnalysis

    Returns
    -------
    Figure
    """
    figure, axes = new_figure("Tokens over time", height_in=2.9)
    ax, place = axes[0, 0], TraceAxis(analysis)
    pieces = _without_gaps(analysis.over_time)
    width = pieces["to"] - pieces["from"]
    if analysis.clock == "none":
        divisor, unit = pieces["steps"].clip(lower=1), "tokens a batch"
    else:
        divisor, unit = width.where(width > 0), "tokens a second"
    total = (pieces["tokens"] / divisor).to_numpy(float)
    edges = place.place(np.append(pieces["from"], pieces["to"].iloc[-1]))
    if "prefill_tokens" in pieces:
        prefill = (pieces["prefill_tokens"] / divisor).to_numpy(float)
        ax.stairs(total - prefill, edges, fill=True, color=BLUE, label="decoded")
        ax.stairs(total, edges, baseline=total - prefill, fill=True, color=ORANGE, label="prefilled")
    else:
        ax.stairs(total, edges, fill=True, color=BLUE, label="prefilled and decoded")
    num = len(pieces)
    ax.set_title(f"mean of each of {num:,} equal piece{'s' * (num > 1)}", fontsize=8.0)
    ax.set_ylabel(unit)
    ax.set_ylim(bottom=0.0)
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    place.label(ax)
    figure_legend(figure, ax, columns=2)
    return figure


def _without_gaps(pieces: pd.DataFrame) -> pd.DataFrame:
    """Insert the pieces in which nothing was scheduled: there the server processed no token."""
    width = float((pieces["to"] - pieces["from"]).max())
    begin = float(pieces["from"].iloc[0])
    if width <= 0:
        return pieces
    number = ((pieces["from"] - begin) / width).round().astype(int)
    sums = pieces.set_index(number)[[name for name in _SUMS if name in pieces]]
    filled = sums.reindex(range(int(number.max()) + 1), fill_value=0)
    left = begin + width * filled.index.to_numpy(float)
    return filled.assign(**{"from": left, "to": left + width}).reset_index(drop=True)


_SUMS = ("steps", "tokens", "prefill_tokens")


@styled
def queue_and_cache(analysis: TraceAnalysis) -> Figure:
    """Draw the waiting and running requests and the use of the KV cache over the time of the trace.

    How to read it: the lines are means, the top of the light band is the maximum. Shaded spans are findings:
    a queue that built up, a KV cache near full.

    Parameters
    ----------
    analysis : TraceAnalysis
        Of a trace that holds at least one of `LEVELS`.

    Returns
    -------
    Figure
    """
    has_requests = any(name in analysis.steps for name in LEVELS[:2])
    has_cache = LEVELS[2] in analysis.steps
    rows = has_requests + has_cache
    figure, axes = new_figure(
        " and ".join(["Waiting queue"] * has_requests + ["KV cache"] * has_cache) + " over time",
        height_in=1.3 + 1.6 * rows,
        rows=rows,
        sharex=True,
    )
    place = TraceAxis(analysis)
    if has_requests:
        _draw_requests(axes[0, 0], analysis, place)
    if has_cache:
        _draw_cache(axes[-1, 0], analysis, place)
    axes[0, 0].set_title(place.pieces_text(), fontsize=8.0)
    place.label(axes[-1, 0])
    figure_legend(figure, axes[0, 0] if has_requests else axes[-1, 0], columns=2)
    return figure


def _draw_requests(ax: Axes, analysis: TraceAnalysis, place: TraceAxis) -> None:
    for name, label, colour in (
        ("num_running_reqs", "running", BLUE),
        ("num_waiting_reqs", "waiting", VERMILLION),
    ):
        if name in analysis.steps:
            _draw_level(ax, place, name, label, colour)
    _shade(ax, analysis, place, QUEUE_BUILD_UP)
    ax.set_ylabel("requests")
    ax.set_ylim(0.0, 1.08 * max(1.0, ax.get_ylim()[1]))
    ax.locator_params(axis="y", integer=True)


def _draw_cache(ax: Axes, analysis: TraceAnalysis, place: TraceAxis) -> None:
    _draw_level(ax, place, "kv_cache_usage", "KV cache", PURPLE)
    full = analysis.limits.full_kv_cache
    highest = float(analysis.steps["kv_cache_usage"].max())
    if highest > 0.5 * full:
        ax.axhline(full, color=VERMILLION, linewidth=1.0)
    _shade(ax, analysis, place, KV_CACHE_FULL)
    ax.set_ylabel("KV cache in use")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    ax.set_ylim(0.0, max(highest * 1.15, 1e-3))


def _draw_level(ax: Axes, place: TraceAxis, name: str, label: str, colour: str) -> None:
    x, (mean, highest) = place.stairs([f"{name}_mean", f"{name}_max"])
    ax.fill_between(x, mean, highest, color=colour, alpha=0.25, linewidth=0, label="up to the maximum")
    ax.plot(x, mean, color=colour, linewidth=1.2, label=f"{label}, mean")


def _shade(ax: Axes, analysis: TraceAnalysis, place: TraceAxis, kind: str) -> None:
    for finding in analysis.findings:
        if finding.kind == kind and finding.start_s is not None and finding.duration_s is not None:
            left, right = place.place([finding.start_s, finding.start_s + finding.duration_s])
            ax.axvspan(float(left), float(right), color=SKY, alpha=0.25, linewidth=0, zorder=0.4)
