"""Scores: of predictive distributions by their quantiles, of point predictions, of shares of events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats
from scipy.special import betaincinv

from bayes_sched.arrays import Floats
from bayes_sched.format import number, percent

LEVELS: Floats = np.array([0.005, 0.01, 0.025, *(np.arange(1, 20) / 20), 0.975, 0.99, 0.995])
"""Probabilities of the quantiles that every predictive distribution is scored by."""

BANDS = {0.5: (0.25, 0.75), 0.9: (0.05, 0.95), 0.99: (0.005, 0.995)}
"""Probability of each scored band, and the levels of its edges."""


def quantile_weights(levels: Floats = LEVELS) -> Floats:
    """Return the share of (0, 1) that is nearest to each level, dims (level,)."""
    edges = np.concatenate(([0.0], 0.5 * (levels[1:] + levels[:-1]), [1.0]))
    weights: Floats = np.diff(edges)
    return weights


def at_level(quantiles_ms: Floats, level: float) -> Floats:
    """Return the quantile of one of `LEVELS`, dims (row,); it must be one of them."""
    (position,) = np.flatnonzero(np.isclose(LEVELS, level, rtol=0.0, atol=1e-9))
    column: Floats = quantiles_ms[:, position]
    return column


def pinball_loss(observed_ms: Floats, quantiles_ms: Floats, *, levels: Floats = LEVELS) -> Floats:
    """Return the pinball loss of each quantile, ms, dims (row, level)."""
    excess = observed_ms[:, None] - quantiles_ms
    loss: Floats = np.maximum(levels * excess, (levels - 1.0) * excess)
    return loss


def crps(observed_ms: Floats, quantiles_ms: Floats, *, levels: Floats = LEVELS) -> Floats:
    """Return the continuous ranked probability score of each step, ms, dims (row,)."""
    score: Floats = 2.0 * pinball_loss(observed_ms, quantiles_ms, levels=levels) @ quantile_weights(levels)
    return score


def share_below(observed_ms: Floats, quantiles_ms: Floats) -> Floats:
    """Return the share of steps at or below their quantile, dims (level,): if calibrated, the level."""
    below: Floats = (observed_ms[:, None] <= quantiles_ms).mean(axis=0)
    return below


def coverage(observed_ms: Floats, quantiles_ms: Floats, *, probability: float) -> float:
    """Return the share of steps within their band, one of `BANDS`."""
    lower, upper = (at_level(quantiles_ms, level) for level in BANDS[probability])
    return float(((observed_ms >= lower) & (observed_ms <= upper)).mean())


def pit_histogram(cdf: Floats, *, num_bins: int = 10) -> Floats:
    """Return the share of probability integral transforms in each of equal bins, dims (bin,)."""
    counts, _ = np.histogram(np.clip(cdf, 0.0, 1.0), bins=num_bins, range=(0.0, 1.0))
    shares: Floats = counts / max(len(cdf), 1)
    return shares


def point_scores(observed_ms: Floats, predicted_ms: Floats) -> dict[str, float]:
    """Return what is said of predictions that are single numbers."""
    error = predicted_ms - observed_ms
    relative = np.abs(error) / observed_ms
    variance = float(np.var(observed_ms))
    return {
        "mape": float(relative.mean()),
        "ape_p95": float(np.quantile(relative, 0.95)),
        "r2": 1.0 - float((error**2).mean()) / variance if variance > 0.0 else float("nan"),
        "rmse_ms": float(np.sqrt((error**2).mean())),
        "mae_ms": float(np.abs(error).mean()),
        "bias_ms": float(error.mean()),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Scores of point predictions."""

    r2: float
    rmse_ms: float
    mae_ms: float
    mape: float
    ape_p95: float
    bias_ms: float
    num_steps: int

    @classmethod
    def of(cls, observed_ms: Floats, predicted_ms: Floats) -> Scores:
        """Return the scores of predictions, dims (step,) both."""
        return cls(**point_scores(observed_ms, predicted_ms), num_steps=len(observed_ms))

    @property
    def table(self) -> pd.DataFrame:
        """One row with a column for each score."""
        return pd.DataFrame([asdict(self)])

    @property
    def text(self) -> str:
        """A sentence a person can paste."""
        return (
            f"Over {self.num_steps:,} steps: R² {number(self.r2)}, RMSE {number(self.rmse_ms)} ms, "
            f"MAE {number(self.mae_ms)} ms, MAPE {percent(self.mape, 1)}, bias {number(self.bias_ms)} ms."
        )


def share_interval(count: ArrayLike, number: ArrayLike, *, level: float) -> tuple[Floats, Floats]:
    """Return the exact interval (Clopper and Pearson, equal tails) of a share."""
    events, tries = np.broadcast_arrays(np.asarray(count, float), np.asarray(number, float))
    others, tail = tries - events, 0.5 * (1.0 - level)
    lower, upper = np.zeros(events.shape), np.ones(events.shape)
    has_events, has_others = events > 0.0, others > 0.0
    lower[has_events] = betaincinv(events[has_events], others[has_events] + 1.0, tail)
    upper[has_others] = betaincinv(events[has_others] + 1.0, others[has_others], 1.0 - tail)
    return lower, upper


