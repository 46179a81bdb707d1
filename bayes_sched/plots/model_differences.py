"""How far models are behind the best one."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayes_sched.loo_comparison import ModelComparison
from bayes_sched.plots.style import BLUE, GREY, figure_legend, new_figure, styled

_HALF_WIDTH = 1.645
"""Standard errors to either side that make a 90 % interval."""


@styled
def model_differences(found: ModelComparison) -> Figure:
    """Draw each model's elpd less that of the best model, with 90 % intervals.

    How to read it: further left is worse. The thin interval allows for steps that resemble their neighbours
    in time, the thick one takes them for independent; neither is about times that were not seen. A hollow
    mark cannot be relied on: the fit has not converged, or too many steps have a large Pareto k.
    """
    table = found.table
    figure, axes = new_figure(
        f"How far behind the best model? {found.num_steps:,} steps",
        height_in=1.5 + 0.3 * len(table),
    )
    ax: Axes = axes[0, 0]
    places = np.arange(len(table))
    ax.axvline(0.0, color=GREY, linewidth=0.8)
    for column, width, label in (
        ("difference_se_stretches", 1.2, "90 %, stretches of steps"),
        ("difference_se", 3.6, "90 %, steps as if independent"),
    ):
        half = _HALF_WIDTH * table[column].fillna(0.0).to_numpy()
        middle = table["difference"].to_numpy()
        ax.hlines(places, middle - half, middle + half, color=BLUE, linewidth=width, label=label)
    for place, name in enumerate(map(str, table.index)):
        loo = found.members[name]
        face = BLUE if loo.reliable and loo.converged else "white"
        ax.plot(found.value("difference", name), place, "o", color=BLUE, markerfacecolor=face, markersize=6.0)
    ax.plot([], [], "o", color=BLUE, markerfacecolor="white", label="cannot be relied on")
    ax.set_yticks(places, [str(name) for name in table.index])
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.set_xlabel("sum of log densities, less the best model's (nats)")
    figure_legend(figure, ax, columns=2)
    return figure
