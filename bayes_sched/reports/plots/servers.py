"""Servers side by side: ratios and probabilities, latencies and parameters, and what pooling says of each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import BoundaryNorm
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatterMathtext, LogLocator, NullLocator

from bayes_sched.arrays import Floats
from bayes_sched.comparison.compare import MAX_PAIRS, Comparison
from bayes_sched.comparison.verdicts import UNDECIDED, rope_bounds
from bayes_sched.files import UNSEEN
from bayes_sched.format import counted, cut, cut_start
from bayes_sched.pooling.summary import PoolSummary
from bayes_sched.reports.plots import style

_MARKERS = ("o", "s", "D")
_LINES = ("-", "--", "-.", ":")
_LONG_LABEL = 30
_UNKNOWN = (style.GREY, "white", ":", 1.0)
_MAP_COLOURS = "PuOr_r"
_PROBABILITIES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_WIDE = 50.0  # ratio of the ends of an axis from which only powers of ten are written
_OFFSET = 0.17
_PAD = 1.15
_LABEL = 34  # characters of a server's name that a panel has room for
_TRACE_COLOURS = tuple(colour for colour in style.CYCLE if colour != style.GREEN)


@style.styled
def ratio_map(comparison: Comparison) -> Figure:
    """Draw the ratio of mean latencies over (B, S), a panel a pair of servers."""
    title = "Ratio of mean latencies by requests and tokens"
    pairs, figure, axes = _new_maps(comparison, title, head_in=1.7, each_in=2.9)
    is_covered = ~comparison.grid["extrapolation"]
    covered = [one["ratio_median"].where(is_covered).to_numpy() for one in pairs]
    levels = _ratio_levels(np.concatenate(covered), comparison.rope)
    drawn: ContourSet | None = None
    for ax, one in zip(axes[:, 0], pairs, strict=True):
        drawn = _surface(ax, one["ratio_median"], levels)
        style.draw_veil(ax, comparison.outline, comparison.outline["extrapolation"])
        style.draw_seen(ax, comparison.seen)
        is_undecided = ((one["verdict"] == UNDECIDED) & is_covered).transpose(*style.ORDER)
        tokens, sizes = is_undecided.to_numpy().nonzero()
        b, s = is_undecided["batch_size"].to_numpy()[sizes], is_undecided["total_tokens"].to_numpy()[tokens]
        ax.scatter(b, s, marker="x", s=12.0, color=style.INK, linewidths=0.8)
        ax.set_title(f"{one['first'].item()}\nover {one['second'].item()}")
    if drawn is not None:
        texts = [f"{level:.2f}" for level in levels]
        _bar(figure, axes, drawn, "ratio of mean latencies", texts, aspect=30)
    handles = [
        style.veil_handle("extrapolation"),
        Line2D([], [], marker="x", linestyle="", color=style.INK, markersize=4.0, label="undecided"),
        Line2D([], [], marker=".", linestyle="", color="black", markersize=2.5, label="step of a trace"),
        Patch(facecolor="#f7f7f7", edgecolor=style.INK, linewidth=0.6, label="equivalent"),
    ]
    return style.figure_legend(figure, axes[0, 0], *handles)


@style.styled
def probability_map(comparison: Comparison) -> Figure:
    """Draw the probabilities that one server is faster, on average and in a single step."""
    title = "Probability that one server is faster, on average and in a single step"
    pairs, figure, axes = _new_maps(comparison, title, head_in=1.4, each_in=2.4, columns=2)
    titles = {"p_faster": "on average", "p_step_faster": "in a single step"}
    drawn: ContourSet | None = None
    for row, one in zip(axes, pairs, strict=True):
        for ax, (name, when) in zip(row, titles.items(), strict=True):
            # One less the probability: the colours run as those of the ratio.
            drawn = _surface(ax, 1.0 - one[name], np.array(_PROBABILITIES))
            style.draw_veil(ax, comparison.outline, comparison.outline["extrapolation"])
            ax.set_title(f"{one['first'].item()} faster\n{when}")
    if drawn is not None:
        bar = _bar(figure, axes, drawn, "probability", [f"{1.0 - p:g}" for p in _PROBABILITIES])
        bar.ax.invert_xaxis()
    return figure


def _new_maps(
    comparison: Comparison, title: str, *, columns: int = 1, **heights: float
) -> tuple[list[xr.Dataset], Figure, style.AxesGrid]:
    """Return the maps of the pairs that a figure shows, and a figure with a row of axes for each."""
    pairs = [comparison.maps.sel(pair=name) for name in comparison.maps["pair"].to_numpy()[:MAX_PAIRS]]
    same: Any = {"columns": columns, "sharex": True, "sharey": columns > 1, **heights}
    figure, axes = style.new_panels(title, columns * len(pairs), **same)
    style.label_outer(axes, xlabel=style.X_LABEL, ylabel=style.Y_LABEL)
    return pairs, figure, axes


def _surface(ax: Axes, values: xr.DataArray, levels: Floats) -> ContourSet | None:
    """Fill a map, dims (batch_size, total_tokens); None where the grid has one B or S only."""
    surface = values.transpose(*style.ORDER)
    style.log_axes(ax)
    if not style.has_area(ax, surface, whose="the traces hold"):
        return None
    x, y, z = surface["batch_size"].to_numpy(), surface["total_tokens"].to_numpy(), surface.to_numpy()
    inside = np.clip(z, levels[0], levels[-1])
    drawn = ax.contourf(x, y, inside, levels=levels, norm=BoundaryNorm(levels, 256), cmap=_MAP_COLOURS)
    ax.contour(x, y, inside, levels=levels[1:-1], colors=style.INK, linewidths=0.4)
    return drawn


def _bar(
    figure: Figure, axes: style.AxesGrid, drawn: ContourSet, label: str, texts: list[str], **look: Any
) -> Colorbar:
    """Add the colours' bar under the maps, `texts` at the levels."""
    place: Any = {"ax": axes.ravel().tolist(), "location": "bottom", "ticks": drawn.levels}
    bar = figure.colorbar(drawn, label=label, **place, **look)
    bar.ax.set_xticklabels(texts)
    return bar


