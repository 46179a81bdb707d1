"""What the priors allow before any data are seen."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t as student_t

from bayes_sched.fitted import FittedModel
from bayes_sched.plots.draws import log10_density, thin
from bayes_sched.plots.points import Floats, draw_points, log_grid, sample_steps
from bayes_sched.plots.style import INK, ORANGE, figure_legend, log_axis, new_figure, styled
from bayes_sched.steps import as_steps, steps_arrays

_MAX_DRAWS = 4000
_MAX_STEPS = 100
_NUM_GRID = 40
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
    _draw_bands(axes[0, 0], fit, steps)
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


def _draw_bands(ax: Axes, fit: FittedModel, steps: pd.DataFrame) -> None:
    batch_size = int(steps["batch_size"].median())
    tokens = log_grid(batch_size, float(steps["total_tokens"].max()), _NUM_GRID)
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
