"""What point predictions leave unexplained: by size of the step, against normal noise, from step to step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bayes_sched.arrays import Floats
from bayes_sched.checks.scores import Scores
from bayes_sched.format import number, percent

_SIZES = {"batch_size": "requests", "total_tokens": "tokens"}
_NUM_BINS = 6
_NUM_LAGS = 20
_FAR = 3.0
_NORMAL_FAR = 0.0027
_ALIKE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResidualAnalysis:
    """Residuals of point predictions, observed minus predicted.

    Attributes
    ----------
    residual_ms : ndarray, dims (step,)
    table : DataFrame
        One row a class of steps: ``by`` (``batch_size`` or ``total_tokens``), ``low`` and ``high`` (the
        smallest and largest of the class), ``num_steps``, ``mean_ms`` (mean residual), ``rmse_ms``, ``mape``.
        Classes hold about as many steps each.
    skewness, excess_kurtosis : float
        0 for normal residuals.
    jarque_bera_p : float
        Probability of such a skewness and kurtosis if the noise were normal.
    share_far : float
        Share of the residuals beyond three RMSE; 0.27 % if the noise is normal.
    autocorrelation : Series, index ``lag``
        Of the residuals in the order of the steps, lags from 1.
    ljung_box_p : float
        Probability of such autocorrelations if steps were independent.
    """

    residual_ms: Floats
    table: pd.DataFrame
    skewness: float
    excess_kurtosis: float
    jarque_bera_p: float
    share_far: float
    autocorrelation: pd.Series[float]
    ljung_box_p: float

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
