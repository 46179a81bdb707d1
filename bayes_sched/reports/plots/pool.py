"""The mean latency that a server not yet seen is expected to have, beside those of the pooled ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayes_sched.arrays import Floats
from bayes_sched.pooling.pool import Pool
from bayes_sched.reports.plots.style import (
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    figure_legend,
    log_axis,
    new_figure,
    styled,
)
from bayes_sched.steps import log_grid, steps_arrays

_COLUMNS = 2
_WIDE = 50.0  # ratio of the ends of an axis from which only powers of ten are written
_OFFSET = 0.17
_PAD = 1.15
_LABEL = 34  # characters of a server's name that a panel has room for


@styled
def pool_shrinkage(changes: pd.DataFrame, spread: pd.DataFrame, *, probability: float) -> Figure:
    """Draw the interval of each coordinate of each trace, alone and pooled, and that of an unseen server.

    How to read it: grey is what a trace says by itself, blue what is known with the others' help. Blue
    shorter than grey: pooling helped. The green band is where a server not yet seen is expected.

    Parameters
    ----------
    changes : DataFrame
        Of :func:`bayes_sched.pooling.spread.change_table`.
    spread : DataFrame
        Of :func:`bayes_sched.pooling.spread.spread_table`.
    probability : float
        Of the intervals, for the legend.

    Returns
    -------
    Figure
    """
    traces = changes.drop_duplicates("trace")[["trace", "server"]].sort_values(
        "server",
        key=lambda servers: servers.map({s: i for i, s in enumerate(servers.unique())}),
        kind="stable",
    )
    rows = -(-len(spread) // _COLUMNS)
    places, labels = _rows(traces)
    figure, axes = new_figure(
        "What each trace says alone, and with the others",
        height_in=0.9 + rows * (0.75 + 0.17 * len(places)),
        rows=rows,
        columns=_COLUMNS,
        sharey=True,
    )
    for ax, (_, row) in zip(axes.flat, spread.iterrows(), strict=False):
        chosen = changes[changes["coordinate"] == row["coordinate"]].set_index("trace")
        _draw_intervals(ax, row, chosen, places, f"{100 * probability:g}%")
    for ax in axes.flat[len(spread) :]:
        ax.set_visible(False)
    bottom = max([*places.values(), *labels.values()]) + 0.6
    first = axes[0, 0]
    first.set_ylim(bottom, -0.7)
    first.set_yticks(list(places.values()), _short(traces))
    for ax in axes.flat:
        ax.tick_params(axis="y", length=0, labelsize=7.0)
        ax.grid(axis="y", visible=False)
        for server, height in labels.items():
            ax.text(0.015, height, server, transform=ax.get_yaxis_transform(), fontsize=6.5, va="center")
    figure_legend(figure, first, columns=1)
    return figure


def _rows(traces: pd.DataFrame) -> tuple[dict[str, float], dict[str, float]]:
    """Return the height of each trace, and that of the name of each server above its traces."""
    places: dict[str, float] = {}
    labels: dict[str, float] = {}
    height = 0.0
    for server, group in traces.groupby("server", sort=False):
        labels[str(server) if len(str(server)) <= _LABEL else f"{str(server)[: _LABEL - 1]}…"] = height
        for name in group["trace"]:
            height += 1.0
            places[str(name)] = height
        height += 1.2
    return places, labels


def _short(traces: pd.DataFrame) -> list[str]:
    """Return the names of the traces less what those of one server begin with."""
    found = []
    for _, group in traces.groupby("server", sort=False):
        found += _less_start([str(name) for name in group["trace"]])
    return [name if len(name) <= 18 else f"…{name[-17:]}" for name in found]


def _less_start(names: Sequence[str]) -> list[str]:
    columns = zip(*names, strict=False) if len(names) > 1 else ()
    start = "".join(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))
    cut = max(start.rfind(mark) for mark in "-_. ") + 1
    return [name[cut:] or name for name in names]


def _draw_intervals(
    ax: Axes, row: pd.Series, chosen: pd.DataFrame, places: dict[str, float], share: str
) -> None:
    ax.axvspan(
        row["unseen_lower"],
        row["unseen_upper"],
        color=GREEN,
        alpha=0.16,
        linewidth=0.0,
        label=f"a server not yet seen ({share})",
    )
    for kind, colour, offset, label in (
        ("alone", GREY, -_OFFSET, f"trace by itself ({share})"),
        ("pooled", BLUE, _OFFSET, f"with the others ({share})"),
    ):
        part = chosen.loc[list(places)]
        heights = [place + offset for place in places.values()]
        ax.hlines(
            heights, part[f"{kind}_lower"], part[f"{kind}_upper"], color=colour, linewidth=2.2, label=label
        )
        ax.plot(part[kind], heights, "o", color=colour, markersize=2.6)
    low = min(row["unseen_lower"], chosen["alone_lower"].min())
    high = max(row["unseen_upper"], chosen["alone_upper"].max())
    ax.set_xlim(low / _PAD, high * _PAD)
    log_axis(ax.xaxis, sparse=high > _WIDE * low)
    unit = "" if row["unit"] == "1" else f" ({row['unit']})"
    ax.set_title(f"{row['coordinate']}{unit}")


REQUESTS = (1, 8, 32)
_NUM_GRID = 50
_LINES = ("-", "--", "-.", ":")
_COLOURS = tuple(colour for colour in CYCLE if colour != GREEN)


@styled
def pool_latency(pool: Pool, *, probability: float) -> Figure:
    """Draw mean latency against tokens for 1, 8 and 32 requests: pooled servers, and one not yet seen.

    How to read it: a server not yet seen has its mean latency in the band with the given probability. A thin
    line is extrapolation: the trace holds no such steps.

    Parameters
    ----------
    pool : Pool
    probability : float
        Of the band.

    Returns
    -------
    Figure
    """
    figure, axes = new_figure(
        "Mean latency expected of a server not yet seen, beside the pooled servers",
        height_in=7.6,
        rows=len(REQUESTS),
        sharex=True,
    )
    cells = pool.unseen.cells
    most = float(cells["total_tokens"].max())
    for ax, requests in zip(axes[:, 0], REQUESTS, strict=True):
        tokens = log_grid(float(requests), max(most, 2.0 * requests), _NUM_GRID)
        _draw_pooled_latency(ax, pool, requests, tokens, probability)
        ax.set_title(f"{requests} request{'' if requests == 1 else 's'}")
        ax.set_ylabel("mean latency (ms)")
        log_axis(ax.yaxis)
    log_axis(axes[-1, 0].xaxis)
    axes[-1, 0].set_xlabel("tokens in the step, S")
    axes[0, 0].plot([], [], color=GREY, linewidth=0.7, label="thin: extrapolation")
    figure_legend(figure, axes[0, 0], columns=1)
    return figure


def _draw_pooled_latency(ax: Axes, pool: Pool, requests: int, tokens: Floats, probability: float) -> None:
    completing = next(iter(pool.alone.values()))
    steps = completing.completed(steps_arrays(float(requests), tokens))
    band = pool.unseen.mean_band(steps, probability=probability)
    ax.fill_between(
        tokens,
        band["lower"],
        band["upper"],
        color=GREEN,
        alpha=0.16,
        linewidth=0.0,
        label=f"a server not yet seen: {100 * probability:g}% of such servers",
    )
    ax.plot(tokens, band["median"], color=GREEN, linewidth=1.2, label="its median")
    servers = list(pool.population.servers)
    count = dict.fromkeys(servers, 0)
    for name, fit in pool.pooled.items():
        server = pool.population.server_of_trace[name]
        colour = _COLOURS[servers.index(server) % len(_COLOURS)]
        line = _LINES[count[server] % len(_LINES)]
        count[server] += 1
        mean = fit.mean_band(steps, probability=probability)
        is_seen = ~np.asarray(mean["extrapolation"])
        ax.plot(tokens, mean["median"], color=colour, linestyle=line, linewidth=0.7, alpha=0.8)
        ax.plot(
            tokens, mean["median"].where(is_seen), color=colour, linestyle=line, linewidth=1.6, label=name
        )
