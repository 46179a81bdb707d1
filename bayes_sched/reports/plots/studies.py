"""What studies found: promises, ranks, decisions, times and comparisons held against the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bayes_sched.planning.simulator import KEYS, LEVELS
from bayes_sched.reports.plots import style
from bayes_sched.sla.request import NAMES
from bayes_sched.studies.comparison import ComparisonCalibration
from bayes_sched.studies.sbc import BAND as PROBABILITY
from bayes_sched.studies.sbc import Calibration
from bayes_sched.studies.simulator import SimulatorCheck
from bayes_sched.studies.sla_servers import WHAT, ServerPromises
from bayes_sched.studies.sla_traces import INTERVAL, TracePromises

_LOOKS = ((style.BLUE, "o"), (style.ORANGE, "^"), (style.GREY, "s"))
_LEAST, _MOST = 1e-4, 1.0
_TITLES = {
    "batch": "largest decode-only batch under a limit",
    "limit": "limit for a kind of steps, five kinds a server",
}
_SMALLEST_SHARE = 3e-4  # where a share of 0 is drawn
_COLOURS = {"decode": style.BLUE, "mixed": style.ORANGE}
_HELD_OUT = {"random": ("o", True, "held out at random"), "blocks": ("s", False, "100 in a row")}


@style.styled
def promise_breaks(found: ServerPromises) -> Figure:
    """Draw the true share of late steps at each promise, in order.

    How to read it: a promise above the line is broken, so where a curve crosses the line, the share of
    promises to its right is broken. What is promised with confidence should cross it so far to the right as
    the confidence says; a point estimate crosses it earlier.
    """
    quantile, confidence = found.settings["quantile"], found.settings["confidence"]
    broken = found.tables["broken"].set_index(["promise", "by"])["broken"]
    promise = f"promises of the {quantile:g} quantile at confidence {confidence:g}"
    title = f"{found.num_promised:,} simulated servers: are {promise} kept?"
    figure, axes = style.new_figure(title, height_in=6.6, rows=2, sharex=True)
    for ax, (kind, kind_title) in zip(axes[:, 0], _TITLES.items(), strict=True):
        style.log_axis(ax.yaxis, sparse=True)
        ax.set(xlim=(0.0, 1.0), ylim=(_LEAST / 1.3, _MOST))
        style.percent_axis(ax.yaxis)
        ax.axhspan(1.0 - quantile, _MOST, color=style.VEIL, zorder=0.5)
        ax.axhline(1.0 - quantile, color=style.INK, linewidth=1.0)
        for (by, late), (colour, marker) in zip(found.exceedances[kind].items(), _LOOKS, strict=False):
            place, shown = (np.arange(len(late)) + 0.5) / len(late), np.clip(late, _LEAST, None)
            look: Any = {"color": colour, "markersize": 2.2, "linestyle": "", "marker": marker}
            ax.plot(place, shown, label=f"{by}: {broken[WHAT[kind], by]:.1%} broken", **look)
        ax.text(0.01, 0.6 * _MOST, "broken", fontsize=8.0, va="center")
        ax.legend(loc="lower right", bbox_to_anchor=(confidence, 0.0), markerscale=2.0)
        ax.set(title=kind_title, ylabel="steps that are truly late")
        ax.axvline(confidence, color=style.INK, linewidth=0.8, linestyle=":")
    axes[1, 0].set_xlabel("share of promises, in order")
    axes[1, 0].xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


@style.styled
def promise_costs(found: ServerPromises) -> Figure:
    """Draw what the largest promised batch gives away of the throughput that is truly possible.

    How to read it: at 0 nothing is given away; to the left more was promised than is right.
    """
    title = "What does the promised batch give away of what is truly possible?"
    figure, ax = style.new_axes(title, height_in=3.2)
    for (name, ordered), colour in zip(found.given_away.items(), (style.ORANGE, style.BLUE), strict=True):
        place = (np.arange(len(ordered)) + 1.0) / len(ordered)
        label = f"{name}: median {np.median(ordered):.1%}, mean {ordered.mean():.1%}"
        ax.step(ordered, place, where="post", color=colour, label=label)
    ax.axvline(0.0, color=style.INK, linewidth=0.8)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set(xlabel="given away (negative: promised too much)", ylim=(0.0, 1.02))
    ax.set_ylabel("servers that give away\nat most so much")
    ax.legend(loc="lower right")
    return figure


@style.styled
def promise_calibration(found: TracePromises) -> Figure:
    """Draw realised against predicted shares of steps that exceed a limit, a panel a trace.

    How to read it: on the diagonal as many held-out steps exceed a limit as was predicted. Above it, limits
    are exceeded more often than predicted, so that promises are broken; below it, less often. Both axes are
    logarithmic; a share of 0 is drawn at the bottom, with the interval above it.
    """
    calibration = found.tables["calibration"]
    traces = list(dict.fromkeys(calibration["trace"]))
    title = f"Do as many held-out steps exceed a limit as predicted? ({INTERVAL:.0%} intervals)"
    figure, axes = style.new_panels(title, len(traces), head_in=1.1, each_in=2.15, columns=2, **style.SHARED)
    for ax, trace in zip(axes.flat, traces, strict=False):
        _draw_trace(ax, calibration[calibration["trace"] == trace])
        ax.set_title(trace.replace("_", " ", 1), fontsize=7.5)
    style.label_outer(axes, xlabel="predicted share", ylabel="realised share")
    return style.figure_legend(figure, axes[0, 0])


def _draw_trace(ax: Axes, rows: pd.DataFrame) -> None:
    least = _SMALLEST_SHARE
    style.log_axes(ax, sparse=True)
    ax.set(xlim=(least, 1.0), ylim=(least / 1.3, 1.0))
    ax.plot([least, 1.0], [least, 1.0], color=style.GREY, linewidth=0.8)
    for regime, colour in _COLOURS.items():
        for split, (marker, is_filled, words) in _HELD_OUT.items():
            chosen = rows[(rows["regime"] == regime) & (rows["split"] == split)]
            place = chosen["predicted"] * (1.0 if is_filled else 1.12)
            ax.vlines(place, chosen["lower"].clip(lower=least), chosen["upper"], color=colour, linewidth=0.8)
            face = colour if is_filled else "white"
            look: Any = {"color": colour, "markersize": 3.5, "markerfacecolor": face, "linestyle": ""}
            label = f"{regime} steps, {words}"
            ax.plot(place, chosen["realised"].clip(lower=least), marker=marker, label=label, **look)


@style.styled
def simulated_ranks(found: Calibration) -> Figure:
    """Draw, for each quantity, how far the distribution of its ranks is from a uniform one.

    How to read it: a line that stays in the grey band is a posterior that is what it claims to be. A line
    above zero on the left and below on the right is a posterior too narrow, the opposite one too wide; a line
    above zero everywhere is a posterior too high, below zero everywhere too low.
    """
    number = len(found.tables["ranks"])
    title = f"Calibration in {number:,} simulations: the posteriors are right where a line stays in the band"
    side: Any = {"columns": 3, **style.SHARED}
    figure, axes = style.new_panels(title, len(found.curves), head_in=1.2, each_in=1.15, **side)
    band = f"{PROBABILITY:.0%} of even ranks stay inside everywhere"
    line = "observed less even distribution (dashed: leaves the band)"
    reach = 0.0
    for ax, (name, curve) in zip(axes.flat, found.curves.items(), strict=False):
        style.shade(ax, curve.expected, curve.lower, curve.upper, band, color=style.BAND, step="mid")
        colour, dashes = (style.BLUE, "-") if curve.is_uniform else (style.VERMILLION, "--")
        look: Any = {"color": colour, "linestyle": dashes, "linewidth": 1.2, "drawstyle": "steps-mid"}
        ax.plot(curve.expected, curve.difference, label=line, **look)
        unit = found.units.get(name, "")
        ax.set_title(f"{name} [{unit}]" if unit and unit != "1" else name, fontsize=7.0)
        corner: Any = {"transform": ax.transAxes, "ha": "right", "va": "top", "fontsize": 7.0}
        ax.text(0.97, 0.93, f"p = {curve.p_value:.2f}", **corner)
        extremes = (curve.difference, curve.lower, curve.upper)
        reach = max(reach, *(float(abs(values).max()) for values in extremes))
    style.rank_axes(axes[0, 0], 1.3 * reach)
    style.label_outer(axes, xlabel="rank / draws", ylabel="ECDF - even")
    return style.figure_legend(figure, axes[0, 0], columns=1)


@style.styled
def decisions_over_time(check: SimulatorCheck) -> Figure:
    """Draw the requests and the tokens of each step, real and simulated, over the busiest seconds.

    How to read it: both lines should lie on each other. The simulated scheduler knows when clients sent their
    requests and when the real steps ended, nothing else; where it differs, a request reached the real one
    sooner or later than the typical way takes. Zero is a server without a request.
    """
    panels = {"batch_size": "requests of a step", "total_tokens": "tokens of a step"}
    title = "What the real scheduler did, and the simulated one"
    figure, axes = style.new_figure(title, height_in=4.4, rows=2, sharex=True)
    for ax, (name, words) in zip(axes[:, 0], panels.items(), strict=True):
        at, values = _edges(check.busiest, name)
        style.shade(ax, at, values, 0, "vLLM", alpha=0.5)
        ax.plot(at, values, color=style.BLUE, linewidth=0.8)
        at, values = _edges(check.busiest, f"simulated_{name}")
        ax.plot(at, values, color=style.INK, linewidth=1.1, linestyle=(0, (2, 1.5)), label="simulated")
        ax.set(ylabel=words, ylim=(0.0, None))
    axes[-1, 0].set_xlabel("time since the first request (s)")
    return style.figure_legend(figure, axes[0, 0])


def _edges(steps: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return corners of a line that stays level for a step and falls to zero where there is none."""
    start = steps["start_ms"].to_numpy(float) / 1000.0
    end = start + steps["duration_ms"].to_numpy(float) / 1000.0
    at = np.column_stack([start, start, end, end]).ravel()
    level = steps[name].to_numpy(float)
    values = np.column_stack([np.zeros(len(level)), level, level, np.zeros(len(level))])
    follows = np.concatenate([[False], start[1:] - end[:-1] < 1e-6])
    values[follows, 0] = level[follows]
    values[:-1, 3][follows[1:]] = level[:-1][follows[1:]]
    values[0, 0], values[-1, 3] = level[0], level[-1]  # the stretch ends here, not the work
    return at, values.ravel()


