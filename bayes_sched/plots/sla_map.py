"""The probability of keeping a limit over requests and tokens."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from bayes_sched.plots.maps import ORDER, X_LABEL, Y_LABEL, draw_veil, has_area, veil_handle
from bayes_sched.plots.style import INK, VERMILLION, new_figure, styled
from bayes_sched.sla import StepSLA
from bayes_sched.steps import steps_grid

LEVELS = (0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0)
"""Probabilities that the colours tell apart."""
_COLOURS = ("#4d1a00", "#a65628", "#e6a15c", "#cfe3f2", "#7fb8de", "#1f78b4")
_NUM_FINE = 160
_HEADROOM = 1.6


@styled
def promise_map(sla: StepSLA, risk: xr.Dataset) -> Figure:
    """Draw P(step <= SLO) over (B, S), and the frontiers of the promise and of a point estimate.

    How to read it: stay below the solid line. Between it and the dashed one lie the steps that a single
    fitted curve allows and that break the limit too often. Hatched parts are extrapolation. A step cannot
    hold fewer tokens than requests, so the lower right corner is empty.

    Parameters
    ----------
    sla : StepSLA
    risk : Dataset, dims (batch_size, total_tokens)
        :func:`bayes_sched.sla.risk.risk_map`.

    Returns
    -------
    Figure
    """
    objective = sla.objective
    figure, axes = new_figure(f"Share of steps within {objective.limit_ms:g} ms", height_in=4.9)
    ax = axes[0, 0]
    surface = risk["probability"].transpose(*ORDER)
    if has_area(ax, surface):
        _draw_probability(figure, ax, surface)
        fine = _fine_grid(surface)
        draw_veil(ax, fine, sla.fit.extrapolation(fine))
    _draw_frontiers(ax, sla)
    ax.set_ylim(1.0, _top(sla, float(risk["total_tokens"].max())))
    ax.set(xlabel=X_LABEL, ylabel=Y_LABEL)
    ax.grid(visible=False)
    handles, _ = ax.get_legend_handles_labels()
    figure.legend(handles=[*handles, veil_handle()], loc="outside lower left")
    return figure


def _top(sla: StepSLA, largest: float) -> float:
    """Return the tokens at which the map ends, not far beyond what a point estimate allows."""
    allowed = sla.frontier[["total_tokens", "point_tokens"]].max().max()
    return largest if pd.isna(allowed) else min(largest, _HEADROOM * float(allowed))


def _draw_probability(figure: Figure, ax: Axes, surface: xr.DataArray) -> None:
    filled = ax.contourf(
        surface["batch_size"],
        surface["total_tokens"],
        np.ma.masked_invalid(surface.to_numpy()),
        levels=LEVELS,
        cmap=ListedColormap(_COLOURS),
        norm=BoundaryNorm(LEVELS, len(_COLOURS)),
    )
    bar = figure.colorbar(filled, ax=ax, ticks=LEVELS, spacing="uniform", shrink=0.9, pad=0.02)
    bar.ax.set_yticklabels([f"{100 * level:g}%" for level in LEVELS])
    bar.set_label("P(step keeps the limit)")


def _fine_grid(surface: xr.DataArray) -> xr.Dataset:
    sizes, tokens = (
        np.linspace(1.0, float(surface[name].max()), _NUM_FINE) for name in ("batch_size", "total_tokens")
    )
    return steps_grid(batch_size=sizes, total_tokens=np.union1d(sizes, tokens))


def _draw_frontiers(ax: Axes, sla: StepSLA) -> None:
    table, objective = sla.frontier, sla.objective
    promised = table[table["total_tokens"].notna()]
    share = f"{100 * objective.quantile:g}% keep it, {100 * objective.confidence:g}% sure"
    ax.plot(
        promised["batch_size"].to_numpy(float),
        promised["total_tokens"].to_numpy(float),
        color=INK,
        marker="o",
        markersize=3.0,
        label=f"may be promised ({share})",
    )
    wrong = promised[promised["is_contradicted"].fillna(False).astype(bool)]
    ax.plot(
        wrong["batch_size"].to_numpy(float),
        wrong["total_tokens"].to_numpy(float),
        "X",
        color=VERMILLION,
        markersize=6.0,
        label="contradicted by the trace" if len(wrong) else None,
    )
    at_edge = promised[promised["limited_by"] != "slo"]
    ax.plot(
        at_edge["batch_size"].to_numpy(float),
        at_edge["total_tokens"].to_numpy(float),
        "o",
        color=INK,
        markerfacecolor="white",
        markersize=4.5,
        label="the same, limited by the data alone" if len(at_edge) else None,
    )
    point = table[table["point_tokens"].notna()]
    ax.plot(
        point["batch_size"].to_numpy(float),
        point["point_tokens"].to_numpy(float),
        color=INK,
        linestyle="--",
        label="a point estimate would allow",
    )
