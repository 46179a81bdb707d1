"""The least-squares optimum of the saturation equation, by `scipy.optimize.curve_fit`.

Requests and tokens are divided by their medians for the search, so that all parameters are of similar size,
and the optimum is given in raw units. Every parameter is bounded by 0 below and free above.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import OptimizeWarning, curve_fit

from bayes_sched.equation import PARAMETERS, latency_ms
from bayes_sched.errors import InputError

type Floats = NDArray[np.float64]

NAMES = tuple(p.name for p in PARAMETERS)

HUBER_SCALES = 1.345
"""Residuals beyond so many robust standard deviations count linearly: 95 % efficient for normal noise."""

_MAX_EVALUATIONS = 5000
_TOLERANCE = 1e-10
_ROUNDS = 3
_MAD_OF_NORMAL = 0.6744897501960817  # median absolute deviation of a standard normal
_LEAST_SLOPE = 1e-3  # where T does not grow with S: the lower end of w_1's documented range


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimum:
    """Where the search ended.

    Attributes
    ----------
    parameters, initial : dict of str to float
        Of :data:`~bayes_sched.equation.PARAMETERS`, raw units; at the end and at the start.
    huber_ms : float or None
        Residuals beyond this count linearly (ms); None with the linear loss.
    num_evaluations : int
        Evaluations of the equation over all steps, those for derivatives apart.
    """

    parameters: dict[str, float]
    initial: dict[str, float]
    huber_ms: float | None
    num_evaluations: int


def optimise(steps: pd.DataFrame, *, huber: bool) -> Optimum:
    """Return the least-squares optimum, from the documented start.

    Parameters
    ----------
    steps : DataFrame
        ``batch_size``, ``total_tokens`` and ``latency_ms``, cleaned.
    huber : bool
        Whether large residuals count linearly. How large is taken from the residuals' median absolute
        deviation, first that of the plain optimum, then twice that of the Huber optimum itself; each search
        goes on from where the one before ended.

    Raises
    ------
    InputError
        The search does not end.
    """
    start = initial_values(steps)
    parameters, num_evaluations = _search(steps, start, huber_ms=None)
    huber_ms = None
    for _ in range(_ROUNDS if huber else 0):
        huber_ms = HUBER_SCALES * _robust_scale(residuals_ms(steps, parameters))
        parameters, more = _search(steps, parameters, huber_ms=huber_ms)
        num_evaluations += more
    return Optimum(parameters=parameters, initial=start, huber_ms=huber_ms, num_evaluations=num_evaluations)


def initial_values(steps: pd.DataFrame) -> dict[str, float]:
    """Return the documented start of the search, raw units."""
    total_tokens, latency = steps["total_tokens"].to_numpy(float), steps["latency_ms"].to_numpy(float)
    centred = total_tokens - total_tokens.mean()
    slope = float(centred @ latency / max(float(centred @ centred), 1.0))
    return {
        "P_max": float(np.quantile(total_tokens / latency, 0.95)),
        "k_B": 0.1,
        "k_S": 0.01,
        "w_0": 0.1,
        "w_1": max(slope, _LEAST_SLOPE),
        "tau_0": 0.5 * float(latency.min()),
        "tau_B": 1e-3,
        "tau_S": 1e-3,
    }


def residuals_ms(steps: pd.DataFrame, parameters: dict[str, float]) -> Floats:
    """Return observed minus predicted latency, ms, dims (step,)."""
    batch_size, total_tokens, latency = (
        steps[name].to_numpy(float) for name in ("batch_size", "total_tokens", "latency_ms")
    )
    residuals: Floats = latency - latency_ms(batch_size, total_tokens, **parameters)
    return residuals


def loss_ms2(residuals: Floats, huber_ms: float | None) -> float:
    """Return the sum that the search makes small, ms²: of squares, or Huber's, which is alike near 0."""
    size = np.abs(residuals)
    if huber_ms is None:
        return float(size @ size)
    return float(np.where(size <= huber_ms, size**2, huber_ms * (2.0 * size - huber_ms)).sum())


def raw_units(median_batch_size: float, median_total_tokens: float) -> Floats:
    """Return what turns parameters of the scaled steps into raw units, dims (parameter,), as `NAMES`."""
    factors = {
        "k_B": 1.0 / median_batch_size,
        "tau_B": 1.0 / median_batch_size,
        "k_S": 1.0 / median_total_tokens,
        "w_1": 1.0 / median_total_tokens,
        "tau_S": 1.0 / median_total_tokens,
    }
    return np.array([factors.get(name, 1.0) for name in NAMES])


def _search(
    steps: pd.DataFrame, start: dict[str, float], *, huber_ms: float | None
) -> tuple[dict[str, float], int]:
    batch_size, total_tokens = (steps[name].to_numpy(float) for name in ("batch_size", "total_tokens"))
    medians = _medians(steps)
    units = raw_units(*medians)
    loss: dict[str, Any] = {} if huber_ms is None else {"loss": "huber", "f_scale": huber_ms}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # What it warns of, a covariance that does not exist, is always so here; `uncertainty` says of what.
        warnings.simplefilter("ignore", OptimizeWarning)
        try:
            found, _, info, _, _ = curve_fit(
                _latency,
                np.stack([batch_size / medians[0], total_tokens / medians[1]]),
                steps["latency_ms"].to_numpy(float),
                p0=np.array([start[name] for name in NAMES]) / units,
                bounds=(0.0, np.inf),
                method="trf",
                jac="cs",  # finite differences are too coarse for the flat valleys of this equation
                x_scale="jac",
                ftol=_TOLERANCE,
                xtol=_TOLERANCE,
                gtol=_TOLERANCE,
                max_nfev=_MAX_EVALUATIONS,
                full_output=True,
                **loss,
            )
        except RuntimeError as error:
            raise InputError(
                f"least squares found no optimum of {len(steps):,} steps within {_MAX_EVALUATIONS:,} "
                "evaluations: give more steps, or steps of more sizes"
            ) from error
    values = (float(value) for value in found * units)
    return dict(zip(NAMES, values, strict=True)), int(info["nfev"])


def _medians(steps: pd.DataFrame) -> tuple[float, float]:
    return float(steps["batch_size"].median()), float(steps["total_tokens"].median())


def _latency(scaled: Any, *values: Any) -> Any:
    return latency_ms(scaled[0], scaled[1], **dict(zip(NAMES, values, strict=True)))


def _robust_scale(residuals: Floats) -> float:
    """Return the standard deviation that the middle half of the residuals suggests, ms, above 0."""
    return max(float(np.median(np.abs(residuals))) / _MAD_OF_NORMAL, 1e-6)