@style.styled
def predicted_times(check: SimulatorCheck) -> Figure:
    """Draw the share of the second half's requests that are answered within a time, for each of three times.

    How to read it: the dark line is what clients measured; it should run inside the band, which is where the
    simulator puts it in so many of the posterior draws, with what clients of the first half measured beyond
    the simulated engine. The dashed line is the engine alone. Dots are the median and the 95 % quantile.
    """
    title = "How long requests took, and were predicted to take"
    figure, axes = style.new_figure(title, height_in=6.9, rows=len(KEYS))
    marked = np.flatnonzero(np.isclose(LEVELS, 0.5) | np.isclose(LEVELS, 0.95))
    for ax, key in zip(axes[:, 0], KEYS, strict=True):
        curves, band = check.curves[key], f"{100 * check.probability:g}% of draws"
        look: Any = {"color": style.SKY, "alpha": 0.5, "linewidth": 0}
        ax.fill_betweenx(LEVELS, curves.lower, curves.upper, label=band, **look)
        ax.plot(curves.predicted, LEVELS, color=style.BLUE, label="predicted")
        ax.plot(curves.engine, LEVELS, color=style.GREY, linestyle="--", linewidth=1.0, label="engine alone")
        ax.plot(curves.measured, LEVELS, color=style.INK, linewidth=1.0, label="measured by clients")
        dots = curves.measured[marked]
        ax.plot(dots, LEVELS[marked], "o", color=style.VERMILLION, markersize=4, label="p50 and p95")
        style.log_axis(ax.xaxis)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.set(xlabel=f"{NAMES[key]} (ms)", ylabel="requests within it", ylim=(0.0, 1.02))
    return style.figure_legend(figure, axes[0, 0])


