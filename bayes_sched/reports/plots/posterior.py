"""The draws of a fit: agreement of chains, identified combinations, what was learnt, varying effects."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from bayes_sched.arrays import Floats
from bayes_sched.checks.summary import FitSummary
from bayes_sched.checks.views import ParameterView, RankView
from bayes_sched.model.likelihood import Effect
from bayes_sched.reports.plots.fit import views_of
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
    log_axis,
    new_figure,
    styled,
)

_COLUMNS = 3
_DECADE = 15.0
_BEYOND = 1.25
"""How far beyond the largest level with steps the axis goes: what is said of larger steps has to be seen."""
_QUANTITIES = {"batch_size": "requests of the step, B", "total_tokens": "tokens of the step, S"}


@styled
def ranks(summary: FitSummary) -> Figure:
    """Draw, for each parameter and sampled coordinate, how the ranks of each chain's draws are spread.

    How to read it: all draws are ranked together; a chain that explores what the others do has ranks spread
    evenly, and its line stays near zero, within the grey band (wider where draws are fewer in effect). A line
    far outside: that chain saw something else, and the fit is not to be trusted.
    """
    panels = views_of(summary).ranks
    rows = math.ceil(len(panels) / _COLUMNS)
    figure, axes = new_figure(
        "Ranks of each chain's draws: even if the chains agree",
        height_in=1.1 + 1.05 * rows,
        rows=rows,
        columns=_COLUMNS,
        sharex=True,
        sharey=True,
    )
    for ax, (name, view) in zip(axes.flat, panels.items(), strict=False):
        _draw_ranks(ax, view)
        ax.set_title(name, fontsize=8.0)
    reach = 1.1 * max(max(view.half_width, float(np.abs(view.lines).max())) for view in panels.values())
    axes[0, 0].set(ylim=(-reach, reach), xlim=(0.0, 1.0), xticks=[0.0, 0.5, 1.0])
    axes[0, 0].set_xticklabels(["0", "0.5", "1"])
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    label_outer(axes, xlabel="relative rank", ylabel="deviation")
    figure_legend(figure, axes[0, 0], columns=5)
    return figure


def _draw_ranks(ax: Axes, view: RankView) -> None:
    ax.axhspan(-view.half_width, view.half_width, color=BAND, zorder=0.5)
    ax.axhline(0.0, color=INK, linewidth=0.6)
    points = np.linspace(0.0, 1.0, view.lines.shape[1])
    for chain, line in enumerate(view.lines):
        ax.plot(points, line, color=CYCLE[chain % len(CYCLE)], linewidth=1.0, label=f"chain {chain + 1}")


@styled
def combination_pairs(summary: FitSummary) -> Figure:
    """Draw posterior draws of each pair of identified combinations.

    How to read it: a narrow diagonal means that the data know a sum or ratio of the two better than either;
    two clouds mean two explanations of the same data.
    """
    combinations = views_of(summary).combinations
    names = [str(name) for name in combinations.data_vars]
    size = max(len(names) - 1, 1)
    figure, axes = new_figure(
        "Posterior draws of the combinations that the data identify",
        height_in=1.0 + 1.35 * size,
        rows=size,
        columns=size,
        sharex="col",
        sharey="row",
    )
    values = {name: combinations[name].to_numpy() for name in names}
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
def prior_posterior(summary: FitSummary) -> Figure:
    """Draw the prior and the posterior density of each parameter.

    How to read it: where the two shapes are alike, the data say nothing about that parameter. The contraction
    is 1 minus the ratio of posterior to prior variance of the logarithm: 0 for nothing learnt, 1 for all.
    Each shape is scaled to its own peak.
    """
    views = views_of(summary).parameters
    rows = (len(views) + 1) // 2
    figure, axes = new_figure(
        "Prior against posterior of each parameter", height_in=0.9 + 1.25 * rows, rows=rows, columns=2
    )
    for ax, view in zip(axes.flat, views, strict=False):
        _draw_prior_posterior(ax, view)
    for ax in axes.flat[len(views) :]:
        ax.set_visible(False)
    figure_legend(figure, axes[0, 0])
    return figure


def _draw_prior_posterior(ax: Axes, view: ParameterView) -> None:
    for (x, density), colour, label in ((view.prior, GREY, "prior"), (view.posterior, BLUE, "posterior")):
        shape = density / density.max()
        ax.fill_between(
            10.0**x, shape, color=colour, alpha=0.35, linewidth=1.2, edgecolor=colour, label=label
        )
    ax.set_xlim(*view.span)
    log_axis(ax.xaxis, sparse=True)
    unit = view.parameter.unit
    ax.set(ylim=(0.0, 1.08), yticks=[], xlabel="(no unit)" if unit == "1" else unit)
    ax.set_title(f"${view.parameter.symbol}$   contraction {view.contraction:.2f}")
    ax.spines["left"].set_visible(False)


@styled
def effect_factors(summary: FitSummary) -> Figure:
    """Draw the factors by which latencies depart from the equation, level by level.

    How to read it: a factor of 1.1 makes the part of the latency that it multiplies 10% longer than the
    equation says; the model's documentation names that part. A level is as wide as the values it holds. Blue
    ones have steps in the trace; of grey ones nothing was seen, and how far they may depart is what other
    levels were seen to do.
    """
    effects, table = views_of(summary).effects, summary.effects
    figure, axes = new_figure(
        "How far latencies depart from the equation", height_in=0.9 + 1.9 * len(effects), rows=len(effects)
    )
    for ax, effect in zip(axes[:, 0], effects, strict=True):
        _draw_effects(ax, effect, table[table["effect"] == effect.name], summary.probability)
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