def _ratio_levels(ratios: Floats, rope: float) -> Floats:
    """Return levels symmetric on a logarithmic scale, the ends of the region of equivalence among them."""
    reach = float(np.nanmax(np.abs(np.log(ratios))))
    _, high = rope_bounds(max(rope, 0.01))
    steps = [high, *(value for value in (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0) if value > 1.03 * high)]
    above = [value for value in steps if np.log(value) < reach]
    above.append(steps[min(len(above), len(steps) - 1)])
    upper = np.unique(above)
    return np.concatenate([1.0 / upper[::-1], upper])


@style.styled
def comparison_bands(comparison: Comparison) -> Figure:
    """Draw the latency of decode-only steps, and of steps with prefill, on each server."""
    title = "Latency of a step on each server, with the band that single steps fall into"
    figure, axes = style.new_figure(title, height_in=6.2, rows=2)
    decode, mixed = axes[:, 0]
    _draw_bands(decode, comparison.bands["decode"])
    _draw_bands(mixed, comparison.bands["mixed"])
    b = int(comparison.bands["mixed"]["batch_size"].max())
    decode.set_title("Decode-only steps (S = B)")
    decode.set(xlabel="decoding requests in the step, B = S", ylabel="latency (ms)", ylim=(0.0, None))
    mixed.set_title(f"Steps of {counted(b, 'request')}, prefill included")
    mixed.set(xlabel="tokens in the step, S", ylabel="latency (ms)", ylim=(0.0, None))
    style.log_axis(mixed.xaxis)
    share = f"{100 * comparison.probability:g}%"
    decode.fill_between([], [], color=style.GREY, alpha=0.35, label=f"{share} of single steps fall here")
    decode.plot([], [], color=style.GREY, linewidth=0.7, label="thin: extrapolation")
    return style.figure_legend(figure, decode)


def _draw_bands(ax: Axes, bands: xr.Dataset) -> None:
    x = bands["total_tokens"].to_numpy()
    for number, label in enumerate(bands["gpu"].to_numpy()):
        band = bands.sel(gpu=label)
        seen = band.where(~band["extrapolation"])
        colour, line = style.CYCLE[number % len(style.CYCLE)], _LINES[number % len(_LINES)]
        look: Any = {"color": colour, "linestyle": line}
        ax.plot(x, band["mean_ms"], linewidth=0.7, alpha=0.8, **look)
        ax.plot(x, seen["mean_ms"], linewidth=1.8, label=str(label), **look)
        style.shade(ax, x, seen["lower_ms"], seen["upper_ms"], color=colour, alpha=0.25)


