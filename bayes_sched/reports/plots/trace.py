"""Figures of a trace: times, tokens, queue and cache over its time, and how they are distributed."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from bayes_sched.arrays import Floats
from bayes_sched.format import counted, number
from bayes_sched.reports.plots import style
from bayes_sched.steps import MAX_POINTS
from bayes_sched.trace.analysis import LEVELS, QUANTILES, REGIMES, TraceAnalysis, axis_of
from bayes_sched.trace.findings import KV_CACHE_FULL, QUEUE_BUILD_UP, SCHEDULE_RISE

TIME_LABELS = {"schedule_ms": "schedule time (ms)", "latency_ms": "model-run time (ms)"}
REGIME_COLOURS = dict(zip(REGIMES, (style.BLUE, style.ORANGE, style.GREEN), strict=True))

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
_NUM_BINS = 60
_TITLES = {"schedule_ms": "How long scheduling takes", "latency_ms": "How long the model runs"}
_SUMS = ("steps", "tokens", "prefill_tokens")
_SHARES = (0.01, 0.1, 1.0)
_BOX: Any = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.5}


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
            style.count_axis(axes.xaxis)
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
        """Return x and some columns as flat lines over each piece, with NaN where no batch was scheduled."""
        pieces = self.analysis.over_time
        left, right = pieces["from"].to_numpy(float), pieces["to"].to_numpy(float)
        is_gap = np.append(left[1:] - right[:-1] > 1e-6 * max(self.reach, 1e-9), False)
        keep = np.repeat(True, 3 * len(pieces))
        keep[2::3] = is_gap
        values = [np.repeat(pieces[name].to_numpy(float), 3) for name in names]
        for line in values:
            line[2::3] = np.nan
        return self.place(np.column_stack([left, right, right]).ravel()[keep]), [v[keep] for v in values]

    def pieces_text(self) -> str:
        """Say how much each piece of the lines stands for."""
        num = len(self.analysis.over_time)
        batches = round(float(self.analysis.over_time["steps"].sum()) / num)
        return f"each line is made of {counted(num, 'piece')} of about {batches:,} batches"


@style.styled
def times_over_time(analysis: TraceAnalysis) -> Figure:
    """Draw schedule and model-run time over the time of the trace."""
    names = [name for name in TIME_LABELS if name in analysis.steps]
    title = "How long batches take, over time"
    figure, axes = style.new_panels(title, len(names), head_in=1.1, each_in=1.9, sharex=True)
    place = TraceAxis(analysis)
    for ax, name in zip(axes[:, 0], names, strict=True):
        _draw_times(ax, analysis, place, name)
    rises = [f.start_s for f in analysis.findings if f.kind == SCHEDULE_RISE and f.start_s is not None]
    for num, moment in enumerate(place.place(rises)):
        label = None if num else "sudden rise"
        axes[0, 0].axvline(float(moment), color=style.INK, linestyle="--", linewidth=1.0, label=label)
    return _over_time(figure, axes, place, columns=3)


def _over_time(figure: Figure, axes: style.AxesGrid, place: TraceAxis, *, columns: int) -> Figure:
    """Finish a figure of panels over the time of a trace."""
    axes[0, 0].set_title(place.pieces_text(), fontsize=8.0)
    place.label(axes[-1, 0])
    return style.figure_legend(figure, axes[0, 0], columns=columns)


def _draw_times(ax: Axes, analysis: TraceAnalysis, place: TraceAxis, name: str) -> None:
    columns = [f"{name}_{q}" for q in ("p5", "p95", "decode", "prefill")]
    x, (low, high, decode, prefill) = place.stairs(columns)
    pieces = analysis.over_time
    centres = place.place((pieces["from"] + pieces["to"]) / 2)
    if len(analysis.steps) <= MAX_POINTS:
        at = place.place(axis_of(analysis.steps))
        style.draw_points(ax, at, analysis.steps[name], size=3.0, label="batches")
    style.shade(ax, x, low, high, "5% to 95%", alpha=0.35)
    ax.plot(x, prefill, color=style.VERMILLION, linewidth=1.2, label="median with prefill")
    ax.plot(x, decode, color=style.BLUE, linewidth=1.2, label="median of decode only")
    triangle: Any = {"s": 9.0, "marker": "^", "color": style.INK, "linewidths": 0}
    ax.scatter(centres, pieces[f"{name}_max"], label="slowest", **triangle)
    ax.set_ylabel(TIME_LABELS[name])
    lowest, highest = pieces[f"{name}_p5"].min(), pieces[f"{name}_max"].max()
    if not lowest <= 0:
        style.log_axis(ax.yaxis, sparse=highest > 100 * lowest)


@style.styled
def tokens_over_time(analysis: TraceAnalysis) -> Figure:
    """Draw the tokens a second, prefilled ones on top of decoded ones; without timestamps those a batch."""
    figure, ax = style.new_axes("Tokens over time", height_in=2.9)
    place = TraceAxis(analysis)
    pieces = _without_gaps(analysis.over_time)
    width = pieces["to"] - pieces["from"]
    if analysis.clock == "none":
        divisor, unit = pieces["steps"].clip(lower=1), "tokens a batch"
    else:
        divisor, unit = width.where(width > 0), "tokens a second"
    total = (pieces["tokens"] / divisor).to_numpy(float)
    edges = place.place(np.append(pieces["from"], pieces["to"].iloc[-1]))
    if "prefill_tokens" in pieces:
        decoded = total - (pieces["prefill_tokens"] / divisor).to_numpy(float)
        ax.stairs(decoded, edges, fill=True, color=style.BLUE, label="decoded")
        ax.stairs(total, edges, baseline=decoded, fill=True, color=style.ORANGE, label="prefilled")
    else:
        ax.stairs(total, edges, fill=True, color=style.BLUE, label="prefilled and decoded")
    ax.set_title(f"mean of each of {counted(len(pieces), 'equal piece')}", fontsize=8.0)
    ax.set(ylabel=unit, ylim=(0.0, None))
    style.count_axis(ax.yaxis)
    place.label(ax)
    return style.figure_legend(figure, ax, columns=2)


def _without_gaps(pieces: pd.DataFrame) -> pd.DataFrame:
    """Insert the pieces in which nothing was scheduled: there the server processed no token."""
    width = float((pieces["to"] - pieces["from"]).max())
    begin = float(pieces["from"].iloc[0])
    if width <= 0:
        return pieces
    places = ((pieces["from"] - begin) / width).round().astype(int)
    sums = pieces.set_index(places)[[name for name in _SUMS if name in pieces]]
    filled = sums.reindex(range(int(places.max()) + 1), fill_value=0)
    left = begin + width * filled.index.to_numpy(float)
    return filled.assign(**{"from": left, "to": left + width}).reset_index(drop=True)


@style.styled
def queue_and_cache(analysis: TraceAnalysis) -> Figure:
    """Draw waiting and running requests and the use of the KV cache over the time of the trace."""
    has_requests = any(name in analysis.steps for name in LEVELS[:2])
    has_cache = LEVELS[2] in analysis.steps
    rows = has_requests + has_cache
    title = " and ".join(["Waiting queue"] * has_requests + ["KV cache"] * has_cache)
    figure, axes = style.new_panels(f"{title} over time", rows, head_in=1.3, each_in=1.6, sharex=True)
    place = TraceAxis(analysis)
    if has_requests:
        ax = axes[0, 0]
        for kind, colour in (("running", style.BLUE), ("waiting", style.VERMILLION)):
            if f"num_{kind}_reqs" in analysis.steps:
                _draw_level(ax, place, f"num_{kind}_reqs", kind, colour)
        _shade(ax, analysis, place, QUEUE_BUILD_UP)
        ax.set(ylabel="requests", ylim=(0.0, 1.08 * max(1.0, ax.get_ylim()[1])))
        ax.locator_params(axis="y", integer=True)
    if has_cache:
        _draw_cache(axes[-1, 0], analysis, place)
    return _over_time(figure, axes, place, columns=2)


def _draw_cache(ax: Axes, analysis: TraceAnalysis, place: TraceAxis) -> None:
    _draw_level(ax, place, "kv_cache_usage", "KV cache", style.PURPLE)
    full = analysis.limits.full_kv_cache
    highest = float(analysis.over_time["kv_cache_usage_max"].max())
    if highest > 0.5 * full:
        ax.axhline(full, color=style.VERMILLION, linewidth=1.0)
    _shade(ax, analysis, place, KV_CACHE_FULL)
    style.percent_axis(ax.yaxis)
    ax.set(ylabel="KV cache in use", ylim=(0.0, max(highest * 1.15, 1e-3)))


def _draw_level(ax: Axes, place: TraceAxis, name: str, label: str, colour: str) -> None:
    x, (mean, highest) = place.stairs([f"{name}_mean", f"{name}_max"])
    style.shade(ax, x, mean, highest, "up to the maximum", color=colour, alpha=0.25)
    ax.plot(x, mean, color=colour, linewidth=1.2, label=f"{label}, mean")


def _shade(ax: Axes, analysis: TraceAnalysis, place: TraceAxis, kind: str) -> None:
    for finding in analysis.findings:
        if finding.kind == kind and finding.start_s is not None and finding.duration_s is not None:
            left, right = place.place([finding.start_s, finding.start_s + finding.duration_s])
            ax.axvspan(float(left), float(right), color=style.SKY, alpha=0.25, linewidth=0, zorder=0.4)


@style.styled
def request_distributions(analysis: TraceAnalysis) -> Figure:
    """Draw how many prefill and decode requests the batches hold, as shares of all on a log scale."""
    figure, axes = style.new_figure("Requests a batch", height_in=4.2, rows=2)
    kinds = (("num_prefill_reqs", "prefill", style.ORANGE), ("num_decode_reqs", "decode", style.BLUE))
    for ax, (name, kind, colour) in zip(axes[:, 0], kinds, strict=True):
        values = analysis.steps[name].to_numpy(float)
        width = max(1, int(np.ceil((values.max() + 1) / _NUM_BINS)))
        edges = np.arange(0, values.max() + 1 + width, width) - 0.5
        counts, _ = np.histogram(values, edges)
        ax.bar(edges[:-1], counts / len(values), width=0.9 * width, align="edge", color=colour)
        ax.set_yscale("log")
        style.percent_axis(ax.yaxis)
        bars = f", in bars of {width}" if width > 1 else ""
        ax.set(xlabel=f"{kind} requests a batch{bars}", ylabel="share of batches")
        ax.set_ylim(0.5 / len(values), 2.0)
        ax.grid(visible=False, axis="x")
        ax.locator_params(axis="x", integer=True)
    return figure


@style.styled
def model_run_histogram(analysis: TraceAnalysis) -> Figure:
    """Draw the histogram of the time that the model ran; see `_histogram`."""
    return _histogram(analysis, "latency_ms")


@style.styled
def schedule_histogram(analysis: TraceAnalysis) -> Figure:
    """Draw the histogram of the time that scheduling took, if the trace holds it; see `_histogram`."""
    return _histogram(analysis, "schedule_ms")


def _histogram(analysis: TraceAnalysis, name: str) -> Figure:
    """Draw the histogram of a time of the batches."""
    figure, ax = style.new_axes(_TITLES[name], height_in=3.2)
    steps = analysis.steps[analysis.steps[name] > 0]
    values = steps[name].to_numpy(float)
    edges = _log_edges(values)
    below = np.zeros(_NUM_BINS)
    for regime in REGIMES:
        chosen = values[(steps["regime"] == regime).to_numpy()]
        if not len(chosen):
            continue
        counts = np.histogram(chosen, edges)[0] + below
        ax.stairs(counts, edges, baseline=below, fill=True, color=REGIME_COLOURS[regime], label=regime)
        below = counts
    style.log_axis(ax.xaxis, sparse=edges[-1] > 1000 * edges[0])
    top = 1.18 * max(float(below.max()), 1e-9)
    ax.set_ylim(0.0, top)
    marks: Any = analysis.table.set_index("quantity").loc[name]
    for (quantile, level), height in zip(QUANTILES.items(), (0.99, 0.93, 0.87), strict=True):
        at = float(marks[quantile])
        if at > 0:
            ax.axvline(at, color=style.INK, linewidth=0.8, linestyle=":")
            text, above = f"{level:.0%}: {number(at)}", (at, height * top)
            ax.annotate(text, above, (2, 0), textcoords="offset points", fontsize=7.0, va="top")
    ax.set(xlabel=f"{TIME_LABELS[name]}, logarithmic bars", ylabel="batches")
    style.count_axis(ax.yaxis)
    not_drawn = len(analysis.steps) - len(steps)
    if not_drawn:
        ax.set_title(f"{not_drawn:,} batches without a time above 0 are left out", fontsize=8.0)
    return style.figure_legend(figure, ax, columns=3)


def _log_edges(values: Floats) -> Floats:
    low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 1.0)
    if high <= 1.001 * low:
        low, high = 0.9 * low, 1.1 * high
    edges: Floats = np.geomspace(low, high, _NUM_BINS + 1)
    edges[0], edges[-1] = low, high  # a rounded edge would lose the extreme batch
    return edges


@style.styled
def schedule_against_model_run(analysis: TraceAnalysis) -> Figure:
    """Draw the schedule time of each batch against its model-run time, of a trace that holds both."""
    steps = analysis.steps
    steps = steps[(steps["schedule_ms"] > 0) & (steps["latency_ms"] > 0)]
    figure, ax = style.new_axes("Schedule time against model-run time", height_in=4.0)
    x, y = steps["latency_ms"].to_numpy(float), steps["schedule_ms"].to_numpy(float)
    if len(steps) <= MAX_POINTS:
        looks: Any = {"s": 6.0, "alpha": 0.5, "linewidths": 0, "rasterized": True}
        for regime, rows in steps.groupby("regime", observed=True):
            colour = REGIME_COLOURS[str(regime)]
            ax.scatter(rows["latency_ms"], rows["schedule_ms"], color=colour, label=str(regime), **looks)
        style.figure_legend(figure, ax, columns=3)
    else:
        look: Any = {"norm": LogNorm(), "cmap": "viridis_r", "mincnt": 1, "linewidths": 0.2}
        cells = ax.hexbin(x, y, gridsize=60, xscale="log", yscale="log", **look)
        bar = figure.colorbar(cells, ax=ax, label=f"batches a cell, of {len(steps):,}")
        style.count_axis(bar.ax.yaxis)
    style.log_axis(ax.xaxis)
    style.log_axis(ax.yaxis, sparse=len(y) > 0 and y.max() > 100 * y.min())
    if len(x):
        _draw_shares(ax)
    slow_ms = analysis.limits.slow_schedule_ms
    if len(analysis.slow_schedules):
        ax.axhline(slow_ms, color=style.VERMILLION, linewidth=1.0)
        text, box = f"{len(analysis.slow_schedules):,} above {slow_ms:g} ms", _BOX
        where: Any = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "left"}
        ax.annotate(text, (0.01, slow_ms), (0, 2), fontsize=7.0, color=style.VERMILLION, bbox=box, **where)
    ax.set(xlabel=TIME_LABELS["latency_ms"], ylabel=TIME_LABELS["schedule_ms"])
    return figure


def _draw_shares(ax: Axes) -> None:
    """Draw the lines of equal shares as far as they cross the plot."""
    ax.autoscale_view()
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    for share in _SHARES:
        first, last = max(left, low / share), min(right, high / share)
        if first >= last:
            continue
        ax.plot([first, last], [share * first, share * last], color=style.GREY, linestyle="--", linewidth=0.8)
        where: Any = {"textcoords": "offset points", "ha": "right", "va": "top"}
        ax.annotate(f"{share:.0%}", (last, share * last), (-2, -2), fontsize=7.0, color=style.INK, **where)
    ax.set(xlim=(left, right), ylim=(low, high))
