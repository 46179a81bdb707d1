"""Do the bands hold, and what does the mean latency leave unexplained."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binom, kstwo

from bayes_sched.arrays import Floats
from bayes_sched.checks.calibration import PROBABILITIES
from bayes_sched.checks.summary import FitSummary
from bayes_sched.reports.plots.fit import views_of
from bayes_sched.reports.plots.style import (
    BAND,
    BLUE,
    GREEN,
    INK,
    ORANGE,
    SKY,
    draw_points,
    figure_legend,
    log_axis,
    new_figure,
    styled,
)
from bayes_sched.steps import sample_steps

_BAND = 0.99
_NUM_BINS = 20
_MIN_IN_BIN = 10
_SHOWN = (0.005, 0.995)


@styled
def posterior_predictive_check(summary: FitSummary) -> Figure:
    """Draw observed against predicted probabilities, and the coverage of predictive bands by kind of step.

    How to read it: above, a line within the grey band means that the predictive quantiles are right; a
    line that rises to 0.03 means that 3% of the steps more than predicted lie below that quantile. Long
    traces leave the band for small reasons: look at the size. Below, each dot should lie on its line.
    """
    figure, axes = new_figure("Observed steps against their predicted distribution", height_in=5.6, rows=2)
    _draw_deviation(axes[0, 0], summary.calibration.pit)
    _draw_coverage(axes[1, 0], summary.coverage)
    figure_legend(figure, axes[1, 0], columns=3)
    return figure


def _draw_deviation(ax: Axes, pit: Floats) -> None:
    probability = np.linspace(0.0, 1.0, 501)
    observed = np.searchsorted(np.sort(pit), probability, side="right") / len(pit)
    half_width = float(kstwo.ppf(_BAND, len(pit)))
    ax.axhspan(-half_width, half_width, color=BAND, zorder=0.5)
    ax.axhline(0.0, color=INK, linewidth=0.8)
    ax.plot(probability, observed - probability, color=BLUE)
    reach = max(0.02, 1.3 * half_width, 1.15 * float(np.max(np.abs(observed - probability))))
    ax.set(
        ylim=(-reach, reach),
        xlim=(0.0, 1.0),
        xlabel="predicted probability p",
        ylabel="share of steps below\nthe p-quantile, minus p",
        title=f"Calibration (grey: {_BAND:.0%} band of a right model)",
    )


def _draw_coverage(ax: Axes, coverage: pd.DataFrame) -> None:
    kinds = list(dict.fromkeys(coverage["steps"]))
    place = {kind: len(kinds) - 1 - i for i, kind in enumerate(kinds)}
    for probability, colour in zip(PROBABILITIES, (GREEN, BLUE, ORANGE), strict=True):
        rows = coverage[coverage["probability"] == probability]
        counts = rows["num_steps"].to_numpy()
        low, high = (binom.ppf(q, counts, probability) / counts for q in (0.005, 0.995))
        y = rows["steps"].map(place).to_numpy(float)
        ax.axvline(probability, color=colour, linewidth=1.0, linestyle="--", zorder=1.0)
        ax.hlines(y, low, high, color=SKY if colour == BLUE else colour, alpha=0.35, linewidth=6.0)
        ax.plot(rows["coverage"], y, "o", color=colour, markersize=5.0, label=f"{probability:.0%} band")
    ax.set_yticks([place[kind] for kind in kinds], [_label(coverage, kind) for kind in kinds])
    ax.set(xlim=(min(0.4, float(coverage["coverage"].min()) - 0.03), 1.01), ylim=(-0.6, len(kinds) - 0.4))
    ax.set(xlabel="share of the observed steps inside the band", title="Coverage of predictive bands")


def _label(coverage: pd.DataFrame, kind: str) -> str:
    count = int(coverage.loc[coverage["steps"] == kind, "num_steps"].iloc[0])
    return f"{kind}\n({count:,})"


@styled
def residuals(summary: FitSummary) -> Figure:
    """Draw residuals against requests, tokens and step number, in ms and in predictive scales.

    How to read it: the line is the running median and the band holds the middle 90% of the steps. A median
    that wanders away from zero is something the equation does not know; a band that widens on the left but
    not on the right is noise the model accounts for.
    """
    table = views_of(summary).residuals
    figure, axes = new_figure(
        "Residuals: observed minus mean latency", height_in=6.6, rows=3, columns=2, sharey="col"
    )
    against = {
        "batch_size": "requests, B",
        "total_tokens": "tokens, S",
        "position": "number of the step in the trace",
    }
    units = {"residual_ms": "ms", "residual_scales": "noise scales"}
    for column, (value, unit) in enumerate(units.items()):
        for row, (name, label) in enumerate(against.items()):
            ax = axes[row, column]
            _draw(ax, table, name, value)
            if name == "total_tokens":
                log_axis(ax.xaxis, sparse=True)
            else:
                ax.locator_params(axis="x", nbins=4)
            ax.set_xlabel(label)
            ax.set_ylabel(f"residual ({unit})")
        axes[0, column].set_ylim(*_limits(table[value].to_numpy()))
        axes[0, column].set_title(_outside(table[value].to_numpy()))
    figure_legend(figure, axes[0, 0], columns=3)
    return figure


def running_quantiles(x: Floats, y: Floats) -> pd.DataFrame:
    """Return quantiles of `y` in bins of `x` of equal width: ``x``, ``low``, ``middle``, ``high``.

    5%, 50% and 95%; bins of fewer than ten points are left out.
    """
    edges = np.linspace(x.min(), x.max(), _NUM_BINS + 1)
    bins = np.searchsorted(edges[1:-1], x, side="right")
    groups = pd.DataFrame({"x": x, "y": y}).groupby(bins)
    quantiles = {
        name: groups["y"].quantile(q) for name, q in {"low": 0.05, "middle": 0.5, "high": 0.95}.items()
    }
    return pd.DataFrame({"x": groups["x"].median(), **quantiles})[groups.size() >= _MIN_IN_BIN]


def _draw(ax: Axes, table: pd.DataFrame, name: str, value: str) -> None:
    shown = sample_steps(table)
    draw_points(ax, shown[name], shown[value], size=3.0, label="steps")
    x = table[name].to_numpy(float)
    logarithmic = name == "total_tokens"
    running = running_quantiles(np.log(x) if logarithmic else x, table[value].to_numpy(float))
    if logarithmic:
        running["x"] = np.exp(running["x"])
    ax.fill_between(
        running["x"], running["low"], running["high"], color=SKY, alpha=0.4, linewidth=0, label="middle 90%"
    )
    ax.plot(running["x"], running["middle"], color=BLUE, label="running median")
    ax.axhline(0.0, color=INK, linewidth=0.8)


def _limits(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, _SHOWN)
    margin = 0.1 * max(high - low, 1e-9)
    return float(low - margin), float(high + margin)


def _outside(values: Floats) -> str:
    low, high = _limits(values)
    return f"{np.mean((values < low) | (values > high)):.1%} of steps outside the plot"
