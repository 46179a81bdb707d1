"""Rank plots: whether the chains agree."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import kstwo, rankdata

from bayes_sched.effects import effects_of
from bayes_sched.fitted import FittedModel
from bayes_sched.plots.draws import parameters_of
from bayes_sched.plots.points import Floats
from bayes_sched.plots.style import BAND, CYCLE, INK, figure_legend, label_outer, new_figure, styled

_BAND = 0.99
_COLUMNS = 3
_MAX_LEVELS = 6


@styled
def ranks(fit: FittedModel) -> Figure:
    """Draw, for each parameter and sampled coordinate, how the ranks of each chain's draws are spread.

    How to read it: all draws are ranked together; a chain that explores what the others do has ranks spread
    evenly, and its line stays near zero, within the grey band (wider where draws are fewer in effect). A line
    far outside: that chain saw something else, and the fit is not to be trusted.

    Parameters
    ----------
    fit : FittedModel

    Returns
    -------
    Figure
    """
    panels = _panels(fit)
    rows = math.ceil(len(panels) / _COLUMNS)
    figure, axes = new_figure(
        "Ranks of each chain's draws: even if the chains agree",
        height_in=1.1 + 1.05 * rows,
        rows=rows,
        columns=_COLUMNS,
        sharex=True,
        sharey=True,
    )
    reach = 0.0
    for ax, (name, (draws, ess_bulk)) in zip(axes.flat, panels.items(), strict=False):
        reach = max(reach, _draw(ax, draws, ess_bulk))
        ax.set_title(name, fontsize=8.0)
    axes[0, 0].set(ylim=(-reach, reach), xlim=(0.0, 1.0), xticks=[0.0, 0.5, 1.0])
    axes[0, 0].set_xticklabels(["0", "0.5", "1"])
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    label_outer(axes, xlabel="relative rank", ylabel="deviation")
    figure_legend(figure, axes[0, 0], columns=5)
    return figure


def _panels(fit: FittedModel) -> dict[str, tuple[xr.DataArray, float]]:
    """Return title to draws (chain, draw) and bulk effective sample size."""
    table = fit.convergence.table
    ess_bulk = {kind: rows["ess_bulk"].to_dict() for kind, rows in table.groupby("kind")}
    panels = {
        f"${p.symbol}$": (fit.posterior[p.name], ess_bulk["parameter"][p.name]) for p in parameters_of(fit)
    }
    for name in _shown_coordinates(fit):
        panels[name] = (_coordinate(fit, name), ess_bulk["coordinate"][name])
    return panels


def _shown_coordinates(fit: FittedModel) -> list[str]:
    """Return the sampled coordinates; of the levels of effects, which are many, those that agree least."""
    table = fit.convergence.table
    table = table[table["kind"] == "coordinate"]
    effects = [effect.name for effect in effects_of(fit.model)]
    is_level = table.index.str.partition("[").get_level_values(0).isin(effects)
    worst = table[is_level].nlargest(_MAX_LEVELS, "r_hat")
    return [str(name) for name in (*table.index[~is_level], *worst.index)]


def _coordinate(fit: FittedModel, name: str) -> xr.DataArray:
    """Return the draws of a sampled coordinate by its name in the convergence table."""
    group = fit.data["coordinates"].to_dataset()
    if name in group.data_vars:
        return group[name]
    values = next(iter(group.data_vars.values()))
    (dim,) = set(values.dims) - {"chain", "draw"}
    return values.sel({dim: name})


def deviation(draws: xr.DataArray) -> Floats:
    """Return how far the ranks of each chain are from even.

    Parameters
    ----------
    draws : DataArray, dims (chain, draw)

    Returns
    -------
    ndarray, dims (chain, point)
        Share of the chain's draws up to a relative rank, minus that rank, over even points in [0, 1].
    """
    values = draws.transpose("chain", "draw").to_numpy()
    relative = rankdata(values).reshape(values.shape) / values.size
    points = _points()
    shares = [np.searchsorted(np.sort(chain), points, side="right") / len(chain) for chain in relative]
    return np.array(shares) - points


def _points() -> Floats:
    return np.linspace(0.0, 1.0, 101)


def _draw(ax: Axes, draws: xr.DataArray, ess_bulk: float) -> float:
    lines = deviation(draws)
    effective = max(2, round(ess_bulk / len(lines))) if math.isfinite(ess_bulk) else 2
    half_width = float(kstwo.ppf(_BAND, effective))
    ax.axhspan(-half_width, half_width, color=BAND, zorder=0.5)
    ax.axhline(0.0, color=INK, linewidth=0.6)
    for chain, line in enumerate(lines):
        ax.plot(_points(), line, color=CYCLE[chain % len(CYCLE)], linewidth=1.0, label=f"chain {chain + 1}")
    return 1.1 * max(half_width, float(np.abs(lines).max()))
