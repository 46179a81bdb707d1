"""Residuals: what the mean latency leaves unexplained, against B, S and time."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayes_sched.fitted import FittedModel
from bayes_sched.plots.draws import thin
from bayes_sched.plots.points import Floats, draw_points, sample_steps
from bayes_sched.plots.style import BLUE, INK, SKY, figure_legend, log_axis, new_figure, styled

_NUM_BINS = 20
_MIN_IN_BIN = 10
_MAX_DRAWS = 100
_SHOWN = (0.005, 0.995)


def residual_table(fit: FittedModel, steps: pd.DataFrame) -> pd.DataFrame:
    """Return the residuals of the steps.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame
        ``batch_size``, ``total_tokens``, ``latency_ms`` (ms), in the order of the trace.

    Returns
    -------
    DataFrame
        The rows of `steps`: ``batch_size``, ``total_tokens``, ``position`` (number of the step), and the
        residual from the posterior mean of the latency as ``residual_ms`` and, in units of the predictive
        scale, ``residual_scales``.
    """
    columns = list(fit.model.columns)
    cells = steps[columns].drop_duplicates().reset_index(drop=True)
    draws = thin(fit.posterior, _MAX_DRAWS)
    table = xr.Dataset({c: ("cell", cells[c].to_numpy(float)) for c in columns})
    mean = fit.model.latency(draws, table)
    scale = fit.model.scale(draws, mean, table).broadcast_like(mean)
    over = [dim for dim in mean.dims if dim != "cell"]
    cells = cells.assign(mean_ms=mean.mean(over).to_numpy(), scale_ms=scale.mean(over).to_numpy())
    joined = steps[columns].merge(cells, on=columns, how="left")
    residual_ms = steps["latency_ms"].to_numpy(float) - joined["mean_ms"].to_numpy()
    return pd.DataFrame(
        {
            "batch_size": steps["batch_size"].to_numpy(),
            "total_tokens": steps["total_tokens"].to_numpy(),
            "position": np.arange(1, len(steps) + 1),
            "residual_ms": residual_ms,
            "residual_scales": residual_ms / joined["scale_ms"].to_numpy(),
        }
    )


@styled
def residuals(fit: FittedModel, steps: pd.DataFrame) -> Figure:
    """Draw residuals against requests, tokens and step number, in ms and in predictive scales.

    How to read it: the line is the running median and the band holds the middle 90% of the steps. A median
    that wanders away from zero is something the equation does not know; a band that widens on the left but
    not on the right is noise the model accounts for.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame
        The cleaned steps in the order of the trace: ``batch_size``, ``total_tokens``, ``latency_ms`` (ms).

    Returns
    -------
    Figure
    """
    table = residual_table(fit, steps)
    figure, axes = new_figure(
        "Residuals: observed minus mean latency", height_in=6.6, rows=3, columns=2, sharey="col"
    )
    against = {
        "batch_size": "requests, B",
        "total_tokens": "tokens, S",
        "position": "number of the step in the trace",
    }
    units = {"residual_ms": "ms", "residual_scales": "noise scales"}
    for column, (value, unit) in enumerate(units.items()):
        for row, (name, label) in enumerate(against.items()):
            ax = axes[row, column]
            _draw(ax, table, name, value)
            if name == "total_tokens":
                log_axis(ax.xaxis, sparse=True)
            else:
                ax.locator_params(axis="x", nbins=4)
            ax.set_xlabel(label)
            ax.set_ylabel(f"residual ({unit})")
        axes[0, column].set_ylim(*_limits(table[value].to_numpy()))
        axes[0, column].set_title(_outside(table[value].to_numpy()))
    figure_legend(figure, axes[0, 0], columns=3)
    return figure


def running_quantiles(x: Floats, y: Floats) -> pd.DataFrame:
    """Return quantiles of `y` in bins of `x` of equal width.

    Parameters
    ----------
    x, y : ndarray, dims (point,)

    Returns
    -------
    DataFrame
        One row a bin: ``x`` (median), ``low``, ``middle``, ``high`` (5%, 50%, 95%); bins of fewer than ten
        points are left out.
    """
    edges = np.linspace(x.min(), x.max(), _NUM_BINS + 1)
    bins = np.searchsorted(edges[1:-1], x, side="right")
    groups = pd.DataFrame({"x": x, "y": y}).groupby(bins)
    quantiles = {
        name: groups["y"].quantile(q) for name, q in {"low": 0.05, "middle": 0.5, "high": 0.95}.items()
    }
    return pd.DataFrame({"x": groups["x"].median(), **quantiles})[groups.size() >= _MIN_IN_BIN]


def _draw(ax: Axes, table: pd.DataFrame, name: str, value: str) -> None:
    shown = sample_steps(table)
    draw_points(ax, shown[name], shown[value], size=3.0, label="steps")
    x = table[name].to_numpy(float)
    logarithmic = name == "total_tokens"
    running = running_quantiles(np.log(x) if logarithmic else x, table[value].to_numpy(float))
    if logarithmic:
        running["x"] = np.exp(running["x"])
    ax.fill_between(
        running["x"], running["low"], running["high"], color=SKY, alpha=0.4, linewidth=0, label="middle 90%"
    )
    ax.plot(running["x"], running["middle"], color=BLUE, label="running median")
    ax.axhline(0.0, color=INK, linewidth=0.8)


def _limits(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, _SHOWN)
    margin = 0.1 * max(high - low, 1e-9)
    return float(low - margin), float(high + margin)


def _outside(values: Floats) -> str:
    low, high = _limits(values)
    return f"{np.mean((values < low) | (values > high)):.1%} of steps outside the plot"
