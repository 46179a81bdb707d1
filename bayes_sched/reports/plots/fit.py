"""What a fit says of latencies, and its checks: do chains agree, what was learnt, do predictions hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from scipy.stats import binom, kstwo

from bayes_sched.arrays import Floats
from bayes_sched.checks.calibration import PROBABILITIES
from bayes_sched.checks.local import CONTRADICTED, DECODE, FEW, HOLDS, WIDE
from bayes_sched.checks.summary import FitSummary
from bayes_sched.checks.views import CONTOURED, FitViews, log10_density
from bayes_sched.model.likelihood import Effect
from bayes_sched.region import Region
from bayes_sched.reports.plots import style
from bayes_sched.steps import POSSIBLE, decode_only, log_grid, sample_steps, steps_grid

_NEIGHBOURHOOD = 1.15
"""Steps whose B is within this factor of a panel's B are drawn in it."""
_WIDE = 50.0
_BANDS = {0.99: 0.15, 0.9: 0.25, 0.5: 0.4}
_NUM_POINT_GRID = 160
_UNSEEN = "no such steps in the trace"
_DECADE = 15.0
_VERDICT_COLOURS = {HOLDS: style.BLUE, WIDE: style.GREEN, CONTRADICTED: style.VERMILLION, FEW: style.SKY}
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


@style.styled
def local_check(summary: FitSummary) -> Figure:
    """Draw the fitted band and the observed latencies of each bin of :class:`LocalCheck`."""
    table = summary.local.table
    panels = {
        "decode-only steps": (table[table["kind"] == DECODE], "requests"),
        "steps with prefill": (table[table["kind"] != DECODE], "tokens"),
    }
    panels = {name: panel for name, panel in panels.items() if len(panel[0])}
    figure, axes = style.new_panels("The fit against its own trace", len(panels), head_in=0.9, each_in=2.6)
    for ax, (name, (rows, of)) in zip(axes.flat, panels.items(), strict=False):
        places = np.arange(len(rows))
        lower, upper = rows["fitted_lower_ms"], rows["fitted_upper_ms"]
        ax.bar(places, upper - lower, bottom=lower, width=0.7, color=style.BAND, label="fitted band")
        ax.hlines(rows["fitted_ms"], places - 0.35, places + 0.35, color=style.GREY, label="fitted median")
        for verdict, colour in _VERDICT_COLOURS.items():
            shown = (rows["verdict"] == verdict).to_numpy()
            if not shown.any():
                continue
            of_kind = rows[shown]
            ends = (
                of_kind[["observed_lower_ms", "observed_upper_ms"]].sub(of_kind["observed_ms"], axis=0).abs()
            )
            look: Any = {"fmt": "o", "markersize": 3.5, "color": colour, "label": verdict}
            ax.errorbar(places[shown], of_kind["observed_ms"], yerr=ends.to_numpy().T, **look)
        first, last = rows[f"first_{of}"], rows[f"last_{of}"]
        labels = [f"{a:,}" if a == b else f"{a:,}-{b:,}" for a, b in zip(first, last, strict=True)]
        ax.set_xticks(places, labels, rotation=60, ha="right", fontsize=7.0)
        ax.set(title=name, xlabel=of, ylabel="latency (ms)")
        style.log_axis(ax.yaxis)
    return style.figure_legend(figure, axes[0, 0], columns=3)


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
    contraction = summary.parameters.set_index("name")["contraction"]
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
        ax.set_title(f"${view.parameter.symbol}$   contraction {contraction[view.parameter.name]:.2f}")
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
