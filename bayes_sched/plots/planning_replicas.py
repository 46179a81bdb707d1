"""How sure a number of servers is to do."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bayes_sched.planning.capacity_plan import CapacityPlan
from bayes_sched.planning.measures import NAMES
from bayes_sched.plots.style import (
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    INK,
    SKY,
    figure_legend,
    new_figure,
    styled,
)


@styled
def replicas_needed(plan: CapacityPlan) -> Figure:
    """Draw the confidence that all limits are kept, and the share of requests within them, by servers.

    How to read it: above is what we know, the share of the posterior draws in which a number of servers will
    do; the plan needs the first number whose point lies on or above the dotted line. Below is what requests
    do: the share of them that keeps all limits, with its interval over draws.

    Parameters
    ----------
    plan : CapacityPlan

    Returns
    -------
    Figure
    """
    figure, axes = new_figure("How many servers the workload needs", height_in=4.9, rows=2, sharex=True)
    _draw_confidence(axes[0, 0], plan)
    _draw_within(axes[1, 0], plan)
    for ax in axes[:, 0]:
        if plan.replicas is not None:
            label = f"{plan.replicas:,} will do" if plan.is_promised else f"{plan.replicas:,}, not promised"
            ax.axvline(plan.replicas, color=GREEN if plan.is_promised else GREY, linewidth=1.0, label=label)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        ax.set_ylim(-0.04, 1.06)
    axes[1, 0].set_xlabel("servers")
    axes[1, 0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    most = plan.simulations[-1].replicas
    axes[1, 0].set_xlim(0.5, most + 0.5)
    figure_legend(figure, axes[0, 0])
    return figure


def _draw_confidence(ax: Axes, plan: CapacityPlan) -> None:
    servers = [simulation.replicas for simulation in plan.simulations]
    for place, (key, colour) in enumerate(zip(plan.shown.asked, CYCLE[1:], strict=False)):
        values = [float(simulation.is_kept(key).mean()) for simulation in plan.simulations]
        # Hollow and each larger than the one before, as they often lie on one another.
        ring: Any = {"markersize": 8.0 + 4.0 * place, "markerfacecolor": "none", "markeredgewidth": 1.4}
        ax.plot(servers, values, "s", color=colour, label=f"{NAMES[key]} kept", zorder=3.0, **ring)
    values = [simulation.confidence for simulation in plan.simulations]
    ax.plot(servers, values, marker="o", color=BLUE, label="all kept, no overload")
    ax.axhline(plan.confidence, color=INK, linewidth=0.9, linestyle=":")
    ax.set(ylabel="confidence", title="Confidence: how sure it is to do")


def _draw_within(ax: Axes, plan: CapacityPlan) -> None:
    servers = np.array([simulation.replicas for simulation in plan.simulations])
    draws = [simulation.values("all_within") for simulation in plan.simulations]
    tail = 0.5 * (1.0 - plan.probability)
    lower, middle, upper = (np.array([np.quantile(d, q) for d in draws]) for q in (tail, 0.5, 1.0 - tail))
    ax.errorbar(
        servers,
        middle,
        yerr=[middle - lower, upper - middle],
        fmt="o",
        color=BLUE,
        ecolor=SKY,
        elinewidth=3.0,
    )
    title = "What requests do: the share within all limits"
    if not plan.shown.asked:
        title = "No limit on requests was given"
    ax.set(ylabel="share of requests", title=title)