@style.styled
def parameter_forest(comparison: Comparison) -> Figure:
    """Draw the ratio of each parameter and combination between servers, with its credible interval."""
    table = comparison.parameter_ratios[comparison.parameter_ratios["kind"] != "noise"]
    names = table["name"].drop_duplicates().tolist()
    pairs = table[["gpu", "other"]].drop_duplicates().head(MAX_PAIRS)
    height_in = 1.5 + 0.26 * len(names) * max(1, len(pairs) - 1)
    figure, ax = style.new_axes("Ratio of each parameter between servers", height_in=height_in)
    low, high = rope_bounds(comparison.rope)
    ax.axvspan(low, high, color=style.BAND, zorder=0.4)
    ax.axvline(1.0, color=style.GREY, linewidth=0.8, zorder=0.5)
    handles: list[Line2D | Patch] = []
    offsets = np.linspace(-0.28, 0.28, len(pairs)) if len(pairs) > 1 else np.zeros(1)
    for number, (gpu, other) in enumerate(pairs.itertuples(index=False)):
        chosen = table[(table["gpu"] == gpu) & (table["other"] == other)].set_index("name")
        marker, colour = _MARKERS[number], style.CYCLE[number]
        for place, name in enumerate(names):
            row, y = chosen.loc[name], place + offsets[number]
            shown, face, line, width = (colour, colour, "-", 1.6) if row["identified"] else _UNKNOWN
            ends = [row["ratio_lower"], row["ratio_upper"]]
            ax.plot(ends, [y, y], color=shown, linestyle=line, linewidth=width)
            mark: Any = {"marker": marker, "markersize": 4.5, "markerfacecolor": face}
            ax.plot(row["ratio_median"], y, color=shown, **mark)
        handles.append(Line2D([], [], color=colour, marker=marker, label=f"{gpu} over {other}"))
    hollow: Any = {"color": style.GREY, "marker": "o", "markerfacecolor": "white", "linestyle": ":"}
    handles.append(Line2D([], [], label="not identified", **hollow))
    handles.append(Patch(facecolor=style.BAND, label="practical equivalence"))
    _forest_axes(ax, comparison, table.drop_duplicates("name"))
    longest = max(len(str(handle.get_label())) for handle in handles)
    return style.figure_legend(figure, ax, *handles, columns=1 if longest > _LONG_LABEL else 2)


def _forest_axes(ax: Axes, comparison: Comparison, rows: pd.DataFrame) -> None:
    symbols = {name: f"${symbol}$" for name, symbol in comparison.symbols.items()}
    names, units = rows["name"].tolist(), rows["unit"].tolist()
    labels = [f"{symbols.get(name, name)}  [{unit}]" for name, unit in zip(names, units, strict=True)]
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(numticks=8))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(LogFormatterMathtext())
    ax.set_yticks(range(len(rows)), labels)
    ax.axhline(sum(name in symbols for name in names) - 0.5, color=style.INK, linewidth=0.6)
    credible = f"{100 * comparison.probability:g}% credible interval"
    ax.set(xlabel=f"ratio ({credible})", ylim=(len(rows) - 0.4, -0.6))
    ax.grid(axis="y", visible=False)


@style.styled
def pool_shrinkage(found: PoolSummary) -> Figure:
    """Draw the interval of each coordinate of each trace, alone and pooled, and that of an unseen server."""
    spread, changes = found.spread, found.changes
    traces = changes.drop_duplicates("trace")[["trace", "server"]]
    groups = {str(s): traces.loc[traces["server"] == s, "trace"].tolist() for s in traces["server"].unique()}
    places, labels = _rows(groups)
    each_in = 0.75 + 0.17 * len(places)
    title = "What each trace says alone, and with the others"
    figure, axes = style.new_panels(title, len(spread), head_in=0.9, each_in=each_in, columns=2, sharey=True)
    for ax, (_, row) in zip(axes.flat, spread.iterrows(), strict=False):
        chosen = changes[changes["coordinate"] == row["coordinate"]].set_index("trace")
        _draw_intervals(ax, row, chosen.loc[list(places)], places, f"{100 * found.probability:g}%")
    first = axes[0, 0]
    first.set_ylim(max([*places.values(), *labels.values()]) + 0.6, -0.7)
    first.set_yticks(list(places.values()), [name for group in groups.values() for name in _short(group)])
    for ax in axes.flat:
        ax.tick_params(axis="y", length=0, labelsize=7.0)
        ax.grid(axis="y", visible=False)
        for server, height in labels.items():
            ax.text(0.015, height, server, transform=ax.get_yaxis_transform(), fontsize=6.5, va="center")
    return style.figure_legend(figure, first, columns=1)


