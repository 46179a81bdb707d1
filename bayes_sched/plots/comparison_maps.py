"""Maps over requests and tokens of how two servers compare: ratios of latencies, and probabilities."""

from __future__ import annotations

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

from bayes_sched.comparison import Comparison
from bayes_sched.comparison.shared_grid import cell_table
from bayes_sched.comparison.verdicts import UNDECIDED, rope_bounds
from bayes_sched.plots.maps import (
    ORDER,
    X_LABEL,
    Y_LABEL,
    draw_seen,
    draw_veil,
    has_area,
    log_axes,
    veil_handle,
)
from bayes_sched.plots.points import Floats
from bayes_sched.plots.style import INK, AxesGrid, label_outer, new_figure, styled
from bayes_sched.steps import steps_grid

MAX_PAIRS = 3
"""A figure shows so many pairs of servers; the tables hold all."""
_NUM_FINE = 140
_COLOURS = "PuOr_r"
_PROBABILITIES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


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
    pairs, figure, axes = _new_maps(
        comparison, "Ratio of mean latencies by requests and tokens", head_in=1.7, panel_in=2.9
    )
    is_covered = ~comparison.grid["extrapolation"]
    covered = [one["ratio_median"].where(is_covered).to_numpy() for one in pairs]
    levels = _ratio_levels(np.concatenate(covered), comparison.rope)
    fine, cells = _fine_grid(comparison), _cells(comparison)
    drawn: ContourSet | None = None
    for ax, one in zip(axes[:, 0], pairs, strict=True):
        drawn = _surface(ax, one["ratio_median"], levels)
        draw_veil(ax, fine, fine["is_extrapolation"])
        draw_seen(ax, cells)
        _cross(ax, (one["verdict"] == UNDECIDED) & is_covered)
        ax.set_title(f"{one['first'].item()}\nover {one['second'].item()}")
    if drawn is not None:
        texts = [f"{level:.2f}" for level in levels]
        _bar(figure, axes, drawn, "ratio of mean latencies", texts, aspect=30)
    handles = [
        veil_handle("extrapolation"),
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
    pairs, figure, axes = _new_maps(
        comparison,
        "Probability that one server is faster, on average and in a single step",
        head_in=1.4,
        panel_in=2.4,
        columns=2,
    )
    titles = {"p_faster": "on average", "p_step_faster": "in a single step"}
    fine = _fine_grid(comparison)
    drawn: ContourSet | None = None
    for row, one in zip(axes, pairs, strict=True):
        for ax, (name, title) in zip(row, titles.items(), strict=True):
            # One less the probability: the colours run as those of the ratio.
            drawn = _surface(ax, 1.0 - one[name], np.array(_PROBABILITIES))
            draw_veil(ax, fine, fine["is_extrapolation"])
            ax.set_title(f"{one['first'].item()} faster\n{title}")
    if drawn is not None:
        bar = _bar(figure, axes, drawn, "probability", [f"{1.0 - p:g}" for p in _PROBABILITIES])
        bar.ax.invert_xaxis()
    return figure


def _new_maps(
    comparison: Comparison, title: str, *, head_in: float, panel_in: float, columns: int = 1
) -> tuple[list[xr.Dataset], Figure, AxesGrid]:
    """Return the maps of the pairs that a figure shows, and a figure with a row of axes for each."""
    names = comparison.maps["pair"].to_numpy()[:MAX_PAIRS]
    figure, axes = new_figure(
        title,
        height_in=head_in + panel_in * len(names),
        rows=len(names),
        columns=columns,
        sharex=True,
        sharey=columns > 1,
    )
    label_outer(axes, xlabel=X_LABEL, ylabel=Y_LABEL)
    return [comparison.maps.sel(pair=name) for name in names], figure, axes


def _bar(
    figure: Figure,
    axes: AxesGrid,
    drawn: ContourSet,
    label: str,
    texts: list[str],
    *,
    aspect: float = 20,
) -> Colorbar:
    """Add the colours' bar under the maps, `texts` at the levels."""
    bar = figure.colorbar(
        drawn, ax=axes.ravel().tolist(), location="bottom", label=label, ticks=drawn.levels, aspect=aspect
    )
    bar.ax.set_xticklabels(texts)
    return bar


def _surface(ax: Axes, values: xr.DataArray, levels: Floats) -> ContourSet | None:
    """Fill a map, dims (batch_size, total_tokens); None where the grid has one B or S only."""
    surface = values.transpose(*ORDER)
    log_axes(ax)
    if not has_area(ax, surface, whose="the traces hold"):
        return None
    x, y, z = surface["batch_size"].to_numpy(), surface["total_tokens"].to_numpy(), surface.to_numpy()
    inside = np.clip(z, levels[0], levels[-1])
    drawn = ax.contourf(x, y, inside, levels=levels, norm=BoundaryNorm(levels, 256), cmap=_COLOURS)
    ax.contour(x, y, inside, levels=levels[1:-1], colors=INK, linewidths=0.4)
    return drawn


def _fine_grid(comparison: Comparison) -> xr.Dataset:
    """Return a fine grid, and ``is_extrapolation``: where at least one trace holds no such steps."""
    batch_size, total_tokens = (
        np.geomspace(float(comparison.grid[name].min()), float(comparison.grid[name].max()), _NUM_FINE)
        for name in ("batch_size", "total_tokens")
    )
    fine = steps_grid(batch_size=batch_size, total_tokens=total_tokens)
    return fine.assign(is_extrapolation=~comparison.servers.in_regions(fine).all("gpu"))


def _cells(comparison: Comparison) -> pd.DataFrame:
    """Return the (B, S) that any of the traces holds, in the order of the servers."""
    return pd.concat([cell_table(member.fit) for member in comparison.members])


def _cross(ax: Axes, is_marked: xr.DataArray) -> None:
    """Mark points of the grid."""
    tokens, sizes = is_marked.transpose(*ORDER).to_numpy().nonzero()
    ax.scatter(
        is_marked["batch_size"].to_numpy()[sizes],
        is_marked["total_tokens"].to_numpy()[tokens],
        marker="x",
        s=12.0,
        color=INK,
        linewidths=0.8,
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
