"""How long the requests of a workload take."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bayes_sched.planning.capacity_plan import CapacityPlan
from bayes_sched.planning.measures import KEYS, LEVELS, NAMES
from bayes_sched.plots.style import BLUE, INK, SKY, VERMILLION, figure_legend, log_axis, new_figure, styled


@styled
def request_times(plan: CapacityPlan) -> Figure:
    """Draw the share of the requests that take longer than a time: to first token, per token, end to end.

    How to read it: follow a time up to the curve. The curve is the median over posterior draws; the band is
    where it lies in so many of them, parameters and (of generated workloads) arrivals together.

    Parameters
    ----------
    plan : CapacityPlan

    Returns
    -------
    Figure
    """
    keys = [key for key in KEYS if np.isfinite(plan.shown.quantile_draws(key)).any()]
    servers = f"{plan.shown.replicas:,} server{'' if plan.shown.replicas == 1 else 's'}"
    figure, axes = new_figure(
        f"How long requests take with {servers}", height_in=1.0 + 1.9 * len(keys), rows=len(keys)
    )
    for ax, key in zip(axes[:, 0], keys, strict=True):
        _draw(ax, plan, key)
    limited = [ax for ax, key in zip(axes[:, 0], keys, strict=True) if plan.objectives[key] is not None]
    figure_legend(figure, (limited or [axes[0, 0]])[0])
    return figure


def _draw(ax: Axes, plan: CapacityPlan, key: str) -> None:
    draws = plan.shown.quantile_draws(key)
    tail = 0.5 * (1.0 - plan.probability)
    lower, middle, upper = np.quantile(draws, [tail, 0.5, 1.0 - tail], axis=0)
    late = 1.0 - LEVELS
    label = f"{100 * plan.probability:g}% of the draws"
    ax.fill_betweenx(late, lower, upper, color=SKY, alpha=0.5, linewidth=0, label=label)
    ax.plot(middle, late, color=BLUE, label="requests that take longer")
    objective = plan.objectives[key]
    if objective is not None:
        allowed = 1.0 - objective.quantile
        ax.axhline(allowed, color=INK, linewidth=0.9, linestyle=":", label=f"allowed: {100 * allowed:.4g}%")
        ax.axvline(objective.limit_ms, color=VERMILLION, linestyle="--", label="limit")
    if upper[-1] > 20.0 * lower[0]:
        log_axis(ax.xaxis)
    ax.set_yscale("log")
    ax.set_ylim(1e-3, 1.3)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    ax.set(xlabel=f"{NAMES[key]} (ms)", ylabel="share that takes longer")
