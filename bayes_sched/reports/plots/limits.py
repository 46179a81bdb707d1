"""Limits: those that may be promised for steps and requests, and the plans that keep them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bayes_sched.arrays import Floats
from bayes_sched.planning.capacity import CapacityPlan
from bayes_sched.planning.settings import ANY_STEP, CASES, DECODES, Optimum
from bayes_sched.planning.simulator import KEYS
from bayes_sched.reports.plots.style import (
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    ORDER,
    SKY,
    VERMILLION,
    X_LABEL,
    Y_LABEL,
    count_axis,
    draw_veil,
    figure_legend,
    has_area,
    hatch_extrapolation,
    log_axis,
    new_figure,
    new_panels,
    percent_axis,
    shade,
    styled,
    veil_handle,
)
from bayes_sched.sla.request import NAMES, RequestSLA
from bayes_sched.sla.sla import RiskMaps
from bayes_sched.sla.steps import StepSLA

LEVELS = (0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0)
"""Probabilities that the colours of the map tell apart."""

_MAP_COLOURS = ("#4d1a00", "#a65628", "#e6a15c", "#cfe3f2", "#7fb8de", "#1f78b4")
_CASE_COLOURS = {ANY_STEP: (BLUE, SKY), DECODES: (GREEN, GREEN)}
_HEADROOM = 1.6
_LEAST_DECODE = 1e-5  # of risk: rarer events than that no trace shows
_LEAST_REQUEST = 2e-3


@styled
def decode_promise(sla: StepSLA, maps: RiskMaps) -> Figure:
    """Draw, for decode-only batches, the share of steps beyond the limit, and how sure one may be of it.

    How to read it: above is what steps do, with the credible band of what we know; below is the probability
    that at most the allowed share is late. The promise ends where the lower curve falls below its line.
    """
    title = f"Decode-only batches and a limit of {sla.objective.limit_ms:g} ms"
    figure, axes = new_figure(title, height_in=4.9, rows=2, sharex=True)
    table = maps.decode_only.to_dataframe().sort_values("batch_size")
    _draw_risk(axes[0, 0], sla, table)
    _draw_confidence(axes[1, 0], sla, table)
    for ax in axes[:, 0]:
        _draw_caps(ax, sla)
        unseen = table["extrapolation"]
        hatch_extrapolation(ax, table["batch_size"], unseen, label="no such steps in the trace")
    axes[1, 0].set_xlabel("requests in the step, B = S")
    axes[1, 0].set_xlim(float(table["batch_size"].min()), max(2.0, float(table["batch_size"].max())))
    return figure_legend(figure, axes[0, 0])


def _draw_risk(ax: Axes, sla: StepSLA, table: pd.DataFrame) -> None:
    sizes, names = table["batch_size"], ("probability", "upper", "lower")
    late, low, high = (np.maximum(1.0 - table[name].to_numpy(float), _LEAST_DECODE) for name in names)
    shade(ax, sizes, low, high, f"{100 * sla.probability:g}% credible", alpha=0.5)
    ax.plot(sizes, late, color=BLUE, label="steps that take longer")
    if late.max() <= _LEAST_DECODE:
        nowhere = f"below {100 * _LEAST_DECODE:g}% everywhere"
        ax.annotate(nowhere, (0.3, 0.06), xycoords="axes fraction", fontsize=8.0)
    _allow(ax, 1.0 - sla.objective.quantile)
    _share_axis(ax, least=_LEAST_DECODE)
    ax.set(ylabel="share beyond the limit", title="Risk: what a step does")


def _allow(ax: Axes, allowed: float) -> None:
    label = f"allowed: {100 * allowed:.4g}%"
    ax.axhline(allowed, color=INK, linewidth=0.9, linestyle=":", label=label)


def _share_axis(ax: Axes, *, least: float) -> None:
    ax.set_yscale("log")
    ax.set_ylim(least, 1.3)
    percent_axis(ax.yaxis)


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
    figure, axes = new_figure(f"Share of steps within {sla.objective.limit_ms:g} ms", height_in=4.9)
    ax = axes[0, 0]
    surface = maps.surface["probability"].transpose(*ORDER)
    if has_area(ax, surface):
        _draw_probability(figure, ax, surface)
        draw_veil(ax, maps.veil, maps.veil["extrapolation"])
    _draw_frontiers(ax, sla)
    allowed = sla.frontier[["total_tokens", "point_tokens"]].max().max()
    top = float(surface["total_tokens"].max())  # or not far beyond what a point estimate allows
    ax.set_ylim(1.0, top if pd.isna(allowed) else min(top, _HEADROOM * float(allowed)))
    ax.set(xlabel=X_LABEL, ylabel=Y_LABEL)
    ax.grid(visible=False)
    handles, _ = ax.get_legend_handles_labels()
    figure.legend(handles=[*handles, veil_handle()], loc="outside lower left")
    return figure


def _draw_probability(figure: Figure, ax: Axes, surface: xr.DataArray) -> None:
    x, y, z = surface["batch_size"], surface["total_tokens"], np.ma.masked_invalid(surface.to_numpy())
    norm = BoundaryNorm(LEVELS, len(_MAP_COLOURS))
    filled = ax.contourf(x, y, z, levels=LEVELS, cmap=ListedColormap(_MAP_COLOURS), norm=norm)
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
    figure, axes = new_panels("How long a request takes", len(sla.times), head_in=1.0, each_in=1.9)
    for ax, time in zip(axes[:, 0], sla.times, strict=True):
        curve, allowed = survival[time.key], 1.0 - time.quantile
        names, places = ("late", "lower", "upper"), curve["time_ms"].to_numpy()
        late, lower, upper = (np.maximum(curve[name].to_numpy(), _LEAST_REQUEST / 10) for name in names)
        shade(ax, places, lower, upper, f"{100 * time.interval:g}% credible", alpha=0.5)
        least = min(_LEAST_REQUEST, allowed / 3.0)
        _draw_late(ax, time.name, places, late, allowed=allowed, limit_ms=time.limit_ms, least=least)
        ax.set_xlim(places[0], places[-1])
    return figure_legend(figure, axes[0, 0])


def _draw_late(
    ax: Axes,
    name: str,
    time_ms: Floats,
    late: Floats,
    *,
    allowed: float | None,
    limit_ms: float | None,
    least: float,
) -> None:
    """Draw the share of requests that take longer than a time, and what is allowed of it."""
    ax.plot(time_ms, late, color=BLUE, label="requests that take longer")
    if allowed is not None:
        _allow(ax, allowed)
    if limit_ms is not None:
        ax.axvline(limit_ms, color=VERMILLION, linestyle="--", label="limit")
    _share_axis(ax, least=least)
    ax.set(xlabel=f"{name} (ms)", ylabel="share that takes longer")


@styled
def throughput_frontier(plan: Optimum) -> Figure:
    """Draw the most tokens a second for each limit that settings keep, in two panels.

    How to read it: go right to the limit and up to the curve: no settings that keep it do more. The band is
    what we do not know of the throughput; where the curve ends, the trace holds no larger steps.
    """
    share, sure = 100 * plan.objective.quantile, 100 * plan.objective.confidence
    title = f"Throughput against the limit that {share:g}% of steps keep, with {sure:g}% confidence"
    figure, axes = new_figure(title, height_in=5.0, rows=2, sharex=True)
    for ax, case in zip(axes[:, 0], CASES, strict=True):
        _draw_frontier(ax, plan, case)
        ax.set_title(f"{case.capitalize()}: {_best_text(plan, case)}")
    axes[1, 0].set_xlabel("limit on a step (ms)")
    return figure_legend(figure, axes[0, 0])


def _best_text(plan: Optimum, case: str) -> str:
    best = plan.best[case]
    if best is None:
        return "none keeps the limit"
    tokens = "" if case == DECODES else f" and {best['total_tokens']:,} tokens"
    plural = "" if best["batch_size"] == 1 else "s"
    return f"best are up to {best['batch_size']:,} request{plural}{tokens}"


def _draw_frontier(ax: Axes, plan: Optimum, case: str) -> None:
    table, best = plan.frontier[plan.frontier["case"] == case], plan.best[case]
    line, band = _CASE_COLOURS[case]
    limits, ends = table["limit_ms"], [table[f"tokens_per_s_{end}"] for end in ("lower", "upper")]
    credible = f"{100 * plan.probability:g}% credible"
    shade(ax, limits, *ends, credible, color=band, alpha=0.4, step="post")
    ax.step(limits, table["tokens_per_s"], where="post", color=line, label="most tokens a second")
    ax.axvline(plan.objective.limit_ms, color=INK, linewidth=0.9, linestyle=":", label="the limit asked for")
    if best is not None:
        ax.plot(best["limit_ms"], best["tokens_per_s"], "o", color=ORANGE, markeredgecolor=INK, label="best")
    ax.set_ylim(bottom=0.0)
    count_axis(ax.yaxis)
    ax.set_ylabel("tokens a second")


@styled
def cost_shares(plan: Optimum) -> Figure:
    """Draw the share of each term of the equation in the time of the best steps, with credible intervals.

    How to read it: long bars are what to change. Grey bars are single terms, which data may tell apart only
    in sums, so that their intervals may be wide where those of the groups (blue) are not. Settings that keep
    the limit have to exist, and the model to have the terms of the equation.
    """
    drawn = [(case, plan.terms[case], plan.best[case]) for case in CASES]
    shown = [(case, terms, best) for case, terms, best in drawn if terms is not None and best is not None]
    figure, axes = new_panels(
        "Where the time of a step goes", len(shown), head_in=0.9, each_in=2.5, sharex=True
    )
    for ax, (case, terms, best) in zip(axes[:, 0], shown, strict=True):
        _draw_terms(ax, terms, probability=plan.probability)
        ax.set_title(f"{case.capitalize()}: {best['batch_size']:,} requests, {best['total_tokens']:,} tokens")
    axes[-1, 0].set_xlabel("share of the mean latency (%)")
    return figure_legend(figure, axes[0, 0], columns=3)


def _draw_terms(ax: Axes, terms: pd.DataFrame, *, probability: float) -> None:
    places = np.arange(len(terms))[::-1]
    is_group = (terms["kind"] == "group").to_numpy()
    share, lower, upper = (100.0 * terms[name].to_numpy() for name in ("share", "share_lower", "share_upper"))
    for chosen, colour, label in ((is_group, BLUE, "groups"), (~is_group, GREY, "single terms")):
        ax.barh(places[chosen], share[chosen], color=colour, height=0.65, label=label)
    ax.hlines(places, lower, upper, color=INK, linewidth=1.6, label=f"{100 * probability:g}% credible")
    ax.set_yticks(places, labels=[str(name) for name in terms["name"]])
    ax.grid(visible=False, axis="y")
    ax.set_xlim(0.0, max(5.0, 1.05 * float(upper.max())))


@styled
def replicas_needed(plan: CapacityPlan) -> Figure:
    """Draw the confidence that all limits are kept, and the share of requests within them, by servers.

    How to read it: above is what we know, the share of the posterior draws in which a number of servers will
    do; the plan needs the first number whose point lies on or above the dotted line. Below is what requests
    do: the share of them that keeps all limits, with its interval over draws.
    """
    figure, axes = new_figure("How many servers the workload needs", height_in=4.9, rows=2, sharex=True)
    _draw_replicas(axes[0, 0], plan)
    _draw_within(axes[1, 0], plan)
    for ax in axes[:, 0]:
        if plan.replicas is not None:
            label = f"{plan.replicas:,} will do" if plan.is_promised else f"{plan.replicas:,}, not promised"
            ax.axvline(plan.replicas, color=GREEN if plan.is_promised else GREY, linewidth=1.0, label=label)
        percent_axis(ax.yaxis)
        ax.set_ylim(-0.04, 1.06)
    axes[1, 0].set_xlabel("servers")
    axes[1, 0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes[1, 0].set_xlim(0.5, plan.simulations[-1].replicas + 0.5)
    return figure_legend(figure, axes[0, 0])


def _draw_replicas(ax: Axes, plan: CapacityPlan) -> None:
    servers = plan.table["replicas"]
    for place, (key, colour) in enumerate(zip(plan.shown.asked, CYCLE[1:], strict=False)):
        # Hollow and each larger than the one before, as they often lie on one another.
        ring: Any = {"markersize": 8.0 + 4.0 * place, "markerfacecolor": "none", "markeredgewidth": 1.4}
        kept = plan.table[f"{key}_confidence"]
        ax.plot(servers, kept, "s", color=colour, label=f"{NAMES[key]} kept", zorder=3.0, **ring)
    ax.plot(servers, plan.table["confidence"], marker="o", color=BLUE, label="all kept, no overload")
    ax.axhline(plan.confidence, color=INK, linewidth=0.9, linestyle=":")
    ax.set(ylabel="confidence", title="Confidence: how sure it is to do")


def _draw_within(ax: Axes, plan: CapacityPlan) -> None:
    lower, middle, upper = (plan.table[f"all_within_{end}"] for end in ("lower", "median", "upper"))
    bars: Any = {"color": BLUE, "ecolor": SKY, "elinewidth": 3.0}
    ax.errorbar(plan.table["replicas"], middle, yerr=[middle - lower, upper - middle], fmt="o", **bars)
    asked = "What requests do: the share within all limits"
    title = asked if plan.shown.asked else "No limit on requests was given"
    ax.set(ylabel="share of requests", title=title)


@styled
def request_times(plan: CapacityPlan) -> Figure:
    """Draw the share of the requests that take longer than a time: to first token, per token, end to end.

    How to read it: follow a time up to the curve. The curve is the median over posterior draws; the band is
    where it lies in so many of them, parameters and (of generated workloads) arrivals together.
    """
    known = plan.request_times.dropna()
    keys = [key for key in KEYS if (known["time"] == key).any()]
    servers = f"{plan.shown.replicas:,} server{'' if plan.shown.replicas == 1 else 's'}"
    figure, axes = new_panels(f"How long requests take with {servers}", len(keys), head_in=1.0, each_in=1.9)
    for ax, key in zip(axes[:, 0], keys, strict=True):
        _draw_times(ax, plan, key, known[known["time"] == key])
    limited = [ax for ax, key in zip(axes[:, 0], keys, strict=True) if plan.objectives[key] is not None]
    return figure_legend(figure, (limited or [axes[0, 0]])[0])


def _draw_times(ax: Axes, plan: CapacityPlan, key: str, times: pd.DataFrame) -> None:
    late, objective = (1.0 - times["level"]).to_numpy(), plan.objectives[key]
    lower, upper = times["ms_lower"].to_numpy(), times["ms_upper"].to_numpy()
    label = f"{100 * plan.probability:g}% of the draws"
    ax.fill_betweenx(late, lower, upper, color=SKY, alpha=0.5, linewidth=0, label=label)
    allowed, limit_ms = (1.0 - objective.quantile, objective.limit_ms) if objective else (None, None)
    known_ms = times["ms"].to_numpy()
    _draw_late(ax, NAMES[key], known_ms, late, allowed=allowed, limit_ms=limit_ms, least=1e-3)
    if upper[-1] > 20.0 * lower[0]:
        log_axis(ax.xaxis)