def effective_tries(happened: ArrayLike, cluster: ArrayLike) -> float:
    """Return how many independent tries tell a share as well as these, which come in clusters.

    The variance of the share is estimated from how it differs between clusters (as in Korn and Graubard,
    1998, Survey Methodology 24), and never taken to be less than that of independent tries. Where no try, or
    every one, is an event, clusters cannot differ and the number of tries is returned.
    """
    events = np.asarray(happened, float)
    number, share = len(events), float(events.mean())
    _, which = np.unique(np.asarray(cluster), return_inverse=True)
    num_clusters = int(which.max()) + 1
    if share in (0.0, 1.0) or num_clusters < 2:
        return float(number)
    residual = np.bincount(which, weights=events - share)
    variance = num_clusters / (num_clusters - 1.0) * float(np.square(residual).sum()) / number**2
    independent = share * (1.0 - share) / number
    return number * independent / max(variance, independent)


_SIZES = {"batch_size": "requests", "total_tokens": "tokens"}
_NUM_BINS = 6
_NUM_LAGS = 20
_FAR = 3.0
_ALIKE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResidualAnalysis:
    """Residuals of point predictions, observed minus predicted."""

    residual_ms: Floats  # dims (step,)
    table: pd.DataFrame
    """One row a class of steps: ``by`` (``batch_size`` or ``total_tokens``), ``low`` and ``high`` (the
    smallest and largest of the class), ``num_steps``, ``mean_ms`` (mean residual), ``rmse_ms``, ``mape``.
    Classes hold about as many steps each."""
    skewness: float  # 0 for normal residuals
    excess_kurtosis: float  # the same
    jarque_bera_p: float  # probability of such a skewness and kurtosis if the noise were normal
    share_far: float  # share of the residuals beyond three RMSE; 0.27 % if the noise is normal
    autocorrelation: pd.Series[float]  # of the residuals in the order of the steps, lags from 1
    ljung_box_p: float  # probability of such autocorrelations if steps were independent

    @property
    def text(self) -> str:
        """Three sentences a person can paste: size, normality, autocorrelation."""
        worst = self.table.iloc[int(np.argmax(np.abs(self.table["mean_ms"].to_numpy(float))))]
        size = f"{worst['low']:,.0f} to {worst['high']:,.0f} {_SIZES[str(worst['by'])]}"
        first = float(self.autocorrelation.iloc[0])
        alike = f"lag-1 autocorrelation {first:.2f}, Ljung-Box p {_p(self.ljung_box_p)}"
        end = ": neighbouring steps are alike, so that standard errors are too small."
        end = end if first > _ALIKE else "."
        return (
            f"By size: the largest mean residual is {number(float(worst['mean_ms']))} ms, at {size}. "
            f"Normality: skewness {number(self.skewness)}, excess kurtosis {number(self.excess_kurtosis)}, "
            f"{percent(self.share_far, 2)} of the steps beyond three RMSE (normal: 0.27%), Jarque-Bera p "
            f"{_p(self.jarque_bera_p)}. "
            f"Autocorrelation: {alike}{end}"
        )


def analyse_residuals(steps: pd.DataFrame, predicted_ms: Floats) -> ResidualAnalysis:
    """Return the analysis of the residuals."""
    residual_ms = steps["latency_ms"].to_numpy(float) - predicted_ms
    spread = float(np.sqrt(np.mean(residual_ms**2)))
    varies = spread > 0.0 and float(np.ptp(residual_ms)) > 0.0
    autocorrelation = _autocorrelation(residual_ms) if varies else pd.Series([0.0], index=[1], name="r")
    by_size = [row for name in _SIZES for row in _by_size(steps, predicted_ms, name)]
    return ResidualAnalysis(
        residual_ms=residual_ms,
        table=pd.DataFrame(by_size),
        skewness=float(stats.skew(residual_ms)) if varies else 0.0,
        excess_kurtosis=float(stats.kurtosis(residual_ms)) if varies else 0.0,
        jarque_bera_p=float(stats.jarque_bera(residual_ms).pvalue) if varies else 1.0,
        share_far=float(np.mean(np.abs(residual_ms) > _FAR * spread)),
        autocorrelation=autocorrelation,
        ljung_box_p=_ljung_box(autocorrelation, len(residual_ms)) if varies else 1.0,
    )


def _by_size(steps: pd.DataFrame, predicted_ms: Floats, name: str) -> Iterator[dict[str, Any]]:
    size, observed_ms = steps[name].to_numpy(float), steps["latency_ms"].to_numpy(float)
    inner = np.unique(np.quantile(size, np.linspace(0.0, 1.0, _NUM_BINS + 1)[1:-1]))
    classes = np.searchsorted(inner, size, side="left")
    for number_of_class in np.unique(classes):
        inside = classes == number_of_class
        scores = Scores.of(observed_ms[inside], predicted_ms[inside])
        yield {
            "by": name,
            "low": size[inside].min(),
            "high": size[inside].max(),
            "num_steps": scores.num_steps,
            "mean_ms": -scores.bias_ms,
            "rmse_ms": scores.rmse_ms,
            "mape": scores.mape,
        }


def _autocorrelation(values: Floats) -> pd.Series[float]:
    centred = values - values.mean()
    lags = np.arange(1, max(2, min(_NUM_LAGS, len(values) // 5) + 1))
    products = [float(centred[lag:] @ centred[:-lag]) for lag in lags]
    return pd.Series(
        np.array(products) / float(centred @ centred), index=pd.Index(lags, name="lag"), name="r"
    )


def _ljung_box(autocorrelation: pd.Series[float], num_steps: int) -> float:
    lags = np.arange(1, len(autocorrelation) + 1)
    total = float(np.sum(np.asarray(autocorrelation) ** 2 / (num_steps - lags)))
    return float(stats.chi2.sf(num_steps * (num_steps + 2) * total, len(lags)))


def _p(probability: float) -> str:
    return "under 0.001" if probability < 0.001 else f"{probability:.3f}"
