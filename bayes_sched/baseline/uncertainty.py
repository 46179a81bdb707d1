r"""What a least-squares optimum says of each parameter: where it sits at a bound, and its standard error.

**Bounds.** A parameter sits at a bound if the fit is as good with the parameter on it: moving it there raises
the loss by less than a hundredth of the residual variance, which is a tenth of a standard error. A
saturation rate has two: infinity (every step seen is saturated), and 0 (no step is: the factor is k B or k S,
and only the works divided by the rate are known).

**Standard errors.** The sandwich covariance :math:`A^{-1} B A^{-1}` with :math:`A = J' W J` and
:math:`B = J' \psi^2 J`, which stays right where the noise grows with the latency (Huber 1967, White 1980). It
takes steps as independent: where neighbours are alike (see the residual analysis) it is too small. P_max,
w_0 and w_1 scale together without any change of the latency, so that the covariance of the eight is singular:
they have no standard error (infinity), and a_0 = w_0/P_max and a_1 = w_1/P_max have one.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from bayes_sched.baseline.least_squares import NAMES, Floats, Optimum, loss_ms2, residuals_ms
from bayes_sched.equation import latency_ms

RATIOS = {"a_0": "w_0", "a_1": "w_1"}
"""Ratios that data identify, each the parameter named over P_max: ms and ms/token."""
QUANTITIES = (*NAMES, *RATIOS)

ZERO, INFINITY, NOWHERE = "0", "infinity", "undetermined"
"""Where a parameter sits; the last: the work of a step is 0, so that its speed has no effect."""

_RATES = ("k_B", "k_S")
_WORKS = ("w_0", "w_1")
_NO_MATTER = 0.01
_LEAST_VARIANCE_MS2 = 1e-8
_NULL = 1e-7
_NEARLY_NULL = 1e-4


def with_ratios(parameters: dict[str, float]) -> dict[str, float]:
    """Return the parameters and the ratios that data identify."""
    return parameters | {ratio: parameters[work] / parameters["P_max"] for ratio, work in RATIOS.items()}


def at_bound(steps: pd.DataFrame, optimum: Optimum) -> dict[str, str]:
    """Return the parameters that sit at a bound, and which: :data:`ZERO`, :data:`INFINITY`, :data:`NOWHERE`.

    Parameters
    ----------
    steps : DataFrame
        Those of the fit.
    optimum : Optimum
    """
    here = optimum.parameters
    loss = loss_ms2(residuals_ms(steps, here), optimum.huber_ms)
    variance = max(loss / (len(steps) - len(NAMES)), _LEAST_VARIANCE_MS2)

    def is_as_good(changes: dict[str, float]) -> bool:
        moved = loss_ms2(residuals_ms(steps, here | changes), optimum.huber_ms)
        return moved - loss < _NO_MATTER * variance

    zero = {name: ZERO for name in NAMES if name not in (*_RATES, "P_max") and is_as_good({name: 0.0})}
    if is_as_good(dict.fromkeys(_WORKS, 0.0)):
        return dict.fromkeys(("P_max", *_RATES), NOWHERE) | zero
    tiny = 1e-6
    for rate in _RATES:
        if is_as_good({rate: np.inf}):
            zero[rate] = INFINITY
        elif is_as_good({name: tiny * here[name] for name in (rate, *_WORKS)}):
            zero[rate] = ZERO
    return {name: zero[name] for name in NAMES if name in zero}


def covariance(steps: pd.DataFrame, optimum: Optimum, bounds: dict[str, str]) -> pd.DataFrame:
    """Return the sandwich covariance of the parameters and of the ratios that data identify.

    Parameters
    ----------
    steps : DataFrame
        Those of the fit.
    optimum : Optimum
    bounds : dict of str to str
        From :func:`at_bound`. What sits at a bound is held where it is.

    Returns
    -------
    DataFrame, dims (quantity, quantity), raw units
        NaN for what is held at a bound; for what the steps do not identify, infinite on the diagonal and NaN
        beside it.
    """
    free = [name for name in NAMES if name not in bounds]
    jacobian = _log_jacobian(steps, optimum.parameters, free)
    norms = np.linalg.norm(jacobian, axis=0)
    norms[norms == 0.0] = 1.0
    gradients = _log_gradients(with_ratios(optimum.parameters), free) / norms
    left, singular, right = np.linalg.svd(jacobian / norms, full_matrices=False)
    is_known = singular > _NULL * singular[0]
    left, singular, known, unknown = left[:, is_known], singular[is_known], right[is_known], right[~is_known]
    half = (gradients @ known.T) / singular
    table: Floats = half @ _middle(left, steps, optimum, num_free=len(free)) @ half.T
    lengths = np.maximum(np.linalg.norm(gradients, axis=1), np.finfo(float).tiny)
    is_open = np.linalg.norm(gradients @ unknown.T, axis=1) > _NEARLY_NULL * lengths
    is_held = np.array([RATIOS.get(name, name) in bounds for name in QUANTITIES])
    if any(bounds.get(rate) == ZERO for rate in _RATES):  # only the works divided by that rate are known
        is_open |= np.isin(QUANTITIES, list(RATIOS))
    table[is_open | is_held, :] = table[:, is_open | is_held] = np.nan
    table[is_open & ~is_held, is_open & ~is_held] = np.inf
    return pd.DataFrame(table, index=list(QUANTITIES), columns=list(QUANTITIES))


def _log_jacobian(steps: pd.DataFrame, parameters: dict[str, float], names: list[str]) -> Floats:
    """Return derivatives of the latency by the parameters' logarithms, ms, dims (step, parameter)."""
    batch_size, total_tokens = (steps[name].to_numpy(float) for name in ("batch_size", "total_tokens"))
    step = 1e-20j  # a complex step loses no digits, however small
    columns = [
        latency_ms(batch_size, total_tokens, **(parameters | {name: parameters[name] * (1.0 + step)})).imag
        for name in names
    ]
    jacobian: Floats = np.stack(columns, axis=1) / step.imag
    return jacobian


def _log_gradients(quantities: dict[str, float], names: list[str]) -> Floats:
    """Return derivatives of the quantities by the parameters' logarithms, dims (quantity, parameter)."""
    exponents = np.zeros((len(QUANTITIES), len(names)))
    for row, quantity in enumerate(QUANTITIES):
        for column, name in enumerate(names):
            if quantity in RATIOS:
                exponents[row, column] = (name == RATIOS[quantity]) - (name == "P_max")
            else:
                exponents[row, column] = name == quantity
    values = np.array([quantities[name] for name in QUANTITIES])
    gradients: Floats = exponents * values[:, None]
    return gradients


def _middle(left: Floats, steps: pd.DataFrame, optimum: Optimum, *, num_free: int) -> Floats:
    """Return the sandwich in the orthogonal coordinates of the Jacobian's left singular vectors."""
    residuals = residuals_ms(steps, optimum.parameters)
    limit = np.inf if optimum.huber_ms is None else optimum.huber_ms
    weights = (np.abs(residuals) <= limit).astype(float)
    scores = np.clip(residuals, -limit, limit)
    bread = np.linalg.pinv(left.T @ (weights[:, None] * left))
    filling = left.T @ (scores[:, None] ** 2 * left)
    correction = len(steps) / (len(steps) - num_free)
    middle: Floats = correction * bread @ filling @ bread
    return middle
