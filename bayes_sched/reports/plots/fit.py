"""Contours of a point estimate of the latency."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from scipy.stats import t as student_t

from bayes_sched.arrays import Floats
from bayes_sched.posterior.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.region import Region
from bayes_sched.reports.plots.style import (
    BLUE,
    INK,
    ORANGE,
    ORDER,
    SKY,
    X_LABEL,
    Y_LABEL,
    decode_only,
    draw_points,
    draw_seen,
    draw_veil,
    figure_legend,
    has_area,
    hatch_extrapolation,
    label_outer,
    limit_above,
    log10_density,
    log_axes,
    log_axis,
    log_grid,
    new_figure,
    sample_steps,
    styled,
    thin,
    veil_handle,
)
from bayes_sched.steps import POSSIBLE, as_steps, steps_arrays, steps_grid

_NEIGHBOURHOOD = 1.15
"""Steps whose B is within this factor of a panel's B are drawn in it."""
_NUM_PANELS = 4
_NUM_GRID = 80
_WIDE = 50.0


@styled
def latency_by_tokens(
    fit: FittedModel, steps: pd.DataFrame, *, probability: float = DEFAULT_PROBABILITY
) -> Figure:
    """Draw latency bands against S for several B, with the observed steps under them.

    How to read it: each panel holds the number of requests fixed. The wide band is where a step falls with
    the given probability; the narrow dark one is how sure the mean latency is. The dots are observed steps
    of about that many requests. Hatched: no such steps in the trace.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame
        The cleaned steps: ``batch_size``, ``total_tokens``, ``latency_ms`` (ms).
    probability : float
        Of both bands.

    Returns
    -------
    Figure
    """
    panels = typical_batch_sizes(steps)
    rows = (len(panels) + 1) // 2
    columns = min(len(panels), 2)
    figure, grid = new_figure(
        "Latency of a step against its tokens, for several numbers of requests",
        height_in=1.3 + 2.0 * rows,
        rows=rows,
        columns=columns,
        sharex=True,
        sharey=True,
    )
    axes = list(grid.flat)
    top_tokens = float(steps["total_tokens"].max())
    bands = [_bands(fit, b, log_grid(b, top_tokens, _NUM_GRID), probability) for b in panels]
    top = _top_ms(steps, np.concatenate([band["upper"].to_numpy() for band, _ in bands]))
    for ax, batch_size, (predictive, mean) in zip(axes, panels, bands, strict=False):
        near = _near(steps, batch_size)
        shown = sample_steps(near)
        draw_points(ax, shown["total_tokens"], shown["latency_ms"], label="observed steps")
        _draw_bands(ax, predictive["total_tokens"], predictive, mean, probability)
        log_axis(ax.xaxis, sparse=top_tokens > _WIDE * panels[0])
        limit_above(ax, near["latency_ms"], top)
        hatch_extrapolation(
            ax, predictive["total_tokens"], predictive["extrapolation"], label="no such steps in the trace"
        )
        ax.set_title(_panel_title(near, batch_size))
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    label_outer(grid, xlabel="tokens in the step, S", ylabel="latency (ms)")
    figure_legend(figure, axes[0])
    return figure


@styled
def latency_by_batch(
    fit: FittedModel, steps: pd.DataFrame, *, probability: float = DEFAULT_PROBABILITY
) -> Figure:
    """Draw latency bands against B for decode-only steps (S = B), with the observed ones under them.

    How to read it: as :func:`latency_by_tokens`; the slope is what one more decoding request costs everyone.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame
        The cleaned steps: ``batch_size``, ``total_tokens``, ``latency_ms`` (ms).
    probability : float
        Of both bands.

    Returns
    -------
    Figure
    """
    decodes = decode_only(steps)
    title = "Latency of decode-only steps against the number of requests"
    if decodes.empty:
        title += " (the trace holds no such steps)"
    figure, axes = new_figure(title, height_in=3.6)
    ax: Axes = axes[0, 0]
    seen = steps if decodes.empty else decodes
    batch_size = log_grid(1.0, float(seen["batch_size"].max()), _NUM_GRID)
    predictive, mean = _bands(fit, batch_size, batch_size, probability)
    shown = sample_steps(decodes)
    draw_points(ax, shown["batch_size"], shown["latency_ms"], label="observed decode-only steps")
    _draw_bands(ax, batch_size, predictive, mean, probability)
    limit_above(ax, decodes["latency_ms"], _top_ms(seen, predictive["upper"].to_numpy()))
    hatch_extrapolation(ax, batch_size, predictive["extrapolation"], label="no such steps in the trace")
    ax.set(xlabel="decoding requests in the step, B = S", ylabel="latency (ms)")
    figure_legend(figure, ax)
    return figure


