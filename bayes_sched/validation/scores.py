"""Scores of a forecast as tidy rows, for all steps and for each regime."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayes_sched import scoring
from bayes_sched.validation.forecast import Forecast
from bayes_sched.validation.regimes import regime_masks

METRICS = {
    "crps_ms": "continuous ranked probability score, ms (less is better)",
    "log_score": "mean log predictive density, 1/ms (more is better)",
    "mape": "mean absolute percentage error of the point prediction, a share",
    "ape_p95": "95th percentile of the absolute percentage error, a share",
    "r2": "1 - mean squared error / variance",
    "rmse_ms": "root mean squared error, ms",
    "mae_ms": "mean absolute error, ms",
    "bias_ms": "mean of predicted minus observed, ms",
    "coverage_50": "share of steps in the 50 % band",
    "coverage_90": "share of steps in the 90 % band",
    "coverage_99": "share of steps in the 99 % band",
    "width_90_ms": "mean width of the 90 % band, ms",
}
"""Names and meanings; beside them ``pit_0`` to ``pit_9``, shares of the PIT in tenths, and ``below_LEVEL``,
the shares of steps at or below each predictive quantile."""


def scores_of(forecast: Forecast, observed_ms: scoring.Floats) -> dict[str, float]:
    """Return every metric of a forecast; a log score only where there is a density.

    Parameters
    ----------
    forecast : Forecast
    observed_ms : ndarray, dims (row,)
    """
    quantiles = forecast.quantiles_ms
    found = {"crps_ms": float(scoring.crps(observed_ms, quantiles).mean())}
    if forecast.log_density is not None:
        found["log_score"] = float(forecast.log_density.mean())
    found |= scoring.point_scores(observed_ms, forecast.point_ms)
    for probability in scoring.BANDS:
        name = f"coverage_{100 * probability:.0f}"
        found[name] = scoring.coverage(observed_ms, quantiles, probability=probability)
    lower, upper = (scoring.at_level(quantiles, level) for level in scoring.BANDS[0.9])
    found["width_90_ms"] = float((upper - lower).mean())
    found |= {f"pit_{bin}": float(x) for bin, x in enumerate(scoring.pit_histogram(forecast.cdf))}
    below = zip(scoring.LEVELS, scoring.share_below(observed_ms, quantiles), strict=True)
    return found | {f"below_{level:g}": float(share) for level, share in below}


def score_table(forecast: Forecast, test: pd.DataFrame, *, max_train_tokens: float) -> pd.DataFrame:
    """Return ``regime``, ``rows``, ``metric`` and ``value`` for each regime that the steps hold.

    Parameters
    ----------
    forecast : Forecast
    test : DataFrame
        The steps forecast.
    max_train_tokens : float
        Tokens of the largest training step.
    """
    observed_ms = test["latency_ms"].to_numpy(np.float64)
    rows = [
        {"regime": name, "rows": int(mask.sum()), "metric": metric, "value": value}
        for name, mask in regime_masks(test, max_train_tokens=max_train_tokens).items()
        for metric, value in scores_of(part_of(forecast, mask), observed_ms[mask]).items()
    ]
    return pd.DataFrame(rows)


def part_of(forecast: Forecast, mask: NDArray[np.bool_]) -> Forecast:
    """Return the forecast of some of the steps; `mask` has dims (row,)."""
    return Forecast(
        quantiles_ms=forecast.quantiles_ms[mask],
        point_ms=forecast.point_ms[mask],
        cdf=forecast.cdf[mask],
        log_density=None if forecast.log_density is None else forecast.log_density[mask],
        converged=forecast.converged,
    )
