"""All that a least-squares fit leaves behind: what a fitted estimator holds, and what is saved of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bayes_sched.baseline import uncertainty
from bayes_sched.baseline.least_squares import NAMES, Optimum, optimise, residuals_ms
from bayes_sched.baseline.scores import Scores
from bayes_sched.errors import InputError
from bayes_sched.numbers import listed
from bayes_sched.region import Region
from bayes_sched.steps import as_steps
from bayes_sched.trace import clean_steps

MIN_STEPS = 2 * len(NAMES)
"""Fewer steps than this are not fitted: two for each parameter."""

_LATENCY = "latency_ms"
_COLUMNS = ("batch_size", "total_tokens", _LATENCY)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solution:
    """A least-squares fit.

    Attributes
    ----------
    optimum : Optimum
    at_bound : dict of str to str
        Parameters that sit at a bound, and which.
    covariance : DataFrame, dims (quantity, quantity)
    scores : Scores
        On the steps of the fit.
    region : Region
        The (B, S) that the steps cover.
    warnings : tuple of str
    """

    optimum: Optimum
    at_bound: dict[str, str]
    covariance: pd.DataFrame
    scores: Scores
    region: Region
    warnings: tuple[str, ...]


def checked_steps(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the three columns of a table of steps as floats.

    Raises
    ------
    InputError
        What is given is no table, lacks a column, or holds a value that is no finite number, or below 0.
    """
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
    """Return checked steps, each of which can be predicted and compared with its latency.

    Raises
    ------
    InputError
        As :func:`checked_steps`, or a step is idle or impossible.
    """
    table = checked_steps(steps)
    if not (table[_LATENCY] > 0.0).all():
        raise InputError("some latencies are 0: clean_steps removes idle steps")
    try:
        as_steps(table)
    except InputError as error:
        raise InputError(f"{error}; clean_steps removes idle steps") from error
    return table


def solve(steps: pd.DataFrame, *, huber: bool, min_latency_ms: float, max_latency_ms: float) -> Solution:
    """Clean steps and fit the equation to what is left.

    Raises
    ------
    InputError
        The steps cannot be used, or too few are left.
    """
    cleaned = clean_steps(checked_steps(steps), min_latency_ms=min_latency_ms, max_latency_ms=max_latency_ms)
    table = possible_steps(cleaned.steps)
    if len(table) < MIN_STEPS:
        raise InputError(
            f"{len(table)} steps are too few for {len(NAMES)} parameters: give at least {MIN_STEPS} "
            f"({cleaned.text})"
        )
    optimum = optimise(table, huber=huber)
    bounds = uncertainty.at_bound(table, optimum)
    covariance = uncertainty.covariance(table, optimum, bounds)
    num_sizes = len(table[["batch_size", "total_tokens"]].drop_duplicates())
    observed_ms = table[_LATENCY].to_numpy()
    return Solution(
        optimum=optimum,
        at_bound=bounds,
        covariance=covariance,
        scores=Scores.of(observed_ms, observed_ms - residuals_ms(table, optimum.parameters)),
        region=Region.of(table["batch_size"].to_numpy(), table["total_tokens"].to_numpy()),
        warnings=(*cleaned.warnings, *_warnings(bounds, covariance, num_sizes)),
    )


def _warnings(bounds: dict[str, str], covariance: pd.DataFrame, num_sizes: int) -> list[str]:
    found = []
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
        places = [f"{name} at {place}" for name, place in bounds.items() if place != uncertainty.NOWHERE]
        places += [f"{name} anywhere" for name, place in bounds.items() if place == uncertainty.NOWHERE]
        found.append(f"{listed(places)}: standard errors of the others hold them there")
    return found
