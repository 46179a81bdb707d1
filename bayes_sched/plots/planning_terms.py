"""Where the time of a step goes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayes_sched.planning.optimum import CASES, Optimum
from bayes_sched.plots.style import BLUE, GREY, INK, figure_legend, new_figure, styled


@styled
def cost_shares(plan: Optimum) -> Figure:
    """Draw the share of each term of the equation in the time of the best steps, with credible intervals.

    How to read it: long bars are what to change. Grey bars are single terms, which data may tell apart only
    in sums, so that their intervals may be wide where those of the groups (blue) are not.

    Parameters
    ----------
    plan : Optimum
        Settings that keep the limit exist, and the model has the terms of the equation.

    Returns
    -------
    Figure
    """
    drawn = [(case, plan.terms[case], plan.best[case]) for case in CASES]
    shown = [(case, terms, best) for case, terms, best in drawn if terms is not None and best is not None]
    figure, axes = new_figure(
        "Where the time of a step goes", height_in=0.9 + 2.5 * len(shown), rows=len(shown), sharex=True
    )
    for ax, (case, terms, best) in zip(axes[:, 0], shown, strict=True):
        _draw(ax, terms, probability=plan.probability)
        ax.set_title(f"{case.capitalize()}: {best['batch_size']:,} requests, {best['total_tokens']:,} tokens")
    axes[-1, 0].set_xlabel("share of the mean latency (%)")
    figure_legend(figure, axes[0, 0], columns=3)
    return figure


def _draw(ax: Axes, terms: pd.DataFrame, *, probability: float) -> None:
    places = np.arange(len(terms))[::-1]
    is_group = (terms["kind"] == "group").to_numpy()
    share = 100.0 * terms["share"].to_numpy()
    for chosen, colour, label in ((is_group, BLUE, "groups"), (~is_group, GREY, "single terms")):
        ax.barh(places[chosen], share[chosen], color=colour, height=0.65, label=label)
    lower, upper = (100.0 * terms[name].to_numpy() for name in ("share_lower", "share_upper"))
    ax.hlines(places, lower, upper, color=INK, linewidth=1.6, label=f"{100 * probability:g}% credible")
    ax.set_yticks(places, labels=[str(name) for name in terms["name"]])
    ax.grid(visible=False, axis="y")
    ax.set_xlim(0.0, max(5.0, 1.05 * float(upper.max())))
