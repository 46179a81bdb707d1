"""What a fit says of latencies: bands against tokens and requests, contours, and what the priors allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure

from bayes_sched.arrays import Floats
from bayes_sched.checks.summary import FitSummary
from bayes_sched.checks.views import CONTOURED, FitViews, log10_density
from bayes_sched.region import Region
from bayes_sched.reports.plots import style
from bayes_sched.steps import POSSIBLE, decode_only, log_grid, steps_grid

_NEIGHBOURHOOD = 1.15
"""Steps whose B is within this factor of a panel's B are drawn in it."""
_WIDE = 50.0
_BANDS = {0.99: 0.15, 0.9: 0.25, 0.5: 0.4}
_NUM_POINT_GRID = 160
_UNSEEN = "no such steps in the trace"


@style.styled
def latency_by_tokens(summary: FitSummary) -> Figure:
    """Draw latency bands against S for several B, with the observed steps under them."""
    views = views_of(summary)
    steps, bands = views.steps, views.by_tokens
    title = "Latency of a step against its tokens, for several numbers of requests"
    side: Any = {"columns": min(len(bands), 2), **style.SHARED}
    figure, axes = style.new_panels(title, len(bands), head_in=1.3, each_in=2.0, **side)
    sparse = float(steps["total_tokens"].max()) > _WIDE * min(bands)
    top = _top_ms(steps, np.concatenate([band["upper_ms"].to_numpy() for band in bands.values()]))
    for ax, (batch_size, band) in zip(axes.flat, bands.items(), strict=False):
        near = steps[(steps["batch_size"] / batch_size).between(1.0 / _NEIGHBOURHOOD, _NEIGHBOURHOOD)]
        style.draw_steps(ax, near, "total_tokens", label="observed steps")
        _draw_bands(ax, band["total_tokens"], band, summary.probability)
        style.log_axis(ax.xaxis, sparse=sparse)
        style.limit_above(ax, near["latency_ms"], top)
        style.hatch_extrapolation(ax, band["total_tokens"], band["extrapolation"], label=_UNSEEN)
        low, high = int(near["batch_size"].min()), int(near["batch_size"].max())
        ax.set_title(f"B = {batch_size}" + ("" if low == high else f" (dots: {low} to {high})"))
    style.label_outer(axes, xlabel="tokens in the step, S", ylabel="latency (ms)")
    return style.figure_legend(figure, axes[0, 0])


@style.styled
def latency_by_batch(summary: FitSummary) -> Figure:
    """Draw latency bands against B for decode-only steps (S = B), with the observed ones under them."""
    views = views_of(summary)
    decodes, band = decode_only(views.steps), views.by_batch
    title = "Latency of decode-only steps against the number of requests"
    if decodes.empty:
        title += " (the trace holds no such steps)"
    figure, ax = style.new_axes(title, height_in=3.6)
    style.draw_steps(ax, decodes, "batch_size", label="observed decode-only steps")
    _draw_bands(ax, band["batch_size"], band, summary.probability)
    seen = views.steps if decodes.empty else decodes
    style.limit_above(ax, decodes["latency_ms"], _top_ms(seen, band["upper_ms"].to_numpy()))
    style.hatch_extrapolation(ax, band["batch_size"], band["extrapolation"], label=_UNSEEN)
    ax.set(xlabel="decoding requests in the step, B = S", ylabel="latency (ms)")
    return style.figure_legend(figure, ax)


def views_of(summary: FitSummary) -> FitViews:
    """Return what the figures of a fit show."""
    assert summary.views is not None, "the summary was made without its views"
    return summary.views


def _draw_bands(ax: Axes, x: pd.Series, band: pd.DataFrame, probability: float) -> None:
    share = f"{probability:.0%}"
    falls, sure = f"{share} of the steps fall here", f"mean latency, {share} sure"
    style.shade(ax, x, band["lower_ms"], band["upper_ms"], falls, alpha=0.35)
    look: Any = {"color": style.BLUE, "alpha": 0.85, "linewidth": 0.8, "zorder": 2.5}
    style.shade(ax, x, band["mean_lower_ms"], band["mean_upper_ms"], sure, **look)


def _top_ms(steps: pd.DataFrame, upper_ms: Floats) -> float:
    """Return the upper end of the latency axis: the band, and nearly all of the steps."""
    return 1.08 * max(float(np.max(upper_ms)), float(steps["latency_ms"].quantile(0.995)))


@style.styled
def latency_contours(summary: FitSummary) -> Figure:
    """Draw contours of the median and of the 99th percentile of latency over (B, S)."""
    views = views_of(summary)
    title = "Latency of a step over its requests and tokens"
    figure, axes = style.new_figure(title, height_in=6.6, rows=2, sharex=True)
    quantiles = views.surface.transpose("quantile", *style.ORDER)
    values = quantiles.to_numpy()
    levels = round_levels(values[np.isfinite(values)])
    for ax, surface, contoured in zip(axes[:, 0], quantiles, CONTOURED.values(), strict=True):
        style.log_axes(ax)
        if style.has_area(ax, surface):
            lines = draw_contours(ax, surface, levels)
            style.draw_veil(ax, views.veil, views.veil["extrapolation"])
            label_contours(ax, lines)
        style.draw_seen(ax, views.steps)
        ax.set(title=contoured, ylabel=style.Y_LABEL)
    axes[1, 0].set_xlabel(style.X_LABEL)
    return style.figure_legend(figure, axes[0, 0], style.veil_handle(), columns=1)


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
    return ax.contour(x, y, z, levels=levels[1:-1], colors=style.INK, linewidths=0.8)


