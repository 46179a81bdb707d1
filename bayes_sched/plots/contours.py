"""Contours of the latency over requests and tokens."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure

from bayes_sched.fitted import FittedModel
from bayes_sched.plots.maps import (
    ORDER,
    X_LABEL,
    Y_LABEL,
    draw_seen,
    draw_veil,
    has_area,
    log_axes,
    veil_handle,
)
from bayes_sched.plots.points import Floats, log_grid
from bayes_sched.plots.style import INK, new_figure, styled
from bayes_sched.steps import POSSIBLE, steps_grid

_NUM_GRID = 32
_NUM_FINE = 160
_QUANTILES = {0.5: "Median latency (ms)", 0.99: "99th percentile of latency (ms)"}


@styled
def latency_contours(fit: FittedModel, steps: pd.DataFrame) -> Figure:
    """Draw contours of the median and of the 99th percentile of latency over (B, S).

    How to read it: follow a line to see which steps take equally long. Hatched parts are extrapolation: the
    trace holds no such steps (dots: those it holds). A step cannot hold fewer tokens than requests, so the
    lower right corner is empty.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame
        The cleaned steps: ``batch_size``, ``total_tokens``.

    Returns
    -------
    Figure
    """
    figure, axes = new_figure(
        "Latency of a step over its requests and tokens", height_in=6.6, rows=2, sharex=True
    )
    grid, fine = _grid(steps, _NUM_GRID), _grid(steps, _NUM_FINE)
    quantiles = fit.quantile(fit.completed(grid), list(_QUANTILES)).transpose("quantile", *ORDER)
    possible = grid[POSSIBLE].transpose(*ORDER).to_numpy()
    is_extrapolation = fit.extrapolation(fine)
    levels = round_levels(quantiles.to_numpy()[:, possible])
    for ax, surface, title in zip(axes[:, 0], quantiles, _QUANTILES.values(), strict=True):
        log_axes(ax)
        if has_area(ax, surface):
            lines = draw_contours(ax, surface, levels)
            draw_veil(ax, fine, is_extrapolation)
            label_contours(ax, lines)
        draw_seen(ax, steps)
        ax.set(title=title, ylabel=Y_LABEL)
    axes[1, 0].set_xlabel(X_LABEL)
    figure.legend(handles=[veil_handle()], loc="outside lower left")
    return figure


def _grid(steps: pd.DataFrame, num: int) -> xr.Dataset:
    """Return a logarithmic grid over the trace's range; it holds the steps with S = B, its lower edge."""
    batch_size = log_grid(1.0, float(steps["batch_size"].max()), num)
    total_tokens = log_grid(1.0, float(steps["total_tokens"].max()), num)
    return steps_grid(batch_size=batch_size, total_tokens=np.union1d(batch_size, total_tokens))


def round_levels(values: Floats) -> Floats:
    """Return round latencies, evenly spread on a logarithmic scale, over the range of the values."""
    low, high = float(values.min()), float(values.max())
    steps = np.array([1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0])
    levels = np.concatenate([steps * 10.0**k for k in range(-2, 6)])
    inside = levels[(levels > low) & (levels < high)]
    thin = inside[:: max(1, round(len(inside) / 8))]
    return np.unique(np.concatenate([[low * 0.999], thin, [high * 1.001]]))


def draw_contours(ax: Axes, surface: xr.DataArray, levels: Floats) -> ContourSet:
    """Fill a surface over (B, S) and draw its lines; return the lines."""
    x, y, z = surface["batch_size"].to_numpy(), surface["total_tokens"].to_numpy(), surface.to_numpy()
    norm = LogNorm(levels[0], levels[-1] * 1.5)
    ax.contourf(x, y, z, levels=levels, norm=norm, cmap="YlGnBu")
    return ax.contour(x, y, z, levels=levels[1:-1], colors=INK, linewidths=0.8)


def label_contours(ax: Axes, lines: ContourSet) -> None:
    """Write the latencies on their lines, over the veil."""
    for label in ax.clabel(lines, fmt="%g", fontsize=7.5):
        label.set_bbox({"facecolor": "white", "alpha": 0.8, "pad": 0.6, "linewidth": 0})