def typical_batch_sizes(steps: pd.DataFrame, num: int = _NUM_PANELS) -> list[int]:
    """Return a few numbers of requests that span the steps which hold more tokens than requests.

    Parameters
    ----------
    steps : DataFrame
        ``batch_size``, ``total_tokens``.
    num : int
        At most so many; fewer if the steps hold fewer.
    """
    mixed = steps[steps["total_tokens"] > steps["batch_size"]]
    batch_size = (steps if mixed.empty else mixed)["batch_size"]
    low, high = batch_size.quantile([0.01, 0.99], interpolation="nearest")
    seen = np.unique(batch_size)
    wanted = np.geomspace(low, high, num)
    nearest = np.abs(np.log(seen)[:, None] - np.log(wanted)).argmin(axis=0)
    return [int(b) for b in np.unique(seen[nearest])]


def _bands(
    fit: FittedModel, batch_size: float | Floats, total_tokens: Floats, probability: float
) -> tuple[xr.Dataset, xr.Dataset]:
    """Return the predictive band and the mean band, dims (step,)."""
    steps = fit.completed(steps_arrays(batch_size, total_tokens))
    predictive = fit.predictive_band(steps, probability=probability)
    mean = fit.mean_band(steps, probability=probability)
    return predictive.assign(total_tokens=steps["total_tokens"]), mean


def _draw_bands(
    ax: Axes, x: xr.DataArray | Floats, predictive: xr.Dataset, mean: xr.Dataset, probability: float
) -> None:
    share = f"{probability:.0%}"
    ax.fill_between(
        x,
        predictive["lower"],
        predictive["upper"],
        color=SKY,
        alpha=0.35,
        linewidth=0,
        label=f"{share} of the steps fall here",
    )
    ax.fill_between(
        x,
        mean["lower"],
        mean["upper"],
        color=BLUE,
        alpha=0.85,
        linewidth=0.8,
        zorder=2.5,
        label=f"mean latency, {share} sure",
    )


def _near(steps: pd.DataFrame, batch_size: int) -> pd.DataFrame:
    ratio = steps["batch_size"] / batch_size
    return steps[ratio.between(1.0 / _NEIGHBOURHOOD, _NEIGHBOURHOOD)]


def _panel_title(near: pd.DataFrame, batch_size: int) -> str:
    low, high = int(near["batch_size"].min()), int(near["batch_size"].max())
    window = "" if low == high else f" (dots: {low} to {high})"
    return f"B = {batch_size}{window}"


def _top_ms(steps: pd.DataFrame, upper_ms: Floats) -> float:
    """Return the upper end of the latency axis: the band, and nearly all of the steps."""
    return 1.08 * max(float(np.max(upper_ms)), float(steps["latency_ms"].quantile(0.995)))


_NUM_CONTOUR_GRID = 32
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
    grid, fine = _grid(steps, _NUM_CONTOUR_GRID), _grid(steps, _NUM_FINE)
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


_MAX_DRAWS = 4000
_MAX_STEPS = 100
_NUM_PRIOR_GRID = 40
_BANDS = {0.99: 0.15, 0.9: 0.25, 0.5: 0.4}
_SEED = 7


@styled
def prior_predictive(fit: FittedModel, steps: pd.DataFrame) -> Figure:
    """Draw the latencies that the priors allow, with the observed ones.

    How to read it: good priors cover the observed latencies and the neighbouring ones, without putting their
    mass on steps that take no time or minutes. Dots outside the widest band: the priors fight the data.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame
        The cleaned steps: ``batch_size``, ``total_tokens``, ``latency_ms`` (ms).

    Returns
    -------
    Figure
    """
    figure, axes = new_figure("Latencies that the priors allow, before any data", height_in=6.0, rows=2)
    _draw_prior_bands(axes[0, 0], fit, steps)
    _draw_marginal(axes[1, 0], fit, steps)
    figure_legend(figure, axes[0, 0])
    return figure


