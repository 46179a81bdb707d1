"""Limits: those that may be promised for steps and requests, and the plans that keep them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bayes_sched.arrays import Floats
from bayes_sched.format import counted
from bayes_sched.planning.capacity import CapacityPlan
from bayes_sched.planning.settings import ANY_STEP, CASES, DECODES, Optimum
from bayes_sched.planning.simulator import KEYS
from bayes_sched.reports.plots import style
from bayes_sched.sla.request import NAMES, RequestSLA
from bayes_sched.sla.steps import RiskMaps, StepSLA

LEVELS = (0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0)
"""Probabilities that the colours of the map tell apart."""

_MAP_COLOURS = ("#4d1a00", "#a65628", "#e6a15c", "#cfe3f2", "#7fb8de", "#1f78b4")
_CASE_COLOURS = {ANY_STEP: (style.BLUE, style.SKY), DECODES: (style.GREEN, style.GREEN)}
_FRONTIER = ("limit_ms", "tokens_per_s_lower", "tokens_per_s_upper")
_HEADROOM = 1.6
_LEAST_DECODE = 1e-5  # of risk: rarer events than that no trace shows
_LEAST_REQUEST = 2e-3


@style.styled
def decode_promise(sla: StepSLA, maps: RiskMaps) -> Figure:
    """Draw, for decode-only batches, the share of steps beyond the limit, and how sure one may be of it."""
    title = f"Decode-only batches and a limit of {sla.objective.limit_ms:g} ms"
    figure, axes = style.new_figure(title, height_in=4.9, rows=2, sharex=True)
    table = maps.decode_only.to_dataframe().sort_values("batch_size")
    _draw_risk(axes[0, 0], sla, table)
    _draw_confidence(axes[1, 0], sla, table)
    promised, point, sizes = sla.decode_only.promised, sla.decode_only.point, table["batch_size"]
    for ax in axes[:, 0]:
        if promised is not None:
            ax.axvline(promised.number, color=style.GREEN, label=f"may be promised: {promised.number:,}")
        if point is not None:
            label = f"a point estimate allows {point.number:,}"
            ax.axvline(point.number, color=style.VERMILLION, linestyle="--", label=label)
        style.hatch_extrapolation(ax, sizes, table["extrapolation"], label="no such steps in the trace")
    axes[1, 0].set_xlabel("requests in the step, B = S")
    axes[1, 0].set_xlim(float(sizes.min()), max(2.0, float(sizes.max())))
    return style.figure_legend(figure, axes[0, 0])


def _draw_risk(ax: Axes, sla: StepSLA, table: pd.DataFrame) -> None:
    sizes, names = table["batch_size"], ("probability", "upper", "lower")
    late, low, high = (np.maximum(1.0 - table[name].to_numpy(float), _LEAST_DECODE) for name in names)
    style.shade(ax, sizes, low, high, f"{100 * sla.probability:g}% credible", alpha=0.5)
    ax.plot(sizes, late, color=style.BLUE, label="steps that take longer")
    if late.max() <= _LEAST_DECODE:
        nowhere = f"below {100 * _LEAST_DECODE:g}% everywhere"
        ax.annotate(nowhere, (0.3, 0.06), xycoords="axes fraction", fontsize=8.0)
    _allow(ax, 1.0 - sla.objective.quantile)
    _share_axis(ax, least=_LEAST_DECODE)
    ax.set(ylabel="share beyond the limit", title="Risk: what a step does")


def _allow(ax: Axes, allowed: float) -> None:
    label = f"allowed: {100 * allowed:.4g}%"
    ax.axhline(allowed, color=style.INK, linewidth=0.9, linestyle=":", label=label)


def _share_axis(ax: Axes, *, least: float) -> None:
    ax.set_yscale("log")
    ax.set_ylim(least, 1.3)
    style.percent_axis(ax.yaxis)


def _draw_confidence(ax: Axes, sla: StepSLA, table: pd.DataFrame) -> None:
    ax.plot(table["batch_size"], table["confidence"], color=style.BLUE)
    ax.axhline(sla.objective.confidence, color=style.INK, linewidth=0.9, linestyle=":")
    ax.set_ylim(-0.03, 1.05)
    style.percent_axis(ax.yaxis)
    share = f"{100 * sla.objective.quantile:g}%"
    ax.set(ylabel="confidence", title=f"Confidence: how sure that {share} of such steps keep it")


@style.styled
def promise_map(sla: StepSLA, maps: RiskMaps) -> Figure:
    """Draw P(step <= SLO) over (B, S), and the frontiers of the promise and of a point estimate."""
    figure, ax = style.new_axes(f"Share of steps within {sla.objective.limit_ms:g} ms", height_in=4.9)
    surface = maps.surface["probability"].transpose(*style.ORDER)
    if style.has_area(ax, surface):
        x, y, z = surface["batch_size"], surface["total_tokens"], np.ma.masked_invalid(surface.to_numpy())
        look: Any = {"norm": BoundaryNorm(LEVELS, len(_MAP_COLOURS)), "cmap": ListedColormap(_MAP_COLOURS)}
        filled = ax.contourf(x, y, z, levels=LEVELS, **look)
        bar = figure.colorbar(filled, ax=ax, ticks=LEVELS, spacing="uniform", shrink=0.9, pad=0.02)
        bar.ax.set_yticklabels([f"{100 * level:g}%" for level in LEVELS])
        bar.set_label("P(step keeps the limit)")
        style.draw_veil(ax, maps.veil, maps.veil["extrapolation"])
    _draw_frontiers(ax, sla)
    allowed = sla.frontier[["total_tokens", "point_tokens"]].max().max()
    top = float(surface["total_tokens"].max())  # or not far beyond what a point estimate allows
    ax.set_ylim(1.0, top if pd.isna(allowed) else min(top, _HEADROOM * float(allowed)))
    ax.set(xlabel=style.X_LABEL, ylabel=style.Y_LABEL)
    ax.grid(visible=False)
    return style.figure_legend(figure, ax, style.veil_handle(), columns=1)


def _draw_frontiers(ax: Axes, sla: StepSLA) -> None:
    table, objective = sla.frontier, sla.objective
    promised = table[table["total_tokens"].notna()]
    wrong = promised[promised["is_contradicted"].fillna(False).astype(bool)]
    at_edge = promised[promised["limited_by"] != "slo"]
    share = f"{100 * objective.quantile:g}% keep it, {100 * objective.confidence:g}% sure"

    def draw(rows: pd.DataFrame, label: str | None, *, name: str = "total_tokens", **look: Any) -> None:
        b, s = (rows[column].to_numpy(float) for column in ("batch_size", name))
        ax.plot(b, s, label=label, **{"color": style.INK, **look})

    draw(promised, f"may be promised ({share})", marker="o", markersize=3.0)
    cross: Any = {"color": style.VERMILLION, "marker": "X", "linestyle": "", "markersize": 6.0}
    draw(wrong, "contradicted by the trace" if len(wrong) else None, **cross)
    hollow: Any = {"marker": "o", "linestyle": "", "markerfacecolor": "white", "markersize": 4.5}
    draw(at_edge, "the same, limited by the data alone" if len(at_edge) else None, **hollow)
    point = table[table["point_tokens"].notna()]
    draw(point, "a point estimate would allow", name="point_tokens", linestyle="--")


@style.styled
def request_survival(sla: RequestSLA, survival: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the share of the requests that take longer, for each time that can be told."""
    figure, axes = style.new_panels("How long a request takes", len(sla.times), head_in=1.0, each_in=1.9)
    for ax, time in zip(axes[:, 0], sla.times, strict=True):
        curve, allowed = survival[time.key], 1.0 - time.quantile
        names, places = ("late", "lower", "upper"), curve["time_ms"].to_numpy()
        late, lower, upper = (np.maximum(curve[name].to_numpy(), _LEAST_REQUEST / 10) for name in names)
        style.shade(ax, places, lower, upper, f"{100 * time.interval:g}% credible", alpha=0.5)
        _draw_late(ax, places, late, allowed, time.limit_ms, least=min(_LEAST_REQUEST, allowed / 3.0))
        ax.set(xlabel=f"{time.name} (ms)", xlim=(places[0], places[-1]))
    return style.figure_legend(figure, axes[0, 0])


