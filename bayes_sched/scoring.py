r"""Proper scores of predictive distributions, and what else is said of predictions of steps that were seen.

A predictive distribution is a row of quantiles at `LEVELS`. Its continuous ranked probability score is

.. math::

    \mathrm{CRPS}(F, y) = 2 \int_0^1 (\mathbf{1}\{y \le F^{-1}(\tau)\} - \tau)(F^{-1}(\tau) - y)\, d\tau
    \approx 2 \sum_k w_k\, (\mathbf{1}\{y \le q_k\} - \tau_k)(q_k - y),

the average pinball loss, with :math:`w_k` the share of (0, 1) that is nearest to the level :math:`\tau_k`.
Whatever the weights, the sum is a proper score of the quantiles at these levels: heavy tails beyond the
outermost level and models that know nothing but quantiles are treated alike. In ms; less is better. Gneiting
and Raftery (2007), Journal of the American Statistical Association 102, 359-378, sections 4.2 and 6.

Shapes are named as dims: ``row`` are steps, ``level`` are `LEVELS`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

type Floats = NDArray[np.float64]

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
    """Return the pinball loss of each quantile, ms, dims (row, level).

    Parameters
    ----------
    observed_ms : ndarray, dims (row,)
    quantiles_ms : ndarray, dims (row, level)
    levels : ndarray, dims (level,)
    """
    excess = observed_ms[:, None] - quantiles_ms
    loss: Floats = np.maximum(levels * excess, (levels - 1.0) * excess)
    return loss


def crps(observed_ms: Floats, quantiles_ms: Floats, *, levels: Floats = LEVELS) -> Floats:
    """Return the continuous ranked probability score of each step, ms, dims (row,).

    Parameters
    ----------
    observed_ms : ndarray, dims (row,)
    quantiles_ms : ndarray, dims (row, level)
    levels : ndarray, dims (level,)
    """
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
    """Return the share of probability integral transforms in each of equal bins, dims (bin,): even is good.

    Parameters
    ----------
    cdf : ndarray, dims (row,)
        The predictive distribution function of each step at its observed latency.
    num_bins : int
    """
    counts, _ = np.histogram(np.clip(cdf, 0.0, 1.0), bins=num_bins, range=(0.0, 1.0))
    shares: Floats = counts / max(len(cdf), 1)
    return shares


def point_scores(observed_ms: Floats, predicted_ms: Floats) -> dict[str, float]:
    """Return what is said of predictions that are single numbers.

    Parameters
    ----------
    observed_ms, predicted_ms : ndarray, dims (row,)

    Returns
    -------
    dict
        ``mape`` and ``ape_p95`` (mean and 95th percentile of the absolute error relative to the observed
        latency), ``r2`` (NaN where the observed latencies do not vary), ``rmse_ms``, ``mae_ms``, ``bias_ms``
        (predicted minus observed, on average).
    """
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
