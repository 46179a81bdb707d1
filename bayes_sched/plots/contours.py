"""Contours of the latency over requests and tokens."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bayes_sched.fitted import FittedModel
from bayes_sched.plots.points import Floats, log_grid, sample_steps
from bayes_sched.plots.style import INK, VEIL, log_axis, new_figure, styled
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
    grid = _grid(steps, _NUM_GRID)
    order = ("total_tokens", "batch_size")
    quantiles = fit.quantile(grid, list(_QUANTILES)).transpose("quantile", *order)
    possible = grid[POSSIBLE].transpose(*order).to_numpy()
    hidden = _extrapolation(fit, steps).transpose(*order)
    levels = _levels(quantiles.to_numpy()[:, possible])
    for ax, surface, title in zip(axes[:, 0], quantiles, _QUANTILES.values(), strict=True):
        _draw(ax, surface, hidden, levels)
        _draw_cells(ax, steps)
        ax.set(title=title, ylabel="tokens in the step, S")
    axes[1, 0].set_xlabel("requests in the step, B")
    handles = [Patch(facecolor=VEIL, hatch="////", linewidth=0.0, label="no such steps in the trace")]
    figure.legend(handles=handles, loc="outside lower left")
    return figure


def _grid(steps: pd.DataFrame, num: int) -> xr.Dataset:
    """Return a logarithmic grid over the trace's range; it holds the steps with S = B, its lower edge."""
    batch_size = log_grid(1.0, float(steps["batch_size"].max()), num)
    total_tokens = log_grid(1.0, float(steps["total_tokens"].max()), num)
    return steps_grid(batch_size=batch_size, total_tokens=np.union1d(batch_size, total_tokens))


def _extrapolation(fit: FittedModel, steps: pd.DataFrame) -> xr.DataArray:
    """Return where the trace holds no steps (1, else 0; NaN where no step can be) on a fine grid."""
    fine = _grid(steps, _NUM_FINE)
    return fit.extrapolation(fine).astype(float).where(fine[POSSIBLE])


def _levels(values: Floats) -> Floats:
    """Return round latencies, evenly spread on a logarithmic scale, over the range of the values."""
    low, high = float(values.min()), float(values.max())
    steps = np.array([1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0])
    levels = np.concatenate([steps * 10.0**k for k in range(-2, 6)])
    inside = levels[(levels > low) & (levels < high)]
    thin = inside[:: max(1, round(len(inside) / 8))]
    return np.unique(np.concatenate([[low * 0.999], thin, [high * 1.001]]))


def _draw(ax: Axes, surface: xr.DataArray, hidden: xr.DataArray, levels: Floats) -> None:
    log_axis(ax.xaxis)
    log_axis(ax.yaxis)
    if min(surface.shape) < 2:
        ax.text(0.5, 0.5, "the trace holds one B or one S only", transform=ax.transAxes, ha="center")
        return
    x, y, z = surface["batch_size"].to_numpy(), surface["total_tokens"].to_numpy(), surface.to_numpy()
    norm = LogNorm(levels[0], levels[-1] * 1.5)
    ax.contourf(x, y, z, levels=levels, norm=norm, cmap="YlGnBu")
    lines = ax.contour(x, y, z, levels=levels[1:-1], colors=INK, linewidths=0.8)
    if (hidden > 0.5).any():
        veil = ax.contourf(
            hidden["batch_size"],
            hidden["total_tokens"],
            hidden,
            levels=[0.5, 1.5],
            colors=[VEIL],
            alpha=0.6,
            hatches=["////"],
        )
        veil.set_linewidth(0.0)
    for label in ax.clabel(lines, fmt="%g", fontsize=7.5):
        label.set_bbox({"facecolor": "white", "alpha": 0.8, "pad": 0.6, "linewidth": 0})


def _draw_cells(ax: Axes, steps: pd.DataFrame) -> None:
    cells = sample_steps(steps[["batch_size", "total_tokens"]].drop_duplicates(), 1500)
    ax.scatter(
        cells["batch_size"],
        cells["total_tokens"],
        s=1.5,
        color="black",
        linewidths=0,
        rasterized=True,
        alpha=0.6,
    )
