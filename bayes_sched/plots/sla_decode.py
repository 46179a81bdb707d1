"""Risk and confidence of decode-only batches."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bayes_sched.plots.style import (
    BLUE,
    GREEN,
    INK,
    SKY,
    VERMILLION,
    figure_legend,
    hatch_extrapolation,
    new_figure,
    styled,
)
from bayes_sched.sla import StepSLA

_LEAST = 1e-5  # of risk: rarer events than that no trace shows


@styled
def decode_promise(sla: StepSLA, risk: xr.Dataset) -> Figure:
    """Draw, for decode-only batches, the share of steps beyond the limit, and how sure one may be of it.

    How to read it: above is what steps do, with the credible band of what we know; below is the probability
    that at most the allowed share is late. The promise ends where the lower curve falls below its line.

    Parameters
    ----------
    sla : StepSLA
    risk : Dataset, dims (step,)
        :func:`bayes_sched.sla.risk.step_risk` of decode-only steps, with a variable ``batch_size``.

    Returns
    -------
    Figure
    """
    figure, axes = new_figure(
        f"Decode-only batches and a limit of {sla.objective.limit_ms:g} ms",
        height_in=4.9,
        rows=2,
        sharex=True,
    )
    table = risk.to_dataframe().sort_values("batch_size")
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
        return np.maximum(1.0 - table[name].to_numpy(float), _LEAST)

    probability = f"{100 * sla.probability:g}% credible"
    ax.fill_between(
        table["batch_size"],
        late("upper"),
        late("lower"),
        color=SKY,
        alpha=0.5,
        linewidth=0,
        label=probability,
    )
    ax.plot(table["batch_size"], late("probability"), color=BLUE, label="steps that take longer")
    if late("probability").max() <= _LEAST:
        ax.annotate(
            f"below {100 * _LEAST:g}% everywhere", (0.3, 0.06), xycoords="axes fraction", fontsize=8.0
        )
    allowed = 1.0 - sla.objective.quantile
    ax.axhline(allowed, color=INK, linewidth=0.9, linestyle=":", label=f"allowed: {100 * allowed:.4g}%")
    ax.set_yscale("log")
    ax.set_ylim(_LEAST, 1.3)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    ax.set(ylabel="share beyond the limit", title="Risk: what a step does")


def _draw_confidence(ax: Axes, sla: StepSLA, table: pd.DataFrame) -> None:
    ax.plot(table["batch_size"], table["confidence"], color=BLUE)
    ax.axhline(sla.objective.confidence, color=INK, linewidth=0.9, linestyle=":")
    ax.set_ylim(-0.03, 1.05)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    share = f"{100 * sla.objective.quantile:g}%"
    ax.set(ylabel="confidence", title=f"Confidence: how sure that {share} of such steps keep it")


def _draw_caps(ax: Axes, sla: StepSLA) -> None:
    limit = sla.decode_only
    if limit.promised is not None:
        ax.axvline(limit.promised.number, color=GREEN, label=f"may be promised: {limit.promised.number:,}")
    if limit.point is not None:
        label = f"a point estimate allows {limit.point.number:,}"
        ax.axvline(limit.point.number, color=VERMILLION, linestyle="--", label=label)
