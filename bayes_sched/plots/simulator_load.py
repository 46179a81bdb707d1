"""What a real scheduler and the simulated one put into their steps, over a stretch of time."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayes_sched.planning.simulator_check import SimulatorCheck
from bayes_sched.plots.style import BLUE, INK, SKY, figure_legend, new_figure, styled

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
        _draw(ax, shown, name)
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


def _draw(ax: Axes, steps: pd.DataFrame, name: str) -> None:
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