def _draw_late(
    ax: Axes, time_ms: Floats, late: Floats, allowed: float | None, limit_ms: float | None, *, least: float
) -> None:
    """Draw the share of requests that take longer than a time, and what is allowed of it."""
    ax.plot(time_ms, late, color=style.BLUE, label="requests that take longer")
    if allowed is not None:
        _allow(ax, allowed)
    if limit_ms is not None:
        ax.axvline(limit_ms, color=style.VERMILLION, linestyle="--", label="limit")
    _share_axis(ax, least=least)
    ax.set_ylabel("share that takes longer")


@style.styled
def throughput_frontier(plan: Optimum) -> Figure:
    """Draw the most tokens a second for each limit that settings keep, in two panels."""
    asked: Any = {"color": style.INK, "linewidth": 0.9, "linestyle": ":"}
    dot: Any = {"color": style.ORANGE, "markeredgecolor": style.INK}
    credible = f"{100 * plan.probability:g}% credible"
    share, sure = 100 * plan.objective.quantile, 100 * plan.objective.confidence
    title = f"Throughput against the limit that {share:g}% of steps keep, with {sure:g}% confidence"
    figure, axes = style.new_figure(title, height_in=5.0, rows=2, sharex=True)
    for ax, case in zip(axes[:, 0], CASES, strict=True):
        table, best = plan.frontier[plan.frontier["case"] == case], plan.best[case]
        limits, low, high = (table[name] for name in _FRONTIER)
        line, band = _CASE_COLOURS[case]
        style.shade(ax, limits, low, high, credible, color=band, alpha=0.4, step="post")
        ax.step(limits, table["tokens_per_s"], where="post", color=line, label="most tokens a second")
        ax.axvline(plan.objective.limit_ms, label="the limit asked for", **asked)
        if best is not None:
            ax.plot(best["limit_ms"], best["tokens_per_s"], "o", label="best", **dot)
        ax.set(ylabel="tokens a second", ylim=(0.0, None), title=_best_text(best, case))
        style.count_axis(ax.yaxis)
    axes[1, 0].set_xlabel("limit on a step (ms)")
    return style.figure_legend(figure, axes[0, 0])


