"""Contenders by least squares: a line, and the documented model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import optimize, stats

from bayes_sched.scoring import Floats
from bayes_sched.validation.contender import Predict
from bayes_sched.validation.forecast import from_distribution
from bayes_sched.validation.servers import NO_LIMITS_MS

_STEP = ("batch_size", "total_tokens")


@dataclass(frozen=True)
class Line:
    """Least squares on a plane in B and S, Gaussian noise as wide as its residuals."""

    name: str = "line"
    columns: tuple[str, ...] = _STEP

    def fit(self, train: pd.DataFrame, *, seed: int) -> Predict:
        """Fit the plane; nothing is random."""
        observed_ms = train["latency_ms"].to_numpy(np.float64)
        plane, *_ = np.linalg.lstsq(_design(train), observed_ms)
        noise = gaussian_noise(observed_ms - _design(train) @ plane)
        return lambda steps: from_distribution(noise(_design(steps) @ plane), steps)


@dataclass(frozen=True)
class Baseline:
    """The documented least-squares model with the noise of its own residuals.

    Gaussian where squares are minimised; Student-t where the loss is robust, since the few long steps that
    it disregards would else widen every band.
    """

    name: str = "baseline"
    loss: Literal["linear", "huber"] = "linear"
    columns: tuple[str, ...] = _STEP

    def fit(self, train: pd.DataFrame, *, seed: int) -> Predict:
        """Fit the equation; nothing is random."""
        from bayes_sched.baseline import ThroughputSaturationModel

        low, high = NO_LIMITS_MS
        model = ThroughputSaturationModel(loss=self.loss, min_latency_ms=low, max_latency_ms=high)
        model.fit(train)

        def mean_ms(steps: pd.DataFrame) -> Floats:
            sizes = {name: steps[name].to_numpy(np.float64) for name in _STEP}
            return np.asarray(model.predict(**sizes), dtype=np.float64)

        spread = gaussian_noise if self.loss == "linear" else student_t_noise
        noise = spread(train["latency_ms"].to_numpy(np.float64) - mean_ms(train))
        return lambda steps: from_distribution(noise(mean_ms(steps)), steps)


def gaussian_noise(residual_ms: Floats) -> Callable[[Floats], Any]:
    """Return what turns means (ms, dims (row,)) into Gaussians as wide as the residuals."""
    scale = max(float(np.sqrt((residual_ms**2).mean())), 1e-6)
    return lambda mean_ms: stats.norm(mean_ms, scale)


def student_t_noise(residual_ms: Floats) -> Callable[[Floats], Any]:
    """Return what turns means (ms, dims (row,)) into Student-t distributions fitted to the residuals."""
    typical = max(float(np.median(np.abs(residual_ms))), 1e-6)

    def loss(logs: Floats) -> float:
        nu, scale = np.exp(logs)
        return -float(stats.t.logpdf(residual_ms, nu, scale=scale).sum())

    start = np.array([np.log(3.0), np.log(typical)])
    bounds = [(np.log(0.5), np.log(100.0)), (start[1] - 5.0, start[1] + 5.0)]
    nu, scale = np.exp(optimize.minimize(loss, start, method="Nelder-Mead", bounds=bounds).x)
    return lambda mean_ms: stats.t(nu, mean_ms, scale)


def _design(steps: pd.DataFrame) -> Floats:
    columns = [steps[name].to_numpy(np.float64) for name in _STEP]
    return np.column_stack([np.ones(len(steps)), *columns])
