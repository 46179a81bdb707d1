r"""Least squares on the saturation equation: the search, what sits at a bound, and standard errors.

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

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import OptimizeWarning, curve_fit

from bayes_sched.arrays import Floats
from bayes_sched.checks.scores import Scores
from bayes_sched.errors import InputError
from bayes_sched.format import listed
from bayes_sched.model.equation import PARAMETERS, latency_ms
from bayes_sched.region import Region, region_of
from bayes_sched.steps import as_steps
from bayes_sched.trace.cleaning import clean_steps

NAMES = tuple(p.name for p in PARAMETERS)
RATIOS = {"a_0": "w_0", "a_1": "w_1"}
"""Ratios that data identify, each the parameter named over P_max: ms and ms/token."""
QUANTITIES = (*NAMES, *RATIOS)
MIN_STEPS = 2 * len(NAMES)
"""Fewer steps than this are not fitted: two for each parameter."""
HUBER_SCALES = 1.345
"""Residuals beyond so many robust standard deviations count linearly: 95 % efficient for normal noise."""
ZERO, INFINITY, NOWHERE = "0", "infinity", "undetermined"
"""Where a parameter sits; the last: the work of a step is 0, so that its speed has no effect."""

_SIZES = ("batch_size", "total_tokens")
_COLUMNS = (*_SIZES, "latency_ms")
_RATES, _WORKS = ("k_B", "k_S"), ("w_0", "w_1")

_MAX_EVALUATIONS = 5000
_TOLERANCE = 1e-10
_ROUNDS = 3
_MAD_OF_NORMAL = 0.6744897501960817  # median absolute deviation of a standard normal
_LEAST_SLOPE = 1e-3  # where T does not grow with S: the lower end of w_1's documented range
_NO_MATTER = 0.01
_LEAST_VARIANCE_MS2 = 1e-8
_NULL = 1e-7
_NEARLY_NULL = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solution:
    """A least-squares fit: parameters in raw units, at the end of the search and at its start.

    Residuals beyond `huber_ms` count linearly (None: with the plain loss); `at_bound` says which parameters
    sit at which bound; `covariance` has dims (quantity, quantity); `num_evaluations` leaves derivatives out.
    """

    parameters: dict[str, float]
    initial: dict[str, float]
    huber_ms: float | None
    num_evaluations: int
    at_bound: dict[str, str]
    covariance: pd.DataFrame
    scores: Scores
    region: Region
    warnings: tuple[str, ...]


def solve(steps: pd.DataFrame, *, huber: bool, min_latency_ms: float, max_latency_ms: float) -> Solution:
    """Clean steps and fit the equation to what is left, from the documented start.

    How large a residual has to be to count linearly is taken from the median absolute deviation, first that
    of the plain optimum, then twice that of the Huber optimum; each search goes on from the one before.
    """
    cleaned = clean_steps(checked_steps(steps), min_latency_ms=min_latency_ms, max_latency_ms=max_latency_ms)
    table = possible_steps(cleaned.steps)
    if len(table) < MIN_STEPS:
        raise InputError(
            f"{len(table)} steps are too few for {len(NAMES)} parameters: give at least {MIN_STEPS} "
            f"({cleaned.text})"
        )
    initial, huber_ms = initial_values(table), None
    parameters, num_evaluations = _search(table, initial, huber_ms)
    for _ in range(_ROUNDS if huber else 0):
        spread_ms = float(np.median(np.abs(residuals_ms(table, parameters)))) / _MAD_OF_NORMAL
        huber_ms = HUBER_SCALES * max(spread_ms, 1e-6)
        parameters, more = _search(table, parameters, huber_ms)
        num_evaluations += more
    places = at_bound(table, parameters, huber_ms)
    table_of_covariance = covariance(table, parameters, huber_ms, places)
    observed_ms = table["latency_ms"].to_numpy()
    return Solution(
        parameters=parameters,
        initial=initial,
        huber_ms=huber_ms,
        num_evaluations=num_evaluations,
        at_bound=places,
        covariance=table_of_covariance,
        scores=Scores.of(observed_ms, observed_ms - residuals_ms(table, parameters)),
        region=region_of(*(table[name].to_numpy() for name in _SIZES)),
        warnings=(*cleaned.warnings, *_warnings(table, places, table_of_covariance)),
    )


def _warnings(steps: pd.DataFrame, bounds: dict[str, str], covariance: pd.DataFrame) -> list[str]:
    found, num_sizes = [], len(steps[list(_SIZES)].drop_duplicates())
    if num_sizes < len(NAMES):
        found.append(f"the steps have {num_sizes} different (B, S): too few to tell eight parameters apart")
    scale = [name for name in ("P_max", "w_0", "w_1") if name not in bounds]
    is_open = np.isinf(np.diag(covariance.to_numpy()))
    others = [str(name) for name in covariance.index[is_open] if name not in scale]
    if len(scale) > 1 and "P_max" in scale:
        ratios = [f"{name}/P_max" for name in scale[1:]]
        found.append(
            f"{listed(scale)} have no standard errors: the latency depends on {listed(ratios)} alone, "
            "and their common scale is where the search happened to end"
        )
    if others:
        found.append(f"{listed(others)}: no standard error, the steps do not identify it")
    if bounds:
        places = [f"{name} at {place}" for name, place in bounds.items() if place != NOWHERE]
        places += [f"{name} anywhere" for name, place in bounds.items() if place == NOWHERE]
        found.append(f"{listed(places)}: standard errors of the others hold them there")
    return found


def checked_steps(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the three columns of a table of steps as floats."""
    if not isinstance(steps, pd.DataFrame):
        raise InputError(f"steps are a DataFrame with {listed(list(_COLUMNS))}, not {type(steps).__name__}")
    missing = [name for name in _COLUMNS if name not in steps]
    if missing:
        raise InputError(f"the steps have no {listed(missing)}; a fit needs {listed(list(_COLUMNS))}")
    if not len(steps):
        raise InputError("the table of steps is empty")
    try:
        table = steps[list(_COLUMNS)].astype(float).reset_index(drop=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"steps are made of numbers ({error})") from error
    for name in _COLUMNS:
        values = table[name].to_numpy()
        wrong = ~np.isfinite(values) | (values < 0.0)
        if wrong.any():
            first = int(np.argmax(wrong))
            raise InputError(
                f"{name} is {values[first]:g} in row {first} ({int(wrong.sum()):,} of {len(values):,} rows "
                "are below 0 or no finite number): requests, tokens and latencies are positive"
            )
    return table


