"""Plans: throughput against limits, where the time goes, servers needed, and how long requests take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

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
    SKY,
    VERMILLION,
    figure_legend,
    log_axis,
    new_figure,
    percent_axis,
    styled,
)
from bayes_sched.sla.request import NAMES

_COLOURS = {ANY_STEP: (BLUE, SKY), DECODES: (GREEN, GREEN)}


@styled
def throughput_frontier(plan: Optimum) -> Figure:
    """Draw the most tokens a second for each limit that settings keep, in two panels.

    How to read it: go right to the limit and up to the curve: no settings that keep it do more. The band is
    what we do not know of the throughput; where the curve ends, the trace holds no larger steps.
    """
    share, sure = 100 * plan.objective.quantile, 100 * plan.objective.confidence
    figure, axes = new_figure(
        f"Throughput against the limit that {share:g}% of steps keep, with {sure:g}% confidence",
        height_in=5.0,
        rows=2,
        sharex=True,
    )
    for ax, case in zip(axes[:, 0], CASES, strict=True):
        _draw_frontier(ax, plan, case)
        ax.set_title(f"{case.capitalize()}: {_best_text(plan, case)}")
    axes[1, 0].set_xlabel("limit on a step (ms)")
    figure_legend(figure, axes[0, 0])
    return figure


def _best_text(plan: Optimum, case: str) -> str:
    best = plan.best[case]
    if best is None:
        return "none keeps the limit"
    tokens = "" if case == DECODES else f" and {best['total_tokens']:,} tokens"
    plural = "" if best["batch_size"] == 1 else "s"
    return f"best are up to {best['batch_size']:,} request{plural}{tokens}"


def _draw_frontier(ax: Axes, plan: Optimum, case: str) -> None:
    table, best = plan.frontier[plan.frontier["case"] == case], plan.best[case]
    line, band = _COLOURS[case]
    lower, upper = (table[f"tokens_per_s_{end}"] for end in ("lower", "upper"))
    shade: Any = {
        "color": band,
        "alpha": 0.4,
        "linewidth": 0,
        "label": f"{100 * plan.probability:g}% credible",
    }
    ax.fill_between(table["limit_ms"], lower, upper, step="post", **shade)
    ax.step(table["limit_ms"], table["tokens_per_s"], where="post", color=line, label="most tokens a second")
    ax.axvline(plan.objective.limit_ms, color=INK, linewidth=0.9, linestyle=":", label="the limit asked for")
    if best is not None:
        ax.plot(best["limit_ms"], best["tokens_per_s"], "o", color=ORANGE, markeredgecolor=INK, label="best")
    ax.set_ylim(bottom=0.0)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
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
    figure, axes = new_figure(
        "Where the time of a step goes", height_in=0.9 + 2.5 * len(shown), rows=len(shown), sharex=True
    )
    for ax, (case, terms, best) in zip(axes[:, 0], shown, strict=True):
        _draw_terms(ax, terms, probability=plan.probability)
        ax.set_title(f"{case.capitalize()}: {best['batch_size']:,} requests, {best['total_tokens']:,} tokens")
    axes[-1, 0].set_xlabel("share of the mean latency (%)")
    figure_legend(figure, axes[0, 0], columns=3)
    return figure


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
    _draw_confidence(axes[0, 0], plan)
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
    figure_legend(figure, axes[0, 0])
    return figure


def _draw_confidence(ax: Axes, plan: CapacityPlan) -> None:
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
    figure, axes = new_figure(
        f"How long requests take with {servers}", height_in=1.0 + 1.9 * len(keys), rows=len(keys)
    )
    for ax, key in zip(axes[:, 0], keys, strict=True):
        _draw_times(ax, plan, key, known[known["time"] == key])
    limited = [ax for ax, key in zip(axes[:, 0], keys, strict=True) if plan.objectives[key] is not None]
    figure_legend(figure, (limited or [axes[0, 0]])[0])
    return figure


def _draw_times(ax: Axes, plan: CapacityPlan, key: str, times: pd.DataFrame) -> None:
    late, objective = 1.0 - times["level"], plan.objectives[key]
    lower, upper = times["ms_lower"].to_numpy(), times["ms_upper"].to_numpy()
    label = f"{100 * plan.probability:g}% of the draws"
    ax.fill_betweenx(late, lower, upper, color=SKY, alpha=0.5, linewidth=0, label=label)
    ax.plot(times["ms"], late, color=BLUE, label="requests that take longer")
    if objective is not None:
        allowed = 1.0 - objective.quantile
        ax.axhline(allowed, color=INK, linewidth=0.9, linestyle=":", label=f"allowed: {100 * allowed:.4g}%")
        ax.axvline(objective.limit_ms, color=VERMILLION, linestyle="--", label="limit")
    if upper[-1] > 20.0 * lower[0]:
        log_axis(ax.xaxis)
    ax.set_yscale("log")
    ax.set_ylim(1e-3, 1.3)
    percent_axis(ax.yaxis)
    ax.set(xlabel=f"{NAMES[key]} (ms)", ylabel="share that takes longer")
