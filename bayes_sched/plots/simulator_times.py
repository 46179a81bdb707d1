"""How long requests took, and how long the simulator says that they take."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bayes_sched.planning.measures import KEYS, LEVELS, NAMES
from bayes_sched.planning.simulator_check import SimulatorCheck
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
        _draw(ax, check, key)
    figure_legend(figure, axes[0, 0])
    return figure


def _draw(ax: Axes, check: SimulatorCheck, key: str) -> None:
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