def possible_steps(steps: pd.DataFrame) -> pd.DataFrame:
    """Return checked steps, each of which can be predicted and compared with its latency."""
    table = checked_steps(steps)
    if not (table["latency_ms"] > 0.0).all():
        raise InputError("some latencies are 0: clean_steps removes idle steps")
    try:
        as_steps(table)
    except InputError as error:
        raise InputError(f"{error}; clean_steps removes idle steps") from error
    return table


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
    batch_size, total_tokens, latency = (steps[name].to_numpy(float) for name in _COLUMNS)
    residuals: Floats = latency - latency_ms(batch_size, total_tokens, **parameters)
    return residuals


def _loss_ms2(steps: pd.DataFrame, parameters: dict[str, float], huber_ms: float | None) -> float:
    """Return the sum that the search makes small, ms²: of squares, or Huber's, which is alike near 0."""
    size = np.abs(residuals_ms(steps, parameters))
    if huber_ms is None:
        return float(size @ size)
    return float(np.where(size <= huber_ms, size**2, huber_ms * (2.0 * size - huber_ms)).sum())


def _search(
    steps: pd.DataFrame, start: dict[str, float], huber_ms: float | None
) -> tuple[dict[str, float], int]:
    """Return parameters where the loss is least, and evaluations; it sees steps over their medians."""
    batch_size, total_tokens = (steps[name].to_numpy(float) for name in _SIZES)
    medians = _medians(steps)
    per_b, per_s = 1.0 / medians[0], 1.0 / medians[1]
    factors = {"k_B": per_b, "tau_B": per_b, "k_S": per_s, "w_1": per_s, "tau_S": per_s}
    units = np.array([factors.get(name, 1.0) for name in NAMES])
    loss: dict[str, Any] = {} if huber_ms is None else {"loss": "huber", "f_scale": huber_ms}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # What it warns of, a covariance that does not exist, is always so here; `covariance` says of what.
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


