"""Maps over requests and tokens of how two servers compare: ratios of latencies, and probabilities."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bayes_sched.comparison import Comparison
from bayes_sched.comparison.shared_grid import cell_table
from bayes_sched.comparison.verdicts import UNDECIDED, rope_bounds
from bayes_sched.plots.points import Floats, sample_steps
from bayes_sched.plots.style import INK, VEIL, label_outer, log_axis, new_figure, styled
from bayes_sched.steps import POSSIBLE, steps_grid

MAX_PAIRS = 3
"""A figure shows so many pairs of servers; the tables hold all."""
_NUM_FINE = 140
_COLOURS = "PuOr_r"
_PROBABILITIES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_ORDER = ("total_tokens", "batch_size")


@styled
def ratio_map(comparison: Comparison) -> Figure:
    """Draw the ratio of mean latencies over (B, S), a panel a pair of servers.

    How to read it: purple, the first server is faster; orange, slower. Lines bound the region of practical
    equivalence. Crosses: undecided. Dots: steps that a trace holds; far from them the equation fills in.
    Hatched: outside of what one of the traces covers. The lower right corner is empty, as a step has no fewer
    tokens than requests.

    Parameters
    ----------
    comparison : Comparison

    Returns
    -------
    Figure
    """
    pairs = comparison.maps["pair"].to_numpy()[:MAX_PAIRS]
    figure, axes = new_figure(
        "Ratio of mean latencies by requests and tokens",
        height_in=1.7 + 2.9 * len(pairs),
        rows=len(pairs),
        sharex=True,
    )
    ratios = comparison.maps["ratio_median"].transpose("pair", *_ORDER)
    covered = ratios.sel(pair=pairs).where(~comparison.grid["extrapolation"])
    levels = _ratio_levels(covered.to_numpy(), comparison.rope)
    norm = BoundaryNorm(levels, 256)
    drawn: ContourSet | None = None
    for ax, pair in zip(axes[:, 0], pairs, strict=True):
        one = comparison.maps.sel(pair=pair)
        drawn = _surface(ax, ratios.sel(pair=pair), levels, norm)
        _veil(ax, comparison)
        _draw_cells(ax, comparison)
        is_open = (one["verdict"] == UNDECIDED) & ~comparison.grid["extrapolation"]
        points = is_open.transpose(*_ORDER).to_numpy().nonzero()
        ax.scatter(
            comparison.grid["batch_size"].to_numpy()[points[1]],
            comparison.grid["total_tokens"].to_numpy()[points[0]],
            marker="x",
            s=12.0,
            color=INK,
            linewidths=0.8,
        )
        ax.set_title(f"{one['first'].item()}\nover {one['second'].item()}")
    if drawn is not None:
        bar = figure.colorbar(
            drawn,
            ax=axes[:, 0].tolist(),
            location="bottom",
            label="ratio of mean latencies",
            ticks=levels,
            aspect=30,
        )
        bar.ax.set_xticklabels([f"{level:.2f}" for level in levels])
    label_outer(axes, xlabel="requests in the step, B", ylabel="tokens in the step, S")
    handles = [
        Patch(facecolor=VEIL, hatch="////", linewidth=0.0, label="extrapolation"),
        Line2D([], [], marker="x", linestyle="", color=INK, markersize=4.0, label="undecided"),
        Line2D([], [], marker=".", linestyle="", color="black", markersize=2.5, label="step of a trace"),
        Patch(facecolor="#f7f7f7", edgecolor=INK, linewidth=0.6, label="equivalent"),
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=2)
    return figure


@styled
def probability_map(comparison: Comparison) -> Figure:
    """Draw the probabilities that one server is faster, on average and in a single step.

    How to read it: purple, the first server is likely faster; orange, the second; white, who knows. Left what
    is known of the averages, which more data sharpen; right what a single step will do, noise included, which
    no data sharpen beyond the noise. Hatched: extrapolation.

    Parameters
    ----------
    comparison : Comparison

    Returns
    -------
    Figure
    """
    pairs = comparison.maps["pair"].to_numpy()[:MAX_PAIRS]
    figure, axes = new_figure(
        "Probability that one server is faster, on average and in a single step",
        height_in=1.4 + 2.4 * len(pairs),
        rows=len(pairs),
        columns=2,
        sharex=True,
        sharey=True,
    )
    norm = BoundaryNorm(_PROBABILITIES, 256)
    titles = {"p_faster": "on average", "p_step_faster": "in a single step"}
    drawn: ContourSet | None = None
    for row, pair in zip(axes, pairs, strict=True):
        one = comparison.maps.sel(pair=pair)
        for ax, (name, title) in zip(row, titles.items(), strict=True):
            surface = 1.0 - one[name].transpose(*_ORDER)  # the colours run as those of the ratio
            drawn = _surface(ax, surface, np.array(_PROBABILITIES), norm)
            _veil(ax, comparison)
            ax.set_title(f"{one['first'].item()} faster\n{title}")
    if drawn is not None:
        bar = figure.colorbar(
            drawn, ax=axes.ravel().tolist(), location="bottom", label="probability", ticks=_PROBABILITIES
        )
        bar.ax.set_xticklabels([f"{1.0 - p:g}" for p in _PROBABILITIES])
        bar.ax.invert_xaxis()
    label_outer(axes, xlabel="requests in the step, B", ylabel="tokens in the step, S")
    return figure


def _surface(ax: Axes, surface: xr.DataArray, levels: Floats, norm: BoundaryNorm) -> ContourSet | None:
    """Fill a map, dims (total_tokens, batch_size); None where the grid has one B or S only."""
    log_axis(ax.xaxis)
    log_axis(ax.yaxis)
    if min(surface.shape) < 2:
        ax.text(0.5, 0.5, "the traces hold one B or one S only", transform=ax.transAxes, ha="center")
        return None
    x, y, z = surface["batch_size"].to_numpy(), surface["total_tokens"].to_numpy(), surface.to_numpy()
    inside = np.clip(z, levels[0], levels[-1])
    drawn = ax.contourf(x, y, inside, levels=levels, norm=norm, cmap=_COLOURS)
    ax.contour(x, y, inside, levels=levels[1:-1], colors=INK, linewidths=0.4)
    return drawn


def _veil(ax: Axes, comparison: Comparison) -> None:
    """Hatch where at least one trace holds no such steps."""
    grid = comparison.grid
    axes = {
        name: np.geomspace(float(grid[name].min()), float(grid[name].max()), _NUM_FINE)
        for name in ("batch_size", "total_tokens")
    }
    if any(grid.sizes[name] < 2 for name in axes):
        return
    fine = steps_grid(batch_size=axes["batch_size"], total_tokens=axes["total_tokens"])
    is_hidden = (~comparison.servers.in_regions(fine).all("gpu")).transpose(*_ORDER)
    hidden = is_hidden.astype(float).where(fine[POSSIBLE].transpose(*_ORDER))
    if not bool((hidden > 0.5).any()):
        return
    veil = ax.contourf(
        hidden["batch_size"],
        hidden["total_tokens"],
        hidden,
        levels=[0.5, 1.5],
        colors=[VEIL],
        alpha=0.6,
        hatches=["////"],
    )
    veil.set_linewidth(0.0)


def _draw_cells(ax: Axes, comparison: Comparison) -> None:
    """Dot the (B, S) that any of the traces holds."""
    tables = [cell_table(member.fit) for member in comparison.members]
    cells = pd.concat(tables)[["batch_size", "total_tokens"]].drop_duplicates()
    shown = sample_steps(cells, 1500)
    ax.scatter(
        shown["batch_size"],
        shown["total_tokens"],
        s=1.5,
        color="black",
        alpha=0.6,
        linewidths=0,
        rasterized=True,
    )


def _ratio_levels(ratios: Floats, rope: float) -> Floats:
    """Return levels symmetric on a logarithmic scale, the ends of the region of equivalence among them."""
    reach = float(np.nanmax(np.abs(np.log(ratios))))
    _, high = rope_bounds(max(rope, 0.01))
    steps = [high, *(value for value in (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0) if value > 1.03 * high)]
    above = [value for value in steps if np.log(value) < reach]
    above.append(steps[min(len(above), len(steps) - 1)])
    upper = np.unique(above)
    return np.concatenate([1.0 / upper[::-1], upper])
