"""A pool of servers: what each trace says alone and pooled, and what to expect of a server not yet seen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayes_sched.files import UNSEEN
from bayes_sched.pooling.summary import PoolSummary
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
from bayes_sched.reports.terminal import cut

_COLUMNS = 2
_WIDE = 50.0  # ratio of the ends of an axis from which only powers of ten are written
_OFFSET = 0.17
_PAD = 1.15
_LABEL = 34  # characters of a server's name that a panel has room for
_LINES = ("-", "--", "-.", ":")
_COLOURS = tuple(colour for colour in CYCLE if colour != GREEN)


@styled
def pool_shrinkage(found: PoolSummary) -> Figure:
    """Draw the interval of each coordinate of each trace, alone and pooled, and that of an unseen server.

    How to read it: grey is what a trace says by itself, blue what is known with the others' help. Blue
    shorter than grey: pooling helped. The green band is where a server not yet seen is expected.
    """
    spread, changes = found.spread, found.changes
    traces = changes.drop_duplicates("trace")[["trace", "server"]]
    groups = {str(s): traces.loc[traces["server"] == s, "trace"].tolist() for s in traces["server"].unique()}
    places, labels = _rows(groups)
    rows = -(-len(spread) // _COLUMNS)
    figure, axes = new_figure(
        "What each trace says alone, and with the others",
        height_in=0.9 + rows * (0.75 + 0.17 * len(places)),
        rows=rows,
        columns=_COLUMNS,
        sharey=True,
    )
    for ax, (_, row) in zip(axes.flat, spread.iterrows(), strict=False):
        chosen = changes[changes["coordinate"] == row["coordinate"]].set_index("trace")
        _draw_intervals(ax, row, chosen.loc[list(places)], places, f"{100 * found.probability:g}%")
    for ax in axes.flat[len(spread) :]:
        ax.set_visible(False)
    first = axes[0, 0]
    first.set_ylim(max([*places.values(), *labels.values()]) + 0.6, -0.7)
    first.set_yticks(list(places.values()), [name for group in groups.values() for name in _short(group)])
    for ax in axes.flat:
        ax.tick_params(axis="y", length=0, labelsize=7.0)
        ax.grid(axis="y", visible=False)
        for server, height in labels.items():
            ax.text(0.015, height, server, transform=ax.get_yaxis_transform(), fontsize=6.5, va="center")
    figure_legend(figure, first, columns=1)
    return figure


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
    return [name if len(name) <= 18 else f"…{name[-17:]}" for name in (one[end:] or one for one in names)]


def _draw_intervals(
    ax: Axes, row: pd.Series, chosen: pd.DataFrame, places: dict[str, float], share: str
) -> None:
    unseen = f"a server not yet seen ({share})"
    ax.axvspan(row["unseen_lower"], row["unseen_upper"], color=GREEN, alpha=0.16, linewidth=0.0, label=unseen)
    for kind, colour, offset, label in (
        ("alone", GREY, -_OFFSET, f"trace by itself ({share})"),
        ("pooled", BLUE, _OFFSET, f"with the others ({share})"),
    ):
        heights = [place + offset for place in places.values()]
        ends = chosen[f"{kind}_lower"], chosen[f"{kind}_upper"]
        ax.hlines(heights, *ends, color=colour, linewidth=2.2, label=label)
        ax.plot(chosen[kind], heights, "o", color=colour, markersize=2.6)
    low = min(row["unseen_lower"], chosen["alone_lower"].min())
    high = max(row["unseen_upper"], chosen["alone_upper"].max())
    ax.set_xlim(low / _PAD, high * _PAD)
    log_axis(ax.xaxis, sparse=high > _WIDE * low)
    unit = "" if row["unit"] == "1" else f" ({row['unit']})"
    ax.set_title(f"{row['coordinate']}{unit}")


@styled
def pool_latency(found: PoolSummary) -> Figure:
    """Draw mean latency against tokens for 1, 8 and 32 requests: pooled servers, and one not yet seen.

    How to read it: a server not yet seen has its mean latency in the band with the given probability. A thin
    line is extrapolation: the trace holds no such steps.
    """
    panels = list(found.curves.groupby("requests"))
    figure, axes = new_figure(
        "Mean latency expected of a server not yet seen, beside the pooled servers",
        height_in=7.6,
        rows=len(panels),
        sharex=True,
    )
    for ax, (requests, curves) in zip(axes[:, 0], panels, strict=True):
        _draw_curves(ax, found, curves)
        ax.set_title(f"{requests} request{'' if requests == 1 else 's'}")
        ax.set_ylabel("mean latency (ms)")
        log_axis(ax.yaxis)
    log_axis(axes[-1, 0].xaxis)
    axes[-1, 0].set_xlabel("tokens in the step, S")
    axes[0, 0].plot([], [], color=GREY, linewidth=0.7, label="thin: extrapolation")
    figure_legend(figure, axes[0, 0], columns=1)
    return figure


def _draw_curves(ax: Axes, found: PoolSummary, curves: pd.DataFrame) -> None:
    unseen = curves[curves["trace"] == UNSEEN]
    label = f"a server not yet seen: {100 * found.probability:g}% of such servers"
    ends = unseen["lower_ms"], unseen["upper_ms"]
    ax.fill_between(unseen["total_tokens"], *ends, color=GREEN, alpha=0.16, linewidth=0.0, label=label)
    ax.plot(unseen["total_tokens"], unseen["median_ms"], color=GREEN, linewidth=1.2, label="its median")
    servers = list(found.population.servers)
    count = dict.fromkeys(servers, 0)
    for name, server in found.population.server_of_trace.items():
        curve = curves[curves["trace"] == name]
        style = {
            "color": _COLOURS[servers.index(server) % len(_COLOURS)],
            "linestyle": _LINES[count[server] % len(_LINES)],
        }
        count[server] += 1
        x, y = curve["total_tokens"], curve["median_ms"]
        ax.plot(x, y, linewidth=0.7, alpha=0.8, **style)  # type: ignore[arg-type]
        ax.plot(x, y.where(~curve["extrapolation"]), linewidth=1.6, label=name, **style)  # type: ignore[arg-type]