def _best_text(best: Any, case: str) -> str:
    if best is None:
        return f"{case.capitalize()}: none keeps the limit"
    tokens = "" if case == DECODES else f" and {best['total_tokens']:,} tokens"
    requests = counted(best["batch_size"], "request")
    return f"{case.capitalize()}: best are up to {requests}{tokens}"


@style.styled
def cost_shares(plan: Optimum) -> Figure:
    """Draw the share of each term of the equation in the time of the best steps, with credible intervals."""
    drawn = [(case, plan.terms[case], plan.best[case]) for case in CASES]
    shown = [(case, terms, best) for case, terms, best in drawn if terms is not None and best is not None]
    title = "Where the time of a step goes"
    figure, axes = style.new_panels(title, len(shown), head_in=0.9, each_in=2.5, sharex=True)
    for ax, (case, terms, best) in zip(axes[:, 0], shown, strict=True):
        places = np.arange(len(terms))[::-1]
        is_group, ends = (terms["kind"] == "group").to_numpy(), ("share", "share_lower", "share_upper")
        share, lower, upper = (100.0 * terms[name].to_numpy() for name in ends)
        kinds = ((is_group, style.BLUE, "groups"), (~is_group, style.GREY, "single terms"))
        for chosen, colour, label in kinds:
            ax.barh(places[chosen], share[chosen], color=colour, height=0.65, label=label)
        credible = f"{100 * plan.probability:g}% credible"
        ax.hlines(places, lower, upper, color=style.INK, linewidth=1.6, label=credible)
        ax.set_yticks(places, labels=[str(name) for name in terms["name"]])
        ax.grid(visible=False, axis="y")
        ax.set_xlim(0.0, max(5.0, 1.05 * float(upper.max())))
        ax.set_title(f"{case.capitalize()}: {best['batch_size']:,} requests, {best['total_tokens']:,} tokens")
    axes[-1, 0].set_xlabel("share of the mean latency (%)")
    return style.figure_legend(figure, axes[0, 0], columns=3)