def with_ratios(parameters: dict[str, float]) -> dict[str, float]:
    """Return the parameters and the ratios that data identify."""
    return parameters | {ratio: parameters[work] / parameters["P_max"] for ratio, work in RATIOS.items()}


def at_bound(steps: pd.DataFrame, here: dict[str, float], huber_ms: float | None) -> dict[str, str]:
    """Return the parameters that sit at a bound, and which: `ZERO`, `INFINITY` or `NOWHERE`."""
    loss = _loss_ms2(steps, here, huber_ms)
    variance = max(loss / (len(steps) - len(NAMES)), _LEAST_VARIANCE_MS2)

    def is_as_good(changes: dict[str, float]) -> bool:
        return _loss_ms2(steps, here | changes, huber_ms) - loss < _NO_MATTER * variance

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


def covariance(
    steps: pd.DataFrame, parameters: dict[str, float], huber_ms: float | None, bounds: dict[str, str]
) -> pd.DataFrame:
    """Return the sandwich covariance of the parameters and of the ratios that data identify."""
    free = [name for name in NAMES if name not in bounds]
    jacobian = _log_jacobian(steps, parameters, free)
    norms = np.linalg.norm(jacobian, axis=0)
    norms[norms == 0.0] = 1.0
    gradients = _log_gradients(with_ratios(parameters), free) / norms
    left, singular, right = np.linalg.svd(jacobian / norms, full_matrices=False)
    is_known = singular > _NULL * singular[0]
    left, singular, known, unknown = left[:, is_known], singular[is_known], right[is_known], right[~is_known]
    half = (gradients @ known.T) / singular
    table: Floats = half @ _middle(left, residuals_ms(steps, parameters), huber_ms, len(free)) @ half.T
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
    batch_size, total_tokens = (steps[name].to_numpy(float) for name in _SIZES)
    step = 1e-20j  # a complex step loses no digits, however small
    columns = [
        latency_ms(batch_size, total_tokens, **(parameters | {name: parameters[name] * (1.0 + step)})).imag
        for name in names
    ]
    jacobian: Floats = np.stack(columns, axis=1) / step.imag
    return jacobian


def _log_gradients(quantities: dict[str, float], names: list[str]) -> Floats:
    """Return derivatives of the quantities by the parameters' logarithms, dims (quantity, parameter)."""
    own = [[float(name == RATIOS.get(quantity, quantity)) for name in names] for quantity in QUANTITIES]
    over = [[float(quantity in RATIOS and name == "P_max") for name in names] for quantity in QUANTITIES]
    values = np.array([quantities[name] for name in QUANTITIES])
    gradients: Floats = (np.array(own) - np.array(over)) * values[:, None]
    return gradients


def _middle(left: Floats, residuals: Floats, huber_ms: float | None, num_free: int) -> Floats:
    """Return the sandwich in the orthogonal coordinates of the Jacobian's left singular vectors."""
    limit = np.inf if huber_ms is None else huber_ms
    weights = (np.abs(residuals) <= limit).astype(float)
    scores = np.clip(residuals, -limit, limit)
    bread = np.linalg.pinv(left.T @ (weights[:, None] * left))
    filling = left.T @ (scores[:, None] ** 2 * left)
    middle: Floats = len(residuals) / (len(residuals) - num_free) * bread @ filling @ bread
    return middle