def label_contours(ax: Axes, lines: ContourSet) -> None:
    """Write the latencies on their lines, over the veil."""
    for label in ax.clabel(lines, fmt="%g", fontsize=7.5):
        label.set_bbox({"facecolor": "white", "alpha": 0.8, "pad": 0.6, "linewidth": 0})


@style.styled
def prior_predictive(summary: FitSummary) -> Figure:
    """Draw the latencies that the priors allow, with the observed ones."""
    views = views_of(summary)
    figure, axes = style.new_figure("Latencies that the priors allow, before any data", height_in=6.0, rows=2)
    _draw_prior_bands(axes[0, 0], views)
    _draw_marginal(axes[1, 0], views)
    return style.figure_legend(figure, axes[0, 0])


def _draw_prior_bands(ax: Axes, views: FitViews) -> None:
    allowed, steps = views.prior_latency, views.steps
    tokens = allowed["total_tokens"].to_numpy()
    for probability, alpha in _BANDS.items():
        low, high = np.quantile(allowed, [0.5 - probability / 2, 0.5 + probability / 2], axis=0)
        label = f"{probability:.0%} of prior latencies, B = {allowed.attrs['batch_size']}"
        style.shade(ax, tokens, np.maximum(low, 1e-3), high, label, color=style.ORANGE, alpha=alpha)
    style.draw_steps(ax, steps, "total_tokens", label="observed steps, any B")
    style.log_axis(ax.xaxis)
    style.log_axis(ax.yaxis, sparse=True)
    lowest, highest = float(steps["latency_ms"].min()), float(np.quantile(allowed, 0.995))
    ax.set(xlabel="tokens in the step, S", ylabel="latency (ms)", ylim=(0.01 * lowest, 2.0 * highest))


def _draw_marginal(ax: Axes, views: FitViews) -> None:
    allowed = views.prior_marginal[views.prior_marginal > 0.0]
    observed = views.steps["latency_ms"].to_numpy(float)
    for values, colour, label in ((allowed, style.ORANGE, "prior"), (observed, style.INK, "observed")):
        x, density = log10_density(values)
        ax.fill_between(10.0**x, density / density.max(), color=colour, alpha=0.3, label=label)
        ax.plot(10.0**x, density / density.max(), color=colour, linewidth=1.0)
    style.log_axis(ax.xaxis, sparse=True)
    low, high = np.quantile(allowed, [0.002, 0.998])
    ax.set(xlim=(min(low, observed.min()), max(high, observed.max())), ylim=(0.0, 1.1), yticks=[])
    ax.set(xlabel="latency (ms)", ylabel="density (each to its peak)", title="Over the steps of the trace")
    ax.legend(loc="upper left")


@style.styled
def point_contours(
    latency: Callable[[xr.DataArray, xr.DataArray], xr.DataArray],
    *,
    region: Region,
    batch_range: tuple[float, float],
    token_range: tuple[float, float],
) -> Figure:
    """Draw contours of a latency (ms, of DataArrays of requests and tokens) over (B, S)."""
    figure, ax = style.new_axes("Latency of a step by least squares", height_in=4.2)
    batch_size, total_tokens = (log_grid(*ends, _NUM_POINT_GRID) for ends in (batch_range, token_range))
    # The lower edge of what is possible, S = B, is on the grid: the colours end on it and not in stairs.
    edge = batch_size[(batch_size >= total_tokens[0]) & (batch_size <= total_tokens[-1])]
    grid = steps_grid(batch_size=batch_size, total_tokens=np.union1d(total_tokens, edge))
    possible = grid[POSSIBLE].transpose(*style.ORDER)
    surface = latency(grid["batch_size"], grid["total_tokens"]).transpose(*style.ORDER).where(possible)
    style.log_axes(ax)
    lines = draw_contours(ax, surface, round_levels(surface.to_numpy()[possible.to_numpy()]))
    seen = region.contains(*np.meshgrid(grid["batch_size"], grid["total_tokens"], indexing="ij"))
    style.draw_veil(ax, grid, grid[POSSIBLE].copy(data=~seen))
    label_contours(ax, lines)
    for label in ax.texts:  # at the edge of the axes a number would lose a digit, and read as another one
        label.set_clip_on(False)
    ax.set(title="Latency (ms)", xlabel=style.X_LABEL, ylabel=style.Y_LABEL)
    return style.figure_legend(figure, ax, style.veil_handle("no such steps in the fit"), columns=1)
