"""Checks of a fit: do its chains agree, what was learnt, and do its predictions hold for what was seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from scipy.stats import binom, kstwo

from bayes_sched.arrays import Floats
from bayes_sched.checks.calibration import PROBABILITIES
from bayes_sched.checks.summary import FitSummary
from bayes_sched.model.likelihood import Effect
from bayes_sched.reports.plots import style
from bayes_sched.reports.plots.fit import views_of
from bayes_sched.steps import sample_steps

_DECADE = 15.0
_BEYOND = 1.25
"""How far beyond the largest level with steps the axis goes: what is said of larger steps has to be seen."""
_QUANTITIES = {"batch_size": "requests of the step, B", "total_tokens": "tokens of the step, S"}
_BAND = 0.99
_NUM_BINS = 20
_MIN_IN_BIN = 10
_RUNNING = {"low": 0.05, "middle": 0.5, "high": 0.95}
_SHOWN = (0.005, 0.995)
_AGAINST = (
    ("batch_size", "requests, B"),
    ("total_tokens", "tokens, S"),
    ("position", "number of the step in the trace"),
)


@style.styled
def ranks(summary: FitSummary) -> Figure:
    """Draw, for each parameter and sampled coordinate, how the ranks of each chain's draws are spread."""
    panels = views_of(summary).ranks
    title = "Ranks of each chain's draws: even if the chains agree"
    figure, axes = style.new_panels(title, len(panels), head_in=1.1, each_in=1.05, columns=3, **style.SHARED)
    for ax, (name, view) in zip(axes.flat, panels.items(), strict=False):
        ax.axhspan(-view.half_width, view.half_width, color=style.BAND, zorder=0.5)
        ax.axhline(0.0, color=style.INK, linewidth=0.6)
        points = np.linspace(0.0, 1.0, view.lines.shape[1])
        for chain, line in enumerate(view.lines):
            colour = style.CYCLE[chain % len(style.CYCLE)]
            ax.plot(points, line, color=colour, linewidth=1.0, label=f"chain {chain + 1}")
        ax.set_title(name, fontsize=8.0)
    reach = max(max(view.half_width, float(np.abs(view.lines).max())) for view in panels.values())
    style.rank_axes(axes[0, 0], 1.1 * reach)
    style.label_outer(axes, xlabel="relative rank", ylabel="deviation")
    return style.figure_legend(figure, axes[0, 0], columns=5)


@style.styled
def combination_pairs(summary: FitSummary) -> Figure:
    """Draw posterior draws of each pair of identified combinations."""
    combinations = views_of(summary).combinations
    names = [str(name) for name in combinations.data_vars]
    size = max(len(names) - 1, 1)
    title = "Posterior draws of the combinations that the data identify"
    joint: Any = {"columns": size, "sharex": "col", "sharey": "row"}
    figure, axes = style.new_figure(title, height_in=1.0 + 1.35 * size, rows=size, **joint)
    values = {name: combinations[name].to_numpy() for name in names}
    label = {name: f"{name} ({combinations[name].attrs['unit']})" for name in names}
    for (row, column), ax in np.ndenumerate(axes):
        if column > row or row + 1 >= len(names):
            ax.set_visible(False)
            continue
        x, y = names[column], names[row + 1]
        ax.scatter(values[x], values[y], s=2.0, color=style.BLUE, alpha=0.25, linewidths=0, rasterized=True)
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
        style.log_axis(axis, sparse=True)
        axis.set_major_locator(LogLocator(numticks=3))
    else:
        axis.set_major_locator(MaxNLocator(3))


@style.styled
def prior_posterior(summary: FitSummary) -> Figure:
    """Draw the prior and the posterior density of each parameter."""
    views = views_of(summary).parameters
    title = "Prior against posterior of each parameter"
    figure, axes = style.new_panels(title, len(views), head_in=0.9, each_in=1.25, columns=2)
    for ax, view in zip(axes.flat, views, strict=False):
        shapes = ((view.prior, style.GREY, "prior"), (view.posterior, style.BLUE, "posterior"))
        for (x, density), colour, label in shapes:
            look: Any = {"color": colour, "edgecolor": colour, "alpha": 0.35, "linewidth": 1.2}
            style.shade(ax, 10.0**x, density / density.max(), 0, label, **look)
        ax.set_xlim(*view.span)
        style.log_axis(ax.xaxis, sparse=True)
        unit = view.parameter.unit
        ax.set(ylim=(0.0, 1.08), yticks=[], xlabel="(no unit)" if unit == "1" else unit)
        ax.set_title(f"${view.parameter.symbol}$   contraction {view.contraction:.2f}")
        ax.spines["left"].set_visible(False)
    return style.figure_legend(figure, axes[0, 0])


