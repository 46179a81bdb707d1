"""Whether comparisons keep what they promise, by simulated pairs of servers."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayes_sched.comparison.pair_study import one_step_each, reliability_table
from bayes_sched.plots.style import BAND, BLUE, GREY, INK, ORANGE, new_figure, styled


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
