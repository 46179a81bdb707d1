"""Residuals: what the mean latency leaves unexplained, against B, S and time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binom, kstwo

from bayes_sched.arrays import Floats
from bayes_sched.posterior.fitted import FittedModel
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
    sample_steps,
    styled,
    thin,
)

PROBABILITIES = (0.5, 0.9, 0.99)
"""Bands whose coverage is counted."""
MAX_STEPS = 12_000
"""Of a longer trace, a random sample of so many steps is checked."""
_BAND = 0.99
_ALL = "all steps"


@dataclass(frozen=True, slots=True)
class Calibration:
    """Observed steps against the predictive distribution of the same fit.

    Attributes
    ----------
    steps : DataFrame
        The steps that were checked.
    pit : ndarray, dims (step,)
        Predictive probability of a latency up to the observed one; uniform if the model is right.
    coverage : DataFrame
        Columns ``steps`` (which of them: all, decode-only, ...), ``num_steps``, ``probability`` (of the
        predictive band) and ``coverage`` (share of the steps inside it).
    max_deviation : float
        Largest difference between the share of steps below a predictive quantile and its probability.
    """

    steps: pd.DataFrame
    pit: Floats
    coverage: pd.DataFrame
    max_deviation: float

    def coverage_of(self, probability: float) -> float:
        """Return the share of all steps inside the central predictive band of a probability."""
        return _share_inside(self.pit, probability)

    @property
    def text(self) -> str:
        """A sentence a person can paste."""
        shares = ", ".join(f"{self.coverage_of(p):.1%} in the {p:.0%} band" for p in PROBABILITIES)
        return (
            f"Of {len(self.pit):,} observed steps, {shares}; the predictive distribution is off by at most "
            f"{100 * self.max_deviation:.1f} percentage points."
        )


def calibrate(fit: FittedModel, steps: pd.DataFrame) -> Calibration:
    """Compare the observed steps with their predictive distributions.

    The steps are those of the fit, so this asks whether the model can describe them, not how it does on
    another day.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame
        The cleaned steps: ``batch_size``, ``total_tokens``, ``latency_ms`` (ms).

    Returns
    -------
    Calibration
    """
    checked = sample_steps(steps, MAX_STEPS)
    pit = fit.probability_below(checked, checked["latency_ms"]).to_numpy()
    rows = [
        {
            "steps": name,
            "num_steps": int(member.sum()),
            "probability": probability,
            "coverage": _share_inside(pit[member], probability),
        }
        for name, member in _groups(checked).items()
        for probability in PROBABILITIES
    ]
    ordered = np.sort(pit)
    rank = np.arange(len(pit) + 1) / len(pit)
    deviation = max(float(np.max(rank[1:] - ordered)), float(np.max(ordered - rank[:-1])))
    return Calibration(checked, pit, pd.DataFrame(rows), deviation)


@styled
def posterior_predictive_check(
    fit: FittedModel, steps: pd.DataFrame, *, calibration: Calibration | None = None
) -> Figure:
    """Draw observed against predicted probabilities, and the coverage of predictive bands by kind of step.

    How to read it: above, a line within the grey band means that the predictive quantiles are right; a
    line that rises to 0.03 means that 3% of the steps more than predicted lie below that quantile. Long
    traces leave the band for small reasons: look at the size. Below, each dot should lie on its line.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame
        The cleaned steps: ``batch_size``, ``total_tokens``, ``latency_ms`` (ms).
    calibration : Calibration, optional
        The result of :func:`calibrate`, where it is at hand.

    Returns
    -------
    Figure
    """
    calibration = calibration or calibrate(fit, steps)
    figure, axes = new_figure("Observed steps against their predicted distribution", height_in=5.6, rows=2)
    _draw_deviation(axes[0, 0], calibration.pit)
    _draw_coverage(axes[1, 0], calibration.coverage)
    figure_legend(figure, axes[1, 0], columns=3)
    return figure


def _groups(steps: pd.DataFrame) -> dict[str, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Return which steps belong to each kind: all, decode-only, and halves of the rest by S."""
    tokens = steps["total_tokens"].to_numpy()
    decode = tokens == steps["batch_size"].to_numpy()
    groups = {_ALL: np.ones(len(steps), bool), "decode-only": decode}
    if not decode.all():
        middle = int(np.median(tokens[~decode]))
        groups[f"mixed (S < {middle:,})"] = ~decode & (tokens < middle)
        groups[f"mixed (S ≥ {middle:,})"] = ~decode & (tokens >= middle)
    return {name: member for name, member in groups.items() if member.any()}


def _share_inside(pit: Floats, probability: float) -> float:
    return float(np.mean(np.abs(pit - 0.5) <= probability / 2.0))


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


_NUM_BINS = 20
_MIN_IN_BIN = 10
_MAX_DRAWS = 100
_SHOWN = (0.005, 0.995)


def residual_table(fit: FittedModel, steps: pd.DataFrame) -> pd.DataFrame:
    """Return the residuals of the steps.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame
        ``batch_size``, ``total_tokens``, ``latency_ms`` (ms), in the order of the trace.

    Returns
    -------
    DataFrame
        The rows of `steps`: ``batch_size``, ``total_tokens``, ``position`` (number of the step), and the
        residual from the posterior mean of the latency as ``residual_ms`` and, in units of the predictive
        scale, ``residual_scales``.
    """
    columns = list(fit.model.columns)
    cells = steps[columns].drop_duplicates().reset_index(drop=True)
    draws = thin(fit.posterior, _MAX_DRAWS)
    table = xr.Dataset({c: ("cell", cells[c].to_numpy(float)) for c in columns})
    mean = fit.model.latency(draws, table)
    scale = fit.model.scale(draws, mean, table).broadcast_like(mean)
    over = [dim for dim in mean.dims if dim != "cell"]
    cells = cells.assign(mean_ms=mean.mean(over).to_numpy(), scale_ms=scale.mean(over).to_numpy())
    joined = steps[columns].merge(cells, on=columns, how="left")
    residual_ms = steps["latency_ms"].to_numpy(float) - joined["mean_ms"].to_numpy()
    return pd.DataFrame(
        {
            "batch_size": steps["batch_size"].to_numpy(),
            "total_tokens": steps["total_tokens"].to_numpy(),
            "position": np.arange(1, len(steps) + 1),
            "residual_ms": residual_ms,
            "residual_scales": residual_ms / joined["scale_ms"].to_numpy(),
        }
    )


@styled
def residuals(fit: FittedModel, steps: pd.DataFrame) -> Figure:
    """Draw residuals against requests, tokens and step number, in ms and in predictive scales.

    How to read it: the line is the running median and the band holds the middle 90% of the steps. A median
    that wanders away from zero is something the equation does not know; a band that widens on the left but
    not on the right is noise the model accounts for.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame
        The cleaned steps in the order of the trace: ``batch_size``, ``total_tokens``, ``latency_ms`` (ms).

    Returns
    -------
    Figure
    """
    table = residual_table(fit, steps)
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
    """Return quantiles of `y` in bins of `x` of equal width.

    Parameters
    ----------
    x, y : ndarray, dims (point,)

    Returns
    -------
    DataFrame
        One row a bin: ``x`` (median), ``low``, ``middle``, ``high`` (5%, 50%, 95%); bins of fewer than ten
        points are left out.
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