@style.styled
def effect_factors(summary: FitSummary) -> Figure:
    """Draw the factors by which latencies depart from the equation, level by level."""
    effects, table = views_of(summary).effects, summary.effects
    title = "How far latencies depart from the equation"
    figure, axes = style.new_panels(title, len(effects), head_in=0.9, each_in=1.9)
    for ax, effect in zip(axes[:, 0], effects, strict=True):
        _draw_effects(ax, effect, table[table["effect"] == effect.name], summary.probability)
    return style.figure_legend(figure, axes[0, 0])


def _draw_effects(ax: Axes, effect: Effect, rows: pd.DataFrame, probability: float) -> None:
    seen = rows[rows["num_steps"] > 0]
    end = _BEYOND * float((seen if len(seen) else rows)["last"].max())
    if seen["last"].isna().any():
        end = 1.1 * float(seen["first"].max())
    left = rows["first"].to_numpy() - 0.5
    right = np.minimum(rows["last"].fillna(np.inf).to_numpy() + 0.5, end)
    shown = left < end
    is_seen = (rows["num_steps"] > 0).to_numpy()
    for chosen, face, alpha, line, words in (
        (shown & is_seen, style.SKY, 0.6, style.BLUE, "steps in the trace"),
        (shown & ~is_seen, style.HATCH, 0.5, style.GREY, "no such steps"),
    ):
        if not chosen.any():
            continue
        x, width = left[chosen], (right - left)[chosen]
        low, middle, high = (rows[name].to_numpy()[chosen] for name in ("lower", "median", "upper"))
        look: Any = {"align": "edge", "color": face, "alpha": alpha, "linewidth": 0}
        ax.bar(x, high - low, width, low, label=f"{probability:.0%} interval, {words}", **look)
        ax.hlines(middle, x, right[chosen], color=line, linewidth=1.6, label=f"median, {words}")
    ax.axhline(1.0, color=style.INK, linewidth=0.8)
    bottom, top = float(rows["lower"][shown].min()), float(rows["upper"][shown].max())
    margin = 0.06 * (top - bottom)
    ax.set(xlim=(0.5, end), ylim=(min(bottom, 1.0) - margin, max(top, 1.0) + margin))
    ax.set(xlabel=_QUANTITIES.get(effect.column, effect.column), ylabel="factor\n(1: the equation)")
    words = effect.meaning.removeprefix("log ")
    ax.set_title(words[:1].upper() + words[1:])


@style.styled
def posterior_predictive_check(summary: FitSummary) -> Figure:
    """Draw observed against predicted probabilities, and the coverage of predictive bands by kind of step."""
    title = "Observed steps against their predicted distribution"
    figure, axes = style.new_figure(title, height_in=5.6, rows=2)
    ax, pit = axes[0, 0], summary.calibration.pit
    probability = np.linspace(0.0, 1.0, 501)
    deviation = np.searchsorted(np.sort(pit), probability, side="right") / len(pit) - probability
    half_width = float(kstwo.ppf(_BAND, len(pit)))
    ax.axhspan(-half_width, half_width, color=style.BAND, zorder=0.5)
    ax.axhline(0.0, color=style.INK, linewidth=0.8)
    ax.plot(probability, deviation, color=style.BLUE)
    reach = max(0.02, 1.3 * half_width, 1.15 * float(np.max(np.abs(deviation))))
    ax.set(xlim=(0.0, 1.0), ylim=(-reach, reach))
    ax.set_title(f"Calibration (grey: {_BAND:.0%} band of a right model)")
    ax.set(xlabel="predicted probability p", ylabel="share of steps below\nthe p-quantile, minus p")
    _draw_coverage(axes[1, 0], summary.coverage)
    return style.figure_legend(figure, axes[1, 0], columns=3)