@style.styled
def comparison_calibration(found: ComparisonCalibration) -> Figure:
    """Draw the intervals of simulated pairs against the true ratio, and the reliability of P(faster).

    How to read it: above, an interval that crosses the diagonal holds the truth; those that do not are orange
    and should be as many as the intervals allow. Below, a dot on the diagonal means that of the pairs with
    that probability so many were truly faster; the lines are 95 % intervals, the numbers count pairs.
    """
    title = f"{len(found.pairs):,} simulated pairs of servers: does the comparison find the truth?"
    figure, axes = style.new_figure(title, height_in=7.4, rows=2)
    _draw_intervals(axes[0, 0], found.pairs)
    interval = f"{100 * found.settings['probability']:g}% intervals"
    axes[0, 0].set_title(f"{interval}: {found.coverage:.0%} hold the truth")
    _draw_reliability(axes[1, 0], found.tables["reliability"])
    return figure


def _draw_intervals(ax: Axes, pairs: pd.DataFrame) -> None:
    for is_covered, colour in ((True, style.BLUE), (False, style.ORANGE)):
        rows = pairs[pairs["covered"].astype(bool) == is_covered]
        label = f"{'holds the truth' if is_covered else 'misses it'} ({len(rows):,})"
        width = 1.0 if is_covered else 1.8
        ends = (rows["ratio_lower"], rows["ratio_upper"])
        ax.vlines(rows["true_ratio"], *ends, color=colour, linewidth=width, label=label)
        ax.plot(rows["true_ratio"], rows["ratio_median"], ".", color=colour, markersize=3.0)
    low, high = float(pairs["true_ratio"].min()), float(pairs["true_ratio"].max())
    ax.plot([low, high], [low, high], color=style.INK, linewidth=0.8, linestyle="--")
    bottom, top = np.quantile(pairs[["ratio_lower", "ratio_upper"]].to_numpy(), [0.02, 0.98])
    ax.set_ylim(min(low, float(bottom)) / 1.05, max(high, float(top)) * 1.05)
    ax.set(xlabel="true ratio of mean latencies", ylabel="estimated ratio")
    ax.legend(loc="upper left")


def _draw_reliability(ax: Axes, table: pd.DataFrame) -> None:
    ax.plot([0.0, 1.0], [0.0, 1.0], color=style.GREY, linewidth=0.8, linestyle="--")
    ax.vlines(table["predicted"], table["lower"], table["upper"], color=style.BAND, linewidth=5.0, zorder=1.0)
    ax.plot(table["predicted"], table["observed"], "o", color=style.BLUE, markersize=4.5)
    for predicted, observed, number in table[["predicted", "observed", "pairs"]].to_numpy():
        at = (predicted, observed)
        ax.annotate(f"{number:.0f}", at, xytext=(5.0, -10.0), textcoords="offset points", fontsize=7.0)
    ax.set(xlim=(-0.03, 1.05), ylim=(-0.05, 1.05))
    ax.set(xlabel="P(first is faster), as given", ylabel="share in which it truly is")
    ax.set_title("Probabilities against what came true (numbers: pairs)")
