"""Limits that may be promised: the map and the decode-only batches of steps, the times of requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from bayes_sched.reports.plots.style import (
    BLUE,
    GREEN,
    INK,
    ORDER,
    SKY,
    VERMILLION,
    X_LABEL,
    Y_LABEL,
    draw_veil,
    figure_legend,
    has_area,
    hatch_extrapolation,
    new_figure,
    percent_axis,
    styled,
    veil_handle,
)
from bayes_sched.sla.request import RequestSLA, RequestTime
from bayes_sched.sla.steps import RiskMaps, StepSLA

LEVELS = (0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0)
"""Probabilities that the colours tell apart."""

_COLOURS = ("#4d1a00", "#a65628", "#e6a15c", "#cfe3f2", "#7fb8de", "#1f78b4")
_HEADROOM = 1.6
_LEAST_DECODE = 1e-5  # of risk: rarer events than that no trace shows
_LEAST_REQUEST = 2e-3


@styled
def decode_promise(sla: StepSLA, maps: RiskMaps) -> Figure:
    """Draw, for decode-only batches, the share of steps beyond the limit, and how sure one may be of it.

    How to read it: above is what steps do, with the credible band of what we know; below is the probability
    that at most the allowed share is late. The promise ends where the lower curve falls below its line.
    """
    figure, axes = new_figure(
        f"Decode-only batches and a limit of {sla.objective.limit_ms:g} ms",
        height_in=4.9,
        rows=2,
        sharex=True,
    )
    table = maps.decode_only.to_dataframe().sort_values("batch_size")
    _draw_risk(axes[0, 0], sla, table)
    _draw_confidence(axes[1, 0], sla, table)
    for ax in axes[:, 0]:
        _draw_caps(ax, sla)
        hatch_extrapolation(
            ax, table["batch_size"], table["extrapolation"], label="no such steps in the trace"
        )
    axes[1, 0].set_xlabel("requests in the step, B = S")
    axes[1, 0].set_xlim(float(table["batch_size"].min()), max(2.0, float(table["batch_size"].max())))
    figure_legend(figure, axes[0, 0])
    return figure


def _draw_risk(ax: Axes, sla: StepSLA, table: pd.DataFrame) -> None:
    def late(name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.maximum(1.0 - table[name].to_numpy(float), _LEAST_DECODE)

    band: Any = {"color": SKY, "alpha": 0.5, "linewidth": 0, "label": f"{100 * sla.probability:g}% credible"}
    ax.fill_between(table["batch_size"], late("upper"), late("lower"), **band)
    ax.plot(table["batch_size"], late("probability"), color=BLUE, label="steps that take longer")
    if late("probability").max() <= _LEAST_DECODE:
        ax.annotate(
            f"below {100 * _LEAST_DECODE:g}% everywhere", (0.3, 0.06), xycoords="axes fraction", fontsize=8.0
        )
    allowed = 1.0 - sla.objective.quantile
    ax.axhline(allowed, color=INK, linewidth=0.9, linestyle=":", label=f"allowed: {100 * allowed:.4g}%")
    ax.set_yscale("log")
    ax.set_ylim(_LEAST_DECODE, 1.3)
    percent_axis(ax.yaxis)
    ax.set(ylabel="share beyond the limit", title="Risk: what a step does")


def _draw_confidence(ax: Axes, sla: StepSLA, table: pd.DataFrame) -> None:
    ax.plot(table["batch_size"], table["confidence"], color=BLUE)
    ax.axhline(sla.objective.confidence, color=INK, linewidth=0.9, linestyle=":")
    ax.set_ylim(-0.03, 1.05)
    percent_axis(ax.yaxis)
    share = f"{100 * sla.objective.quantile:g}%"
    ax.set(ylabel="confidence", title=f"Confidence: how sure that {share} of such steps keep it")


def _draw_caps(ax: Axes, sla: StepSLA) -> None:
    limit = sla.decode_only
    if limit.promised is not None:
        ax.axvline(limit.promised.number, color=GREEN, label=f"may be promised: {limit.promised.number:,}")
    if limit.point is not None:
        label = f"a point estimate allows {limit.point.number:,}"
        ax.axvline(limit.point.number, color=VERMILLION, linestyle="--", label=label)


@styled
def promise_map(sla: StepSLA, maps: RiskMaps) -> Figure:
    """Draw P(step <= SLO) over (B, S), and the frontiers of the promise and of a point estimate.

    How to read it: stay below the solid line. Between it and the dashed one lie the steps that a single
    fitted curve allows and that break the limit too often. Hatched parts are extrapolation. A step cannot
    hold fewer tokens than requests, so the lower right corner is empty.
    """
    objective = sla.objective
    figure, axes = new_figure(f"Share of steps within {objective.limit_ms:g} ms", height_in=4.9)
    ax = axes[0, 0]
    surface = maps.surface["probability"].transpose(*ORDER)
    if has_area(ax, surface):
        _draw_probability(figure, ax, surface)
        draw_veil(ax, maps.veil, maps.veil["extrapolation"])
    _draw_frontiers(ax, sla)
    ax.set_ylim(1.0, _top(sla, float(surface["total_tokens"].max())))
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


def _draw_frontiers(ax: Axes, sla: StepSLA) -> None:
    table, objective = sla.frontier, sla.objective
    promised = table[table["total_tokens"].notna()]
    wrong = promised[promised["is_contradicted"].fillna(False).astype(bool)]
    at_edge = promised[promised["limited_by"] != "slo"]
    share = f"{100 * objective.quantile:g}% keep it, {100 * objective.confidence:g}% sure"

    def draw(rows: pd.DataFrame, label: str | None, *, name: str = "total_tokens", **style: Any) -> None:
        b, s = (rows[column].to_numpy(float) for column in ("batch_size", name))
        ax.plot(b, s, label=label, **{"color": INK, **style})

    draw(promised, f"may be promised ({share})", marker="o", markersize=3.0)
    cross: Any = {"color": VERMILLION, "marker": "X", "linestyle": "", "markersize": 6.0}
    draw(wrong, "contradicted by the trace" if len(wrong) else None, **cross)
    hollow: Any = {"marker": "o", "linestyle": "", "markerfacecolor": "white", "markersize": 4.5}
    draw(at_edge, "the same, limited by the data alone" if len(at_edge) else None, **hollow)
    point = table[table["point_tokens"].notna()]
    draw(point, "a point estimate would allow", name="point_tokens", linestyle="--")


@styled
def request_survival(sla: RequestSLA, survival: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the share of the requests that take longer, for each time that can be told.

    How to read it: follow a time up to the curve. The band is what we do not know of the server; the slope of
    the curve is what requests do, whatever we know.
    """
    rows = len(sla.times)
    figure, axes = new_figure("How long a request takes", height_in=1.0 + 1.9 * rows, rows=rows)
    for ax, time in zip(axes[:, 0], sla.times, strict=True):
        _draw(ax, time, survival[time.key])
    figure_legend(figure, axes[0, 0])
    return figure


def _draw(ax: Axes, time: RequestTime, survival: pd.DataFrame) -> None:
    places = survival["time_ms"].to_numpy()
    late, lower, upper = (
        np.maximum(survival[name].to_numpy(), _LEAST_REQUEST / 10) for name in ("late", "lower", "upper")
    )
    ax.fill_between(
        places, lower, upper, color=SKY, alpha=0.5, linewidth=0, label=f"{100 * time.interval:g}% credible"
    )
    ax.plot(places, late, color=BLUE, label="requests that take longer")
    allowed = 1.0 - time.quantile
    ax.axhline(allowed, color=INK, linewidth=0.9, linestyle=":", label=f"allowed: {100 * allowed:.4g}%")
    if time.limit_ms is not None:
        ax.axvline(time.limit_ms, color=VERMILLION, linestyle="--", label="limit")
    ax.set_yscale("log")
    ax.set_ylim(min(_LEAST_REQUEST, allowed / 3.0), 1.3)
    ax.set_xlim(places[0], places[-1])
    percent_axis(ax.yaxis)
    ax.set(xlabel=f"{time.name} (ms)", ylabel="share that takes longer")