def _rows(groups: dict[str, list[str]]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the height of each trace, and that of the name of each server above its traces."""
    places: dict[str, float] = {}
    labels: dict[str, float] = {}
    height = 0.0
    for server, names in groups.items():
        labels[cut(server, _LABEL)] = height
        places |= {name: height + i for i, name in enumerate(names, start=1)}
        height += len(names) + 1.2
    return places, labels


def _short(names: Sequence[str]) -> list[str]:
    """Return the names of the traces of a server less what all of them begin with."""
    columns = zip(*names, strict=False) if len(names) > 1 else ()
    start = "".join(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))
    end = max(start.rfind(mark) for mark in "-_. ") + 1
    return [cut_start(one[end:] or one, 18) for one in names]


def _draw_intervals(ax: Axes, row: pd.Series, chosen: pd.DataFrame, at: dict[str, float], of: str) -> None:
    look: Any = {"color": style.GREEN, "alpha": 0.16, "linewidth": 0.0}
    ax.axvspan(row["unseen_lower"], row["unseen_upper"], label=f"a server not yet seen ({of})", **look)
    for kind, colour, offset, label in (
        ("alone", style.GREY, -_OFFSET, f"trace by itself ({of})"),
        ("pooled", style.BLUE, _OFFSET, f"with the others ({of})"),
    ):
        heights = [place + offset for place in at.values()]
        ends = chosen[f"{kind}_lower"], chosen[f"{kind}_upper"]
        ax.hlines(heights, *ends, color=colour, linewidth=2.2, label=label)
        ax.plot(chosen[kind], heights, "o", color=colour, markersize=2.6)
    low = min(row["unseen_lower"], chosen["alone_lower"].min())
    high = max(row["unseen_upper"], chosen["alone_upper"].max())
    ax.set_xlim(low / _PAD, high * _PAD)
    style.log_axis(ax.xaxis, sparse=high > _WIDE * low)
    unit = "" if row["unit"] == "1" else f" ({row['unit']})"
    ax.set_title(f"{row['coordinate']}{unit}")


@style.styled
def pool_latency(found: PoolSummary) -> Figure:
    """Draw mean latency against tokens for 1, 8 and 32 requests: pooled servers, and one not yet seen."""
    panels = list(found.curves.groupby("requests"))
    title = "Mean latency expected of a server not yet seen, beside the pooled servers"
    figure, axes = style.new_figure(title, height_in=7.6, rows=len(panels), sharex=True)
    for ax, (_, curves) in zip(axes[:, 0], panels, strict=True):
        _draw_curves(ax, found, curves)
        ax.set_title(counted(int(curves["requests"].iloc[0]), "request"))
        ax.set_ylabel("mean latency (ms)")
        style.log_axis(ax.yaxis)
    style.log_axis(axes[-1, 0].xaxis)
    axes[-1, 0].set_xlabel("tokens in the step, S")
    axes[0, 0].plot([], [], color=style.GREY, linewidth=0.7, label="thin: extrapolation")
    return style.figure_legend(figure, axes[0, 0], columns=1)


def _draw_curves(ax: Axes, found: PoolSummary, curves: pd.DataFrame) -> None:
    unseen = curves[curves["trace"] == UNSEEN]
    label = f"a server not yet seen: {100 * found.probability:g}% of such servers"
    tokens = unseen["total_tokens"]
    style.shade(ax, tokens, unseen["lower_ms"], unseen["upper_ms"], label, color=style.GREEN, alpha=0.16)
    ax.plot(tokens, unseen["median_ms"], color=style.GREEN, linewidth=1.2, label="its median")
    servers = list(found.population.servers)
    count = dict.fromkeys(servers, 0)
    for name, server in found.population.server_of_trace.items():
        curve = curves[curves["trace"] == name]
        line = _LINES[count[server] % len(_LINES)]
        look: Any = {"color": _TRACE_COLOURS[servers.index(server) % len(_TRACE_COLOURS)], "linestyle": line}
        count[server] += 1
        x, y = curve["total_tokens"], curve["median_ms"]
        ax.plot(x, y, linewidth=0.7, alpha=0.8, **look)
        ax.plot(x, y.where(~curve["extrapolation"]), linewidth=1.6, label=name, **look)
