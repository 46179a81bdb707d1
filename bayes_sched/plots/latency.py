"""Latency bands against the tokens, and against the requests, of a step."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayes_sched.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.plots.points import Floats, decode_only, draw_points, limit_above, log_grid, sample_steps
from bayes_sched.plots.style import (
    BLUE,
    SKY,
    figure_legend,
    hatch_extrapolation,
    label_outer,
    log_axis,
    new_figure,
    styled,
)
from bayes_sched.steps import steps_arrays

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
