"""Schedule and model-run time of a trace: over time, and one against the other."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, StrMethodFormatter

from bayes_sched.arrays import Floats
from bayes_sched.format import number
from bayes_sched.reports.plots.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    draw_points,
    figure_legend,
    log_axis,
    new_figure,
    styled,
)
from bayes_sched.steps import MAX_POINTS
from bayes_sched.trace.analysis import TraceAnalysis
from bayes_sched.trace.findings import KV_CACHE_FULL, QUEUE_BUILD_UP, SCHEDULE_RISE
from bayes_sched.trace.statistics import REGIMES
from bayes_sched.trace.time_series import axis_of

_UNITS = ((7200.0, 3600.0, "hours"), (300.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86_400.0
_TICKS_S = (
    *(1.0, 2.0, 5.0, 10.0, 15.0, 30.0),
    *(_MINUTE * n for n in (1, 2, 5, 10, 15, 30)),
    *(_HOUR * n for n in (1, 2, 3, 6, 12)),
    *(_DAY * n for n in (1, 2, 7, 30, 90, 365)),
)
"""Distances that ticks of dates may have."""
_MAX_TICKS = 4.5


class TraceAxis:
    """Where moments of a trace lie on the x axis: dates in UTC, time since its beginning, or batches."""

    def __init__(self, analysis: TraceAnalysis) -> None:
        self.analysis = analysis
        pieces = analysis.over_time
        self.reach = float(pieces["to"].max() - pieces["from"].min())
        _, self._unit_s, self._unit = next(unit for unit in _UNITS if self.reach >= unit[0])

    def place(self, seconds: object) -> Floats:
        """Return the places of moments in seconds since the beginning (or numbers of batches)."""
        values = np.asarray(seconds, float)
        return values / self._unit_s if self.analysis.clock in {"monotonic", "log"} else values

    def label(self, axes: Axes) -> None:
        """Label the x axis and give it readable numbers."""
        if self.analysis.clock == "unix":
            self._label_dates(axes)
        elif self.analysis.clock == "none":
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axes.set_xlabel("number of the batch")
        else:
            start = f"since {self.analysis.start}" if self.analysis.start else "since the trace began"
            axes.set_xlabel(f"{self._unit} {start}")

    def _label_dates(self, axes: Axes) -> None:
        """Put a few dates at even moments; a trace of a blink keeps its seconds since the first batch."""
        every_s = next((step for step in _TICKS_S if self.reach <= _MAX_TICKS * step), _TICKS_S[-1])
        start_s = self.analysis.unix_start_s
        first, last = math.ceil(start_s / every_s), math.floor((start_s + self.reach) / every_s)
        if last - first < 1:
            axes.set_xlabel(f"seconds since {self.analysis.start}")
            return
        template = "%m-%d" if every_s >= _DAY else "%m-%d %Hh" if self.reach >= _DAY else "%H:%M"
        template += ":%S" * (every_s < _MINUTE)
        moments = [every_s * number for number in range(first, last + 1)]
        labels = [f"{datetime.fromtimestamp(moment, UTC):{template}}" for moment in moments]
        axes.set_xticks([moment - start_s for moment in moments], labels)
        axes.set_xlabel(f"time (UTC), from {self.analysis.start[:10]} on")

    def stairs(self, names: list[str]) -> tuple[Floats, list[Floats]]:
        """Return x and the values of some columns of the pieces as flat lines over each piece.

        Where no batch was scheduled for a while, NaN interrupts the lines.
        """
        pieces = self.analysis.over_time
        left, right = pieces["from"].to_numpy(float), pieces["to"].to_numpy(float)
        is_gap = np.append(left[1:] - right[:-1] > 1e-6 * max(self.reach, 1e-9), False)
        x = np.column_stack([left, right, np.where(is_gap, right, np.nan)]).ravel()
        keep = np.isfinite(x)
        lines = [_flat(pieces[name], is_gap)[keep] for name in names]
        return self.place(x[keep]), lines

    def pieces_text(self) -> str:
        """Say how much each piece of the lines stands for."""
        num = len(self.analysis.over_time)
        batches = round(float(self.analysis.over_time["steps"].sum()) / num)
        return f"each line is made of {num:,} piece{'s' * (num > 1)} of about {batches:,} batches"


def _flat(values: pd.Series, is_gap: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Floats:
    y = values.to_numpy(float)
    return np.column_stack([y, y, np.full(len(y), np.nan)]).ravel()


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
