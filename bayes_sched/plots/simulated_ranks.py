"""Simulation-based calibration as a figure: whether true values rank evenly among posterior draws."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure

from bayes_sched.plots.style import BAND, BLUE, VERMILLION, figure_legend, label_outer, new_figure, styled
from bayes_sched.simulation_calibration import BAND as PROBABILITY
from bayes_sched.simulation_calibration import NUM_RANKED_DRAWS, evenness

_COLUMNS = 3


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
    rows = math.ceil(len(ranks.columns) / _COLUMNS)
    figure, axes = new_figure(
        f"Calibration in {len(ranks):,} simulations: the posteriors are right where a line stays in the band",
        height_in=1.2 + 1.15 * rows,
        rows=rows,
        columns=_COLUMNS,
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