@style.styled
def replicas_needed(plan: CapacityPlan) -> Figure:
    """Draw the confidence that all limits are kept, and the share of requests within them, by servers."""
    figure, axes = style.new_figure("How many servers the workload needs", height_in=4.9, rows=2, sharex=True)
    _draw_replicas(axes[0, 0], plan)
    lower, middle, upper = (plan.table[f"all_within_{end}"] for end in ("lower", "median", "upper"))
    bars: Any = {"color": style.BLUE, "ecolor": style.SKY, "elinewidth": 3.0, "fmt": "o"}
    axes[1, 0].errorbar(plan.table["replicas"], middle, yerr=[middle - lower, upper - middle], **bars)
    asked = "What requests do: the share within all limits"
    title = asked if plan.shown.asked else "No limit on requests was given"
    axes[1, 0].set(xlabel="servers", ylabel="share of requests", title=title)
    colour = style.GREEN if plan.is_promised else style.GREY
    for ax in axes[:, 0]:
        if plan.replicas is not None:
            label = f"{plan.replicas:,} will do" if plan.is_promised else f"{plan.replicas:,}, not promised"
            ax.axvline(plan.replicas, color=colour, linewidth=1.0, label=label)
        style.percent_axis(ax.yaxis)
        ax.set_ylim(-0.04, 1.06)
    axes[1, 0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes[1, 0].set_xlim(0.5, plan.simulations[-1].replicas + 0.5)
    return style.figure_legend(figure, axes[0, 0])


def _draw_replicas(ax: Axes, plan: CapacityPlan) -> None:
    servers = plan.table["replicas"]
    for place, (key, colour) in enumerate(zip(plan.shown.asked, style.CYCLE[1:], strict=False)):
        # Hollow and each larger than the one before, as they often lie on one another.
        ring: Any = {"markersize": 8.0 + 4.0 * place, "markerfacecolor": "none", "markeredgewidth": 1.4}
        kept = plan.table[f"{key}_confidence"]
        ax.plot(servers, kept, "s", color=colour, label=f"{NAMES[key]} kept", zorder=3.0, **ring)
    ax.plot(servers, plan.table["confidence"], marker="o", color=style.BLUE, label="all kept, no overload")
    ax.axhline(plan.confidence, color=style.INK, linewidth=0.9, linestyle=":")
    ax.set(ylabel="confidence", title="Confidence: how sure it is to do")


@style.styled
def request_times(plan: CapacityPlan) -> Figure:
    """Draw the share of the requests that take longer than a time: to first token, per token, end to end."""
    known = plan.request_times.dropna()
    keys = [key for key in KEYS if (known["time"] == key).any()]
    title = f"How long requests take with {counted(plan.shown.replicas, 'server')}"
    figure, axes = style.new_panels(title, len(keys), head_in=1.0, each_in=1.9)
    for ax, key in zip(axes[:, 0], keys, strict=True):
        times, objective = known[known["time"] == key], plan.objectives[key]
        late = (1.0 - times["level"]).to_numpy()
        middle, lower, upper = (times[name].to_numpy() for name in ("ms", "ms_lower", "ms_upper"))
        label = f"{100 * plan.probability:g}% of the draws"
        ax.fill_betweenx(late, lower, upper, color=style.SKY, alpha=0.5, linewidth=0, label=label)
        kept = (1.0 - objective.quantile, objective.limit_ms) if objective else (None, None)
        _draw_late(ax, middle, late, *kept, least=1e-3)
        if upper[-1] > 20.0 * lower[0]:
            style.log_axis(ax.xaxis)
        ax.set_xlabel(f"{NAMES[key]} (ms)")
    limited = [ax for ax, key in zip(axes[:, 0], keys, strict=True) if plan.objectives[key] is not None]
    return style.figure_legend(figure, (limited or [axes[0, 0]])[0])
