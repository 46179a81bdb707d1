"""What a contender says of steps: predictive quantiles, a point, and where the observed latency lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bayes_sched.errors import InputError
from bayes_sched.scoring import LEVELS, Floats, at_level


@dataclass(frozen=True, kw_only=True, eq=False)
class Forecast:
    """Predictions for a table of steps whose latencies are known to the judge.

    Attributes
    ----------
    quantiles_ms : ndarray, dims (row, level)
        At `bayes_sched.scoring.LEVELS`, not decreasing along them.
    point_ms : ndarray, dims (row,)
        The prediction as a single number.
    cdf : ndarray, dims (row,)
        Predictive probability of at most the observed latency.
    log_density : ndarray, dims (row,), or None
        Logarithm of the predictive density at the observed latency, 1/ms; None for a contender without one.
    converged : bool or None
        Whether the fit passed its convergence gate; None for a contender without a gate.

    Raises
    ------
    InputError
        The shapes do not agree, a prediction is not finite, or quantiles cross.
    """

    quantiles_ms: Floats
    point_ms: Floats
    cdf: Floats
    log_density: Floats | None = None
    converged: bool | None = None

    def __post_init__(self) -> None:
        num_rows = len(self.point_ms)
        if self.quantiles_ms.shape != (num_rows, len(LEVELS)) or self.cdf.shape != (num_rows,):
            raise InputError(
                f"a forecast of {num_rows:,} steps has quantiles {self.quantiles_ms.shape} and probabilities "
                f"{self.cdf.shape}: give one row a step and {len(LEVELS)} levels"
            )
        if not all(np.isfinite(values).all() for values in (self.quantiles_ms, self.point_ms, self.cdf)):
            raise InputError("a forecast holds numbers that are not finite")
        if (np.diff(self.quantiles_ms, axis=1) < 0.0).any():
            raise InputError("the quantiles of a forecast decrease along their levels")


def from_distribution(distribution: Any, steps: pd.DataFrame) -> Forecast:
    """Return the forecast of a distribution for each step; the point is the median.

    Parameters
    ----------
    distribution : frozen continuous distribution of scipy.stats
        Its parameters are scalars or arrays with dims (row,), ms.
    steps : DataFrame
        ``latency_ms``.
    """
    observed_ms = steps["latency_ms"].to_numpy(np.float64)
    quantiles_ms = np.broadcast_to(distribution.ppf(LEVELS[:, None]).T, (len(steps), len(LEVELS)))
    return from_quantiles(
        np.maximum(quantiles_ms, 0.0),
        cdf=distribution.cdf(observed_ms),
        log_density=distribution.logpdf(observed_ms),
    )


def from_quantiles(
    quantiles_ms: Floats,
    steps: pd.DataFrame | None = None,
    *,
    cdf: Floats | None = None,
    log_density: Floats | None = None,
    converged: bool | None = None,
) -> Forecast:
    """Return the forecast with these quantiles; the point is the median.

    Parameters
    ----------
    quantiles_ms : ndarray, dims (row, level)
    steps : DataFrame, optional
        ``latency_ms``; needed without `cdf`, which is then interpolated between the quantiles, and outside
        them the middle of the tail.
    cdf, log_density : ndarray, dims (row,), optional
    converged : bool, optional
    """
    if cdf is None:
        if steps is None:
            raise InputError("a forecast by quantiles alone needs the steps, for their observed latencies")
        cdf = _interpolated_cdf(quantiles_ms, steps["latency_ms"].to_numpy(np.float64))
    return Forecast(
        quantiles_ms=quantiles_ms,
        point_ms=at_level(quantiles_ms, 0.5),
        cdf=cdf,
        log_density=log_density,
        converged=converged,
    )


def _interpolated_cdf(quantiles_ms: Floats, observed_ms: Floats) -> Floats:
    tails = {"left": 0.5 * LEVELS[0], "right": 0.5 * (1.0 + LEVELS[-1])}
    pairs = zip(observed_ms, quantiles_ms, strict=True)
    return np.array([np.interp(x, row, LEVELS, **tails) for x, row in pairs])
