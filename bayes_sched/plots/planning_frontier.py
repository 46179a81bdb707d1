"""Throughput against the limit on the latency of steps."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bayes_sched.planning.optimum import ANY_STEP, DECODES, Optimum
from bayes_sched.plots.style import BLUE, GREEN, INK, ORANGE, SKY, figure_legend, new_figure, styled

_COLOURS = {ANY_STEP: (BLUE, SKY), DECODES: (GREEN, GREEN)}


@styled
def throughput_frontier(plan: Optimum) -> Figure:
    """Draw the most tokens a second for each limit that settings keep, in two panels.

    How to read it: go right to the limit and up to the curve: no settings that keep it do more. The band is
    what we do not know of the throughput; where the curve ends, the trace holds no larger steps.

    Parameters
    ----------
    plan : Optimum

    Returns
    -------
    Figure
    """
    share, sure = 100 * plan.objective.quantile, 100 * plan.objective.confidence
    figure, axes = new_figure(
        f"Throughput against the limit that {share:g}% of steps keep, with {sure:g}% confidence",
        height_in=5.0,
        rows=2,
        sharex=True,
    )
    for ax, case, title in (
        (axes[0, 0], ANY_STEP, "Any step"),
        (axes[1, 0], DECODES, "Decode-only steps"),
    ):
        _draw(ax, plan, case)
        ax.set_title(f"{title}: {_best_text(plan, case)}")
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


def _draw(ax: Axes, plan: Optimum, case: str) -> None:
    table = plan.frontier[plan.frontier["case"] == case]
    line, band = _COLOURS[case]
    label = f"{100 * plan.probability:g}% credible"
    ax.fill_between(
        table["limit_ms"],
        table["tokens_per_s_lower"],
        table["tokens_per_s_upper"],
        step="post",
        color=band,
        alpha=0.4,
        linewidth=0,
        label=label,
    )
    ax.step(table["limit_ms"], table["tokens_per_s"], where="post", color=line, label="most tokens a second")
    ax.axvline(plan.objective.limit_ms, color=INK, linewidth=0.9, linestyle=":", label="the limit asked for")
    best = plan.best[case]
    if best is not None:
        ax.plot(best["limit_ms"], best["tokens_per_s"], "o", color=ORANGE, markeredgecolor=INK, label="best")
    ax.set_ylim(bottom=0.0)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.set_ylabel("tokens a second")
