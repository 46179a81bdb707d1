"""Whether comparisons keep what they promise, by simulated pairs of servers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from bayes_sched.planning.simulator import KEYS, LEVELS
from bayes_sched.reports.plots.style import (
    BAND,
    BLUE,
    GREY,
    INK,
    ORANGE,
    SKY,
    VEIL,
    VERMILLION,
    figure_legend,
    label_outer,
    log_axis,
    new_figure,
    styled,
)
from bayes_sched.sla.request import NAMES
from bayes_sched.studies.comparison import one_step_each, reliability_table
from bayes_sched.studies.sbc import BAND as PROBABILITY
from bayes_sched.studies.sbc import NUM_RANKED_DRAWS, evenness
from bayes_sched.studies.simulator import SimulatorCheck

_LOOKS = ((BLUE, "o"), (ORANGE, "^"), (GREY, "s"))
_LEAST, _MOST = 1e-4, 1.0
_TITLES = {
    "batch": "largest decode-only batch under a limit",
    "limit": "limit for a kind of steps, five kinds a server",
}


@styled
def promise_breaks(
    servers: pd.DataFrame, *, makers: Mapping[str, tuple[str, str]], quantile: float, confidence: float
) -> Figure:
    """Draw the true share of late steps at each promise, in order.

    How to read it: a promise above the line is broken, so where a curve crosses the line, the share of
    promises to its right is broken. What is promised with confidence should cross it so far to the right as
    the confidence says; a point estimate crosses it earlier.

    Parameters
    ----------
    servers : DataFrame
        Rows of :class:`~bayes_sched.promises.server_study.SimulatedServer`.
    makers : mapping
        The three who promise: by column, the prefix of their columns and their names.
    quantile, confidence : float
        Of the promises.

    Returns
    -------
    Figure
    """
    number = servers["server"].nunique()
    figure, axes = new_figure(
        f"{number:,} simulated servers: are promises of the {quantile:g} quantile at confidence "
        f"{confidence:g} kept?",
        height_in=6.6,
        rows=2,
        sharex=True,
    )
    for ax, (kind, title) in zip(axes[:, 0], _TITLES.items(), strict=True):
        chosen = servers[servers["promise"] == kind]
        _draw_ordered(ax, chosen, makers, allowed=1.0 - quantile, confidence=confidence)
        ax.set_title(title)
        ax.set_ylabel("steps that are truly late")
        ax.axvline(confidence, color=INK, linewidth=0.8, linestyle=":")
    axes[1, 0].set_xlabel("share of promises, in order")
    axes[1, 0].xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


def _draw_ordered(
    ax: Axes,
    rows: pd.DataFrame,
    makers: Mapping[str, tuple[str, str]],
    *,
    allowed: float,
    confidence: float,
) -> None:
    log_axis(ax.yaxis, sparse=True)
    ax.set(xlim=(0.0, 1.0), ylim=(_LEAST / 1.3, _MOST))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100.0 * value:g}%"))
    ax.axhspan(allowed, _MOST, color=VEIL, zorder=0.5)
    ax.axhline(allowed, color=INK, linewidth=1.0)
    for (column, (prefix, name)), (colour, marker) in zip(makers.items(), _LOOKS, strict=True):
        late = rows.loc[rows[column].notna(), f"{prefix}exceedance"].to_numpy(float)
        if not len(late):
            continue
        place = (np.arange(len(late)) + 0.5) / len(late)
        label = f"{name}: {(late > allowed).mean():.1%} broken"
        ordered = np.clip(np.sort(late), _LEAST, None)
        ax.plot(place, ordered, marker, color=colour, markersize=2.2, linestyle="", label=label)
    ax.text(0.01, 0.6 * _MOST, "broken", fontsize=8.0, va="center")
    ax.legend(loc="lower right", bbox_to_anchor=(confidence, 0.0), markerscale=2.0)


@styled
def promise_costs(servers: pd.DataFrame) -> Figure:
    """Draw what the largest promised batch gives away of the throughput that is truly possible.

    How to read it: at 0 nothing is given away; to the left more was promised than is right.

    Parameters
    ----------
    servers : DataFrame
        Rows of :class:`~bayes_sched.promises.server_study.SimulatedServer`.

    Returns
    -------
    Figure
    """
    batches = servers[servers["promise"] == "batch"]
    figure, axes = new_figure(
        "What does the promised batch give away of what is truly possible?",
        height_in=3.2,
    )
    ax = axes[0, 0]
    shares = {"batch size": 1.0 - batches["promised"] / batches["true_best"]}
    shares["decoded tokens/s"] = 1.0 - batches["rate"] / batches["true_rate"]
    for (name, values), colour in zip(shares.items(), (ORANGE, BLUE), strict=True):
        ordered = np.sort(values.to_numpy(float))
        place = (np.arange(len(ordered)) + 1.0) / len(ordered)
        label = f"{name}: median {np.median(ordered):.1%}, mean {ordered.mean():.1%}"
        ax.step(ordered, place, where="post", color=colour, label=label)
    ax.axvline(0.0, color=INK, linewidth=0.8)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set(
        xlabel="given away (negative: promised too much)", ylabel="servers that give away\nat most so much"
    )
    ax.set_ylim(0.0, 1.02)
    ax.legend(loc="lower right")
    return figure


LEAST = 3e-4
"""Where a share of 0 is drawn."""
_COLOURS = {"decode": BLUE, "mixed": ORANGE}
_MARKERS = {"random": ("o", True), "blocks": ("s", False)}
_HELD_OUT = {"random": "held out at random", "blocks": "100 in a row"}
_PROMISE_COLUMNS = 2


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
    num_rows = -(-len(traces) // _PROMISE_COLUMNS)
    figure, axes = new_figure(
        f"Do as many held-out steps exceed a limit as predicted? ({interval:.0%} intervals)",
        height_in=1.1 + 2.15 * num_rows,
        rows=num_rows,
        columns=_PROMISE_COLUMNS,
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


_RANK_COLUMNS = 3


@styled
def simulated_ranks(
    ranks: pd.DataFrame, *, units: dict[str, str], num_draws: int = NUM_RANKED_DRAWS
) -> Figure:
    """Draw, for each quantity, how far the distribution of its ranks is from an even one.

    How to read it: a line that stays in the grey band is a posterior that is what it claims to be. A line
    above zero on the left and below on the right is a posterior too narrow, the opposite one too wide; a line
    above zero everywhere is a posterior too high, below zero everywhere too low.

    Parameters
    ----------
    ranks : DataFrame
        One row a simulation, one column a quantity.
    units : dict
        Unit of each quantity.
    num_draws : int
        Draws that each true value was ranked among.

    Returns
    -------
    Figure
    """
    rows = math.ceil(len(ranks.columns) / _RANK_COLUMNS)
    figure, axes = new_figure(
        f"Calibration in {len(ranks):,} simulations: the posteriors are right where a line stays in the band",
        height_in=1.2 + 1.15 * rows,
        rows=rows,
        columns=_RANK_COLUMNS,
        sharex=True,
        sharey=True,
    )
    reach = 0.0
    for ax, name in zip(axes.flat, ranks, strict=False):
        found = evenness(ranks[name].to_numpy(), num_draws=num_draws)
        is_even = found.p_value > 1.0 - PROBABILITY
        ax.fill_between(
            found.expected,
            found.lower,
            found.upper,
            step="mid",
            color=BAND,
            linewidth=0.0,
            label=f"{PROBABILITY:.0%} of even ranks stay inside everywhere",
        )
        ax.plot(
            found.expected,
            found.difference,
            drawstyle="steps-mid",
            color=BLUE if is_even else VERMILLION,
            linestyle="-" if is_even else "--",
            linewidth=1.2,
            label="observed less even distribution (dashed: leaves the band)",
        )
        unit = units.get(str(name), "")
        ax.set_title(f"{name}" + (f" [{unit}]" if unit and unit != "1" else ""), fontsize=7.0)
        ax.text(
            0.97, 0.93, f"p = {found.p_value:.2f}", transform=ax.transAxes, ha="right", va="top", fontsize=7.0
        )
        extremes = (found.difference, found.lower, found.upper)
        reach = max(reach, *(float(abs(values).max()) for values in extremes))
    axes[0, 0].set(ylim=(-1.3 * reach, 1.3 * reach), xlim=(0.0, 1.0), xticks=[0.0, 0.5, 1.0])
    axes[0, 0].set_xticklabels(["0", "0.5", "1"])
    for ax in axes.flat[len(ranks.columns) :]:
        ax.set_visible(False)
    label_outer(axes, xlabel="rank / draws", ylabel="ECDF - even")
    figure_legend(figure, axes[0, 0], columns=1)
    return figure


STRETCH_S = 8.0
"""Length of the stretch, seconds."""

_PANELS = {"batch_size": "requests of a step", "total_tokens": "tokens of a step"}


@styled
def decisions_over_time(check: SimulatorCheck) -> Figure:
    """Draw the requests and the tokens of each step, real and simulated, over the busiest seconds.

    How to read it: both lines should lie on each other. The simulated scheduler knows when clients sent their
    requests and when the real steps ended, nothing else; where it differs, a request reached the real one
    sooner or later than the typical way takes. Zero is a server without a request.

    Parameters
    ----------
    check : SimulatorCheck

    Returns
    -------
    Figure
    """
    steps = check.of_clock.steps
    start_ms = _busiest_ms(steps)
    shown = steps[steps["start_ms"].between(start_ms, start_ms + 1000.0 * STRETCH_S)]
    figure, axes = new_figure(
        "What the real scheduler did, and the simulated one", height_in=4.4, rows=2, sharex=True
    )
    for ax, (name, words) in zip(axes[:, 0], _PANELS.items(), strict=True):
        _draw_load(ax, shown, name)
        ax.set_ylabel(words)
    axes[-1, 0].set_xlabel("time since the first request (s)")
    figure_legend(figure, axes[0, 0])
    return figure


def _busiest_ms(steps: pd.DataFrame) -> float:
    """Return where the stretch with the most requests, over time, begins."""
    start = steps["start_ms"].to_numpy(float)
    work = np.concatenate([[0.0], np.cumsum(steps["batch_size"] * steps["duration_ms"])])
    ends = np.searchsorted(start, start + 1000.0 * STRETCH_S)
    return float(start[np.argmax(work[ends] - work[np.arange(len(start))])])


def _draw_load(ax: Axes, steps: pd.DataFrame, name: str) -> None:
    at, values = _edges(steps, name)
    ax.fill_between(at, values, color=SKY, alpha=0.5, linewidth=0, step=None, label="vLLM")
    ax.plot(at, values, color=BLUE, linewidth=0.8)
    at, values = _edges(steps, f"simulated_{name}")
    ax.plot(at, values, color=INK, linewidth=1.1, linestyle=(0, (2, 1.5)), label="simulated")
    ax.set_ylim(bottom=0.0)


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


@styled
def predicted_times(check: SimulatorCheck) -> Figure:
    """Draw the share of the second half's requests that are answered within a time, for each of three times.

    How to read it: the dark line is what clients measured; it should run inside the band, which is where the
    simulator puts it in so many of the posterior draws, with what clients of the first half measured beyond
    the simulated engine. The dashed line is the engine alone. Dots are the median and the 95 % quantile.

    Parameters
    ----------
    check : SimulatorCheck

    Returns
    -------
    Figure
    """
    title = "How long requests took, and were predicted to take"
    figure, axes = new_figure(title, height_in=6.9, rows=len(KEYS))
    for ax, key in zip(axes[:, 0], KEYS, strict=True):
        _draw_simulator_times(ax, check, key)
    figure_legend(figure, axes[0, 0])
    return figure


def _draw_simulator_times(ax: Axes, check: SimulatorCheck, key: str) -> None:
    tail = 0.5 * (1.0 - check.probability)
    draws, engine = check.forecast.predicted["drawn"][key], check.forecast.predicted["none"][key]
    lower, middle, upper = np.quantile(draws, [tail, 0.5, 1.0 - tail], axis=0)
    measured = check.forecast.measured[key]
    ax.fill_betweenx(
        LEVELS,
        lower,
        upper,
        color=SKY,
        alpha=0.5,
        linewidth=0,
        label=f"{100 * check.probability:g}% of draws",
    )
    ax.plot(middle, LEVELS, color=BLUE, label="predicted")
    ax.plot(
        np.median(engine, axis=0), LEVELS, color=GREY, linestyle="--", linewidth=1.0, label="engine alone"
    )
    ax.plot(measured, LEVELS, color=INK, linewidth=1.0, label="measured by clients")
    marked = np.flatnonzero(np.isclose(LEVELS, 0.5) | np.isclose(LEVELS, 0.95))
    ax.plot(measured[marked], LEVELS[marked], "o", color=VERMILLION, markersize=4, label="p50 and p95")
    log_axis(ax.xaxis)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set(xlabel=f"{NAMES[key]} (ms)", ylabel="requests within it", ylim=(0.0, 1.02))


@styled
def comparison_calibration(pairs: pd.DataFrame, *, probability: float) -> Figure:
    """Draw the intervals of simulated pairs against the true ratio, and the reliability of P(faster).

    How to read it: above, an interval that crosses the diagonal holds the truth; those that do not are orange
    and should be as many as the intervals allow. Below, a dot on the diagonal means that of the pairs with
    that probability so many were truly faster; the lines are 95 % intervals, the numbers count pairs.

    Parameters
    ----------
    pairs : DataFrame
        One row a pair and probed step: ``pair``, ``true_ratio``, ``ratio_median``, ``ratio_lower``,
        ``ratio_upper``, ``covered``, ``p_faster``, ``first_is_faster``. Of each pair one step is drawn.
    probability : float
        Of the intervals.

    Returns
    -------
    Figure
    """
    chosen = one_step_each(pairs)
    figure, axes = new_figure(
        f"{len(chosen):,} simulated pairs of servers: does the comparison find the truth?",
        height_in=7.4,
        rows=2,
    )
    _draw_intervals(axes[0, 0], chosen, probability)
    _draw_reliability(axes[1, 0], chosen)
    return figure


def _draw_intervals(ax: Axes, chosen: pd.DataFrame, probability: float) -> None:
    for is_covered, colour in ((True, BLUE), (False, ORANGE)):
        rows = chosen[chosen["covered"].astype(bool) == is_covered]
        label = "holds the truth" if is_covered else "misses it"
        ax.vlines(
            rows["true_ratio"],
            rows["ratio_lower"],
            rows["ratio_upper"],
            color=colour,
            linewidth=1.0 if is_covered else 1.8,
            label=f"{label} ({len(rows):,})",
        )
        ax.plot(rows["true_ratio"], rows["ratio_median"], ".", color=colour, markersize=3.0)
    low, high = float(chosen["true_ratio"].min()), float(chosen["true_ratio"].max())
    ax.plot([low, high], [low, high], color=INK, linewidth=0.8, linestyle="--")
    reach = chosen[["ratio_lower", "ratio_upper"]].to_numpy()
    bottom, top = np.quantile(reach, [0.02, 0.98])
    ax.set_ylim(min(low, float(bottom)) / 1.05, max(high, float(top)) * 1.05)
    ax.set(xlabel="true ratio of mean latencies", ylabel="estimated ratio")
    ax.set_title(f"{100 * probability:g}% intervals: {chosen['covered'].mean():.0%} hold the truth")
    ax.legend(loc="upper left")


def _draw_reliability(ax: Axes, chosen: pd.DataFrame) -> None:
    table = reliability_table(chosen)
    ax.plot([0.0, 1.0], [0.0, 1.0], color=GREY, linewidth=0.8, linestyle="--")
    ax.vlines(table["predicted"], table["lower"], table["upper"], color=BAND, linewidth=5.0, zorder=1.0)
    ax.plot(table["predicted"], table["observed"], "o", color=BLUE, markersize=4.5)
    for predicted, observed, number in table[["predicted", "observed", "pairs"]].to_numpy():
        ax.annotate(
            f"{number:.0f}",
            (predicted, observed),
            xytext=(5.0, -10.0),
            textcoords="offset points",
            fontsize=7.0,
        )
    ax.set(xlim=(-0.03, 1.05), ylim=(-0.05, 1.05))
    ax.set(xlabel="P(first is faster), as given", ylabel="share in which it truly is")
    ax.set_title("Probabilities against what came true (numbers: pairs)")