def _draw_coverage(ax: Axes, coverage: pd.DataFrame) -> None:
    number = dict(zip(coverage["steps"], coverage["num_steps"], strict=True))
    place = {kind: len(number) - 1 - i for i, kind in enumerate(number)}
    for probability, colour in zip(PROBABILITIES, (style.GREEN, style.BLUE, style.ORANGE), strict=True):
        rows = coverage[coverage["probability"] == probability]
        counts = rows["num_steps"].to_numpy()
        low, high = (binom.ppf(q, counts, probability) / counts for q in (0.005, 0.995))
        y = rows["steps"].map(place).to_numpy(float)
        ax.axvline(probability, color=colour, linewidth=1.0, linestyle="--", zorder=1.0)
        light = style.SKY if colour == style.BLUE else colour
        ax.hlines(y, low, high, color=light, alpha=0.35, linewidth=6.0)
        ax.plot(rows["coverage"], y, "o", color=colour, markersize=5.0, label=f"{probability:.0%} band")
    labels = [f"{kind}\n({int(count):,})" for kind, count in number.items()]
    ax.set_yticks(list(place.values()), labels)
    ax.set(xlim=(min(0.4, float(coverage["coverage"].min()) - 0.03), 1.01), ylim=(-0.6, len(number) - 0.4))
    ax.set(xlabel="share of the observed steps inside the band", title="Coverage of predictive bands")


@style.styled
def residuals(summary: FitSummary) -> Figure:
    """Draw residuals against requests, tokens and step number, in ms and in predictive scales."""
    table = views_of(summary).residuals
    title = "Residuals: observed minus mean latency"
    figure, axes = style.new_figure(title, height_in=6.6, rows=3, columns=2, sharey="col")
    units = {"residual_ms": "ms", "residual_scales": "noise scales"}
    for panels, (value, unit) in zip(axes.T, units.items(), strict=True):
        for ax, (name, label) in zip(panels, _AGAINST, strict=True):
            _draw_residuals(ax, table, name, value)
            ax.set(xlabel=label, ylabel=f"residual ({unit})")
        values = table[value].to_numpy()
        low, high = np.quantile(values, _SHOWN)
        margin = 0.1 * max(high - low, 1e-9)
        low, high = float(low - margin), float(high + margin)
        panels[0].set_ylim(low, high)
        panels[0].set_title(f"{np.mean((values < low) | (values > high)):.1%} of steps outside the plot")
    return style.figure_legend(figure, axes[0, 0], columns=3)


def running_quantiles(x: Floats, y: Floats) -> pd.DataFrame:
    """Return quantiles of `y` in bins of `x` of equal width: ``x``, ``low``, ``middle``, ``high``."""
    edges = np.linspace(x.min(), x.max(), _NUM_BINS + 1)
    bins = np.searchsorted(edges[1:-1], x, side="right")
    groups = pd.DataFrame({"x": x, "y": y}).groupby(bins)
    quantiles = {name: groups["y"].quantile(q) for name, q in _RUNNING.items()}
    return pd.DataFrame({"x": groups["x"].median(), **quantiles})[groups.size() >= _MIN_IN_BIN]


def _draw_residuals(ax: Axes, table: pd.DataFrame, name: str, value: str) -> None:
    shown = sample_steps(table)
    style.draw_points(ax, shown[name], shown[value], size=3.0, label="steps")
    x = table[name].to_numpy(float)
    logarithmic = name == "total_tokens"
    running = running_quantiles(np.log(x) if logarithmic else x, table[value].to_numpy(float))
    if logarithmic:
        running["x"] = np.exp(running["x"])
    style.shade(ax, running["x"], running["low"], running["high"], "middle 90%", alpha=0.4)
    ax.plot(running["x"], running["middle"], color=style.BLUE, label="running median")
    ax.axhline(0.0, color=style.INK, linewidth=0.8)
    if logarithmic:
        style.log_axis(ax.xaxis, sparse=True)
    else:
        ax.locator_params(axis="x", nbins=4)
