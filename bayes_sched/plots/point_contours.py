"""Contours of a point estimate of the latency."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from bayes_sched.plots.contours import draw_contours, label_contours, round_levels
from bayes_sched.plots.maps import ORDER, X_LABEL, Y_LABEL, draw_veil, log_axes, veil_handle
from bayes_sched.plots.points import log_grid
from bayes_sched.plots.style import new_figure, styled
from bayes_sched.region import Region
from bayes_sched.steps import POSSIBLE, steps_grid

_NUM_GRID = 160


@styled
def point_contours(
    latency: Callable[[xr.DataArray, xr.DataArray], xr.DataArray],
    *,
    region: Region,
    batch_range: tuple[float, float],
    token_range: tuple[float, float],
) -> Figure:
    """Draw contours of the latency over (B, S).

    How to read it: follow a line to see which steps take equally long. Hatched parts are extrapolation: the
    fit has seen no such steps. A step cannot hold fewer tokens than requests, so the lower right is empty.

    Parameters
    ----------
    latency : callable
        Of requests and tokens, DataArrays; the latency in ms with their dims, broadcast.
    region : Region
        Where the fit has seen steps.
    batch_range, token_range : tuple of float
        Requests and tokens, from and to; some step in them must be possible.

    Returns
    -------
    Figure
    """
    figure, axes = new_figure("Latency of a step by least squares", height_in=4.2)
    ax = axes[0, 0]
    batch_size, total_tokens = log_grid(*batch_range, _NUM_GRID), log_grid(*token_range, _NUM_GRID)
    # The lower edge of what is possible, S = B, is on the grid: the colours end on it and not in stairs.
    edge = batch_size[(batch_size >= total_tokens[0]) & (batch_size <= total_tokens[-1])]
    grid = steps_grid(batch_size=batch_size, total_tokens=np.union1d(total_tokens, edge))
    possible = grid[POSSIBLE].transpose(*ORDER)
    surface = latency(grid["batch_size"], grid["total_tokens"]).transpose(*ORDER).where(possible)
    log_axes(ax)
    lines = draw_contours(ax, surface, round_levels(surface.to_numpy()[possible.to_numpy()]))
    draw_veil(ax, grid, ~region.contains(grid["batch_size"], grid["total_tokens"]))
    label_contours(ax, lines)
    for label in ax.texts:  # at the edge of the axes a number would lose a digit, and read as another one
        label.set_clip_on(False)
    ax.set(title="Latency (ms)", xlabel=X_LABEL, ylabel=Y_LABEL)
    figure.legend(handles=[veil_handle("no such steps in the fit")], loc="outside lower left")
    return figure
