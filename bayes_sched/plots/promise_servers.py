"""Promises to simulated servers against the truth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from bayes_sched.plots.style import BLUE, GREY, INK, ORANGE, VEIL, log_axis, new_figure, styled

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
