"""Departures from the equation: the factor of each level, where the trace has steps and where it has none."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from scipy.stats import kstwo, rankdata

from bayes_sched.arrays import Floats
from bayes_sched.model.equation import Parameter
from bayes_sched.model.likelihood import Effect, effects_of
from bayes_sched.posterior.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.reports.plots.style import (
    BAND,
    BLUE,
    CYCLE,
    GREY,
    HATCH,
    INK,
    SKY,
    figure_legend,
    label_outer,
    log10_density,
    log_axis,
    new_figure,
    parameters_of,
    styled,
    thin,
)

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
        reach = max(reach, _draw_ranks(ax, draws, ess_bulk))
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


def _draw_ranks(ax: Axes, draws: xr.DataArray, ess_bulk: float) -> float:
    lines = deviation(draws)
    effective = max(2, round(ess_bulk / len(lines))) if math.isfinite(ess_bulk) else 2
    half_width = float(kstwo.ppf(_BAND, effective))
    ax.axhspan(-half_width, half_width, color=BAND, zorder=0.5)
    ax.axhline(0.0, color=INK, linewidth=0.6)
    for chain, line in enumerate(lines):
        ax.plot(_points(), line, color=CYCLE[chain % len(CYCLE)], linewidth=1.0, label=f"chain {chain + 1}")
    return 1.1 * max(half_width, float(np.abs(lines).max()))


_MAX_DRAWS = 1000
_DECADE = 15.0


@styled
def combination_pairs(fit: FittedModel) -> Figure:
    """Draw posterior draws of each pair of identified combinations.

    How to read it: a narrow diagonal means that the data know a sum or ratio of the two better than either;
    two clouds mean two explanations of the same data.

    Parameters
    ----------
    fit : FittedModel

    Returns
    -------
    Figure
    """
    combinations = fit.model.combinations(thin(fit.posterior, _MAX_DRAWS))
    names = list(combinations.data_vars)
    size = max(len(names) - 1, 1)
    figure, axes = new_figure(
        "Posterior draws of the combinations that the data identify",
        height_in=1.0 + 1.35 * size,
        rows=size,
        columns=size,
        sharex="col",
        sharey="row",
    )
    values = {name: np.ravel(combinations[name].transpose("chain", "draw")) for name in names}
    label = {name: f"{name} ({combinations[name].attrs['unit']})" for name in names}
    for row in range(size):
        for column in range(size):
            ax = axes[row, column]
            if column > row or row + 1 >= len(names):
                ax.set_visible(False)
                continue
            x, y = names[column], names[row + 1]
            ax.scatter(values[x], values[y], s=2.0, color=BLUE, alpha=0.25, linewidths=0, rasterized=True)
            for axis, name in ((ax.xaxis, x), (ax.yaxis, y)):
                _scale(axis, values[name])
            if row == size - 1:
                ax.set_xlabel(label[x], fontsize=8.0)
            if column == 0:
                ax.set_ylabel(label[y], fontsize=8.0)
    return figure


def _scale(axis: Axis, values: Floats) -> None:
    """Make an axis logarithmic where the draws span more than a decade."""
    if values.max() > _DECADE * values.min():
        log_axis(axis, sparse=True)
        axis.set_major_locator(LogLocator(numticks=3))
    else:
        axis.set_major_locator(MaxNLocator(3))


@styled
def prior_posterior(fit: FittedModel) -> Figure:
    """Draw the prior and the posterior density of each parameter.

    How to read it: where the two shapes are alike, the data say nothing about that parameter. The contraction
    is 1 minus the ratio of posterior to prior variance of the logarithm: 0 for nothing learnt, 1 for all.
    Each shape is scaled to its own peak.

    Parameters
    ----------
    fit : FittedModel

    Returns
    -------
    Figure
    """
    parameters = parameters_of(fit)
    rows = (len(parameters) + 1) // 2
    figure, axes = new_figure(
        "Prior against posterior of each parameter", height_in=0.9 + 1.25 * rows, rows=rows, columns=2
    )
    for ax, parameter in zip(axes.flat, parameters, strict=False):
        _draw_prior_posterior(ax, fit, parameter)
    for ax in axes.flat[len(parameters) :]:
        ax.set_visible(False)
    figure_legend(figure, axes[0, 0])
    return figure


def _draw_prior_posterior(ax: Axes, fit: FittedModel, parameter: Parameter) -> None:
    name = parameter.name
    for draws, colour, label in ((fit.prior[name], GREY, "prior"), (fit.posterior[name], BLUE, "posterior")):
        x, density = log10_density(draws)
        ax.fill_between(
            10.0**x,
            density / density.max(),
            color=colour,
            alpha=0.35,
            linewidth=1.2,
            edgecolor=colour,
            label=label,
        )
    low, high = (float(fit.prior[name].quantile(q)) for q in (0.001, 0.999))
    posterior = fit.posterior[name]
    ax.set_xlim(min(low, float(posterior.min())), max(high, float(posterior.max())))
    log_axis(ax.xaxis, sparse=True)
    ax.set(ylim=(0.0, 1.08), yticks=[], xlabel="(no unit)" if parameter.unit == "1" else parameter.unit)
    ax.set_title(f"${parameter.symbol}$   contraction {fit.contraction(name):.2f}")
    ax.spines["left"].set_visible(False)


_BEYOND = 1.25
"""How far beyond the largest level with steps the axis goes: what is said of larger steps has to be seen."""
_QUANTITIES = {"batch_size": "requests of the step, B", "total_tokens": "tokens of the step, S"}


def effect_table(
    fit: FittedModel, steps: pd.DataFrame, *, probability: float = DEFAULT_PROBABILITY
) -> pd.DataFrame:
    """Return the factors by which latencies depart from the equation.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame
        The cleaned steps of the fit with the model's columns: they say which levels have data.
    probability : float
        Of the intervals.

    Returns
    -------
    DataFrame
        One row a level of an effect: ``effect``, ``meaning``, ``column`` (of the steps), ``level`` (the
        values it holds, in words), ``first`` and ``last`` of them (the last level of an effect is open:
        missing), ``num_steps``, and the factor: ``lower``, ``median``, ``upper`` (equal tails). Of a level
        without steps the factor is the population's. No row where the model has no effects.
    """
    tail = 0.5 * (1.0 - probability)
    tables = []
    for effect in effects_of(fit.model):
        log_factors = fit.posterior[effect.name].transpose("chain", "draw", effect.dim)
        levels = log_factors.quantile([tail, 0.5, 1.0 - tail], ("chain", "draw"))
        lower, median, upper = np.exp(levels.to_numpy())
        level = effect.level(steps.loc[effect.acts_on(steps), effect.column])
        table = pd.DataFrame(
            {
                "level": effect.labels,
                "first": np.array([0.0, *effect.upper]) + 1.0,
                "last": [*effect.upper, np.nan],
                "num_steps": np.bincount(level, minlength=effect.num_levels),
                "lower": lower,
                "median": median,
                "upper": upper,
            }
        )
        told = {"effect": effect.name, "meaning": effect.meaning, "column": effect.column}
        tables.append(table.assign(**told)[[*told, *table.columns]])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


@styled
def effect_factors(
    fit: FittedModel, steps: pd.DataFrame, *, probability: float = DEFAULT_PROBABILITY
) -> Figure:
    """Draw the factors by which latencies depart from the equation, level by level.

    How to read it: a factor of 1.1 makes the part of the latency that it multiplies 10% longer than the
    equation says; the model's documentation names that part. A level is as wide as the values it holds. Blue
    ones have steps in the trace; of grey ones nothing was seen, and how far they may depart is what other
    levels were seen to do.

    Parameters
    ----------
    fit : FittedModel
        Of a model with effects.
    steps : DataFrame
        The cleaned steps with the model's columns.
    probability : float
        Of the intervals.

    Returns
    -------
    Figure
    """
    effects = effects_of(fit.model)
    table = effect_table(fit, steps, probability=probability)
    figure, axes = new_figure(
        "How far latencies depart from the equation", height_in=0.9 + 1.9 * len(effects), rows=len(effects)
    )
    for ax, effect in zip(axes[:, 0], effects, strict=True):
        _draw_effects(ax, effect, table[table["effect"] == effect.name], probability)
    figure_legend(figure, axes[0, 0])
    return figure


def _draw_effects(ax: Axes, effect: Effect, rows: pd.DataFrame, probability: float) -> None:
    seen = rows[rows["num_steps"] > 0]
    end = _BEYOND * float((seen if len(seen) else rows)["last"].max())
    if seen["last"].isna().any():
        end = 1.1 * float(seen["first"].max())
    left = rows["first"].to_numpy() - 0.5
    right = np.minimum(rows["last"].fillna(np.inf).to_numpy() + 0.5, end)
    share = f"{probability:.0%}"
    shown = left < end
    for has_steps, face, line, words in (
        (True, SKY, BLUE, "steps in the trace"),
        (False, HATCH, GREY, "no such steps"),
    ):
        chosen = shown & ((rows["num_steps"] > 0).to_numpy() == has_steps)
        if not chosen.any():
            continue
        low, middle, high = (rows[name].to_numpy()[chosen] for name in ("lower", "median", "upper"))
        ax.bar(
            left[chosen], high - low, width=(right - left)[chosen], bottom=low, align="edge", color=face,
            alpha=0.6 if has_steps else 0.5, linewidth=0, label=f"{share} interval, {words}",
        )  # fmt: skip
        ax.hlines(middle, left[chosen], right[chosen], color=line, linewidth=1.6, label=f"median, {words}")
    ax.axhline(1.0, color=INK, linewidth=0.8)
    bottom, top = float(rows["lower"][shown].min()), float(rows["upper"][shown].max())
    margin = 0.06 * (top - bottom)
    ax.set(xlim=(0.5, end), ylim=(min(bottom, 1.0) - margin, max(top, 1.0) + margin))
    ax.set(xlabel=_QUANTITIES.get(effect.column, effect.column), ylabel="factor\n(1: the equation)")
    words = effect.meaning.removeprefix("log ")
    ax.set_title(words[:1].upper() + words[1:])
