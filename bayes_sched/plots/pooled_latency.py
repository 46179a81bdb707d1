"""The mean latency that a server not yet seen is expected to have, beside those of the pooled ones."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayes_sched.plots.points import Floats, log_grid
from bayes_sched.plots.style import CYCLE, GREEN, GREY, figure_legend, log_axis, new_figure, styled
from bayes_sched.pooling import Pool
from bayes_sched.steps import steps_arrays

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
        _draw(ax, pool, requests, tokens, probability)
        ax.set_title(f"{requests} request{'' if requests == 1 else 's'}")
        ax.set_ylabel("mean latency (ms)")
        log_axis(ax.yaxis)
    log_axis(axes[-1, 0].xaxis)
    axes[-1, 0].set_xlabel("tokens in the step, S")
    axes[0, 0].plot([], [], color=GREY, linewidth=0.7, label="thin: extrapolation")
    figure_legend(figure, axes[0, 0], columns=1)
    return figure


def _draw(ax: Axes, pool: Pool, requests: int, tokens: Floats, probability: float) -> None:
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