def prior_latency(fit: FittedModel, steps: xr.Dataset) -> Floats:
    """Draw latencies from the prior predictive distribution.

    Parameters
    ----------
    fit : FittedModel
    steps : Dataset, dims (step,)

    Returns
    -------
    ndarray, dims (draw, step)
        Latencies, ms; never negative.
    """
    draws = thin(fit.prior, _MAX_DRAWS)
    mean = fit.model.latency(draws, steps).transpose("draw", "step")
    scale = fit.model.scale(draws, mean, steps).broadcast_like(mean).transpose("draw", "step").to_numpy()
    noise = student_t.rvs(
        draws["nu"].to_numpy()[:, None], size=mean.shape, random_state=np.random.default_rng(_SEED)
    )
    latency_ms: Floats = np.maximum(mean.to_numpy() + scale * noise, 0.0)
    return latency_ms


def _draw_prior_bands(ax: Axes, fit: FittedModel, steps: pd.DataFrame) -> None:
    batch_size = int(steps["batch_size"].median())
    tokens = log_grid(batch_size, float(steps["total_tokens"].max()), _NUM_PRIOR_GRID)
    if len(tokens) == 1:
        tokens = np.array([tokens[0], tokens[0] * 1.2])
    allowed = prior_latency(fit, fit.completed(steps_arrays(batch_size, tokens)))
    for probability, alpha in _BANDS.items():
        low, high = np.quantile(allowed, [0.5 - probability / 2, 0.5 + probability / 2], axis=0)
        label = f"{probability:.0%} of prior latencies, B = {batch_size}"
        ax.fill_between(
            tokens, np.maximum(low, 1e-3), high, color=ORANGE, alpha=alpha, linewidth=0, label=label
        )
    shown = sample_steps(steps)
    draw_points(ax, shown["total_tokens"], shown["latency_ms"], label="observed steps, any B")
    log_axis(ax.xaxis)
    log_axis(ax.yaxis, sparse=True)
    lowest, highest = float(steps["latency_ms"].min()), float(np.quantile(allowed, 0.995))
    ax.set(xlabel="tokens in the step, S", ylabel="latency (ms)", ylim=(0.01 * lowest, 2.0 * highest))


def _draw_marginal(ax: Axes, fit: FittedModel, steps: pd.DataFrame) -> None:
    typical = sample_steps(steps, _MAX_STEPS)
    allowed = prior_latency(fit, as_steps(typical, columns=fit.model.columns))
    observed = steps["latency_ms"].to_numpy(float)
    for values, colour, label in ((allowed, ORANGE, "prior"), (observed, INK, "observed")):
        x, density = log10_density(values[values > 0.0])
        ax.fill_between(10.0**x, density / density.max(), color=colour, alpha=0.3, label=label)
        ax.plot(10.0**x, density / density.max(), color=colour, linewidth=1.0)
    log_axis(ax.xaxis, sparse=True)
    low, high = np.quantile(allowed[allowed > 0], [0.002, 0.998])
    ax.set(
        xlim=(min(low, observed.min()), max(high, observed.max())),
        ylim=(0.0, 1.1),
        yticks=[],
        xlabel="latency (ms)",
        ylabel="density (each to its peak)",
        title="Over the steps of the trace",
    )
    ax.legend(loc="upper left")


_NUM_POINT_GRID = 160


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
    batch_size, total_tokens = (
        log_grid(*batch_range, _NUM_POINT_GRID),
        log_grid(*token_range, _NUM_POINT_GRID),
    )
    # The lower edge of what is possible, S = B, is on the grid: the colours end on it and not in stairs.
    edge = batch_size[(batch_size >= total_tokens[0]) & (batch_size <= total_tokens[-1])]
    grid = steps_grid(batch_size=batch_size, total_tokens=np.union1d(total_tokens, edge))
    possible = grid[POSSIBLE].transpose(*ORDER)
    surface = latency(grid["batch_size"], grid["total_tokens"]).transpose(*ORDER).where(possible)
    log_axes(ax)
    lines = draw_contours(ax, surface, round_levels(surface.to_numpy()[possible.to_numpy()]))
    seen = region.contains(*np.meshgrid(grid["batch_size"], grid["total_tokens"], indexing="ij"))
    draw_veil(ax, grid, grid[POSSIBLE].copy(data=~seen))
    label_contours(ax, lines)
    for label in ax.texts:  # at the edge of the axes a number would lose a digit, and read as another one
        label.set_clip_on(False)
    ax.set(title="Latency (ms)", xlabel=X_LABEL, ylabel=Y_LABEL)
    figure.legend(handles=[veil_handle("no such steps in the fit")], loc="outside lower left")
    return figure
