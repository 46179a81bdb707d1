"""Departures from the equation: the factor of each level, where the trace has steps and where it has none."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayes_sched.effects import Effect, effects_of
from bayes_sched.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.plots.style import BLUE, GREY, HATCH, INK, SKY, figure_legend, new_figure, styled

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
        _draw(ax, effect, table[table["effect"] == effect.name], probability)
    figure_legend(figure, axes[0, 0])
    return figure


def _draw(ax: Axes, effect: Effect, rows: pd.DataFrame, probability: float) -> None:
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
