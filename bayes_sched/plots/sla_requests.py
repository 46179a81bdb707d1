"""How long requests take."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bayes_sched.plots.style import BLUE, INK, SKY, VERMILLION, figure_legend, new_figure, styled
from bayes_sched.sla import RequestSLA, RequestTime

_NUM_PLACES = 200
_LEAST = 2e-3
_ENDS = (0.001, 0.997)


@styled
def request_survival(sla: RequestSLA) -> Figure:
    """Draw the share of the requests that take longer, for each time that can be told.

    How to read it: follow a time up to the curve. The band is what we do not know of the server; the slope of
    the curve is what requests do, whatever we know.

    Parameters
    ----------
    sla : RequestSLA

    Returns
    -------
    Figure
    """
    rows = len(sla.times)
    figure, axes = new_figure("How long a request takes", height_in=1.0 + 1.9 * rows, rows=rows)
    for ax, time in zip(axes[:, 0], sla.times, strict=True):
        _draw(ax, time)
    figure_legend(figure, axes[0, 0])
    return figure


def _draw(ax: Axes, time: RequestTime) -> None:
    ends = [time.distribution.quantile(q) for q in _ENDS]
    if time.objective is not None:
        ends.append(time.objective.limit_ms)
    finite = [end for end in ends if math.isfinite(end)]
    places = np.linspace(min(finite), max(finite) + 0.03 * (max(finite) - min(finite)), _NUM_PLACES)
    late = 1.0 - time.distribution.cdf_draws(places)
    tail = 0.5 * (1.0 - time.probability)
    lower, upper = (np.maximum(band, _LEAST / 10) for band in np.quantile(late, [tail, 1.0 - tail], axis=0))
    ax.fill_between(
        places, lower, upper, color=SKY, alpha=0.5, linewidth=0, label=f"{100 * time.probability:g}% credible"
    )
    ax.plot(places, np.maximum(late.mean(axis=0), _LEAST / 10), color=BLUE, label="requests that take longer")
    allowed = 1.0 - time.quantile
    ax.axhline(allowed, color=INK, linewidth=0.9, linestyle=":", label=f"allowed: {100 * allowed:.4g}%")
    if time.objective is not None:
        ax.axvline(time.objective.limit_ms, color=VERMILLION, linestyle="--", label="limit")
    ax.set_yscale("log")
    ax.set_ylim(min(_LEAST, allowed / 3.0), 1.3)
    ax.set_xlim(places[0], places[-1])
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    ax.set(xlabel=f"{time.name} (ms)", ylabel="share that takes longer")
