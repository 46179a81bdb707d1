"""Risk and confidence of single steps."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from bayes_sched.fitted import DEFAULT_MAX_DRAWS, DEFAULT_PROBABILITY, FittedModel
from bayes_sched.predictive import check_probability
from bayes_sched.region import TOLERANCE
from bayes_sched.sla.objective import Objective
from bayes_sched.steps import POSSIBLE, Steps, steps_grid

_DRAWS = ("chain", "draw")


def step_risk(
    fit: FittedModel,
    steps: Steps,
    objective: Objective,
    *,
    probability: float = DEFAULT_PROBABILITY,
    max_draws: int | None = DEFAULT_MAX_DRAWS,
) -> xr.Dataset:
    """Return how probably each step keeps the limit, and how sure one may be that the quantile does.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame or Dataset
    objective : Objective
    probability : float
        Of the credible interval.
    max_draws : int or None

    Returns
    -------
    Dataset, dims of the steps
        ``probability``: risk, P(latency <= limit) of the posterior predictive; ``lower``, ``upper``: credible
        interval of P(latency <= limit) over the draws, equal tails; ``confidence``: share of the draws in
        which at least the asked share of such steps keeps the limit; ``extrapolation`` (bool).

    Raises
    ------
    InputError
        A step is impossible, or the probability is not between 0 and 1.
    """
    tail = 0.5 * (1.0 - check_probability(probability, name="probability"))
    below = fit.probability_below_draws(steps, objective.limit_ms, max_draws=max_draws)
    is_possible = below.isel(chain=0, draw=0, drop=True).notnull()
    sizes = [below.get_axis_num(dim) for dim in _DRAWS]
    values = np.moveaxis(below.to_numpy(), sizes, [0, 1]).reshape(-1, *is_possible.shape)
    lower, upper = np.quantile(values, [tail, 1.0 - tail], axis=0)
    parts = {
        "probability": values.mean(axis=0),
        "lower": lower,
        "upper": upper,
        "confidence": (values >= objective.quantile).mean(axis=0),
    }
    columns = {name: is_possible.copy(data=part).where(is_possible) for name, part in parts.items()}
    return xr.Dataset({**columns, "extrapolation": fit.extrapolation(steps)})


def risk_map(
    fit: FittedModel,
    objective: Objective,
    *,
    probability: float = DEFAULT_PROBABILITY,
    max_draws: int | None = DEFAULT_MAX_DRAWS,
    num: int = 40,
) -> xr.Dataset:
    """Return :func:`step_risk` over an even grid of the trace's range.

    Parameters
    ----------
    fit : FittedModel
    objective : Objective
    probability : float
        Of the credible interval.
    max_draws : int or None
    num : int
        Points of each axis, at most; the tokens hold the batch sizes as well, for decode-only steps.

    Returns
    -------
    Dataset, dims (batch_size, total_tokens)
        NaN where no step is possible, and ``possible``.
    """
    highest = np.exp(fit.region.corners.max(axis=0) + TOLERANCE)
    batch_size, tokens = (
        np.unique(np.rint(np.linspace(1.0, max(1, math.floor(end)), num))) for end in highest
    )
    grid = steps_grid(batch_size=batch_size, total_tokens=np.union1d(batch_size, tokens))
    risk = step_risk(fit, grid, objective, probability=probability, max_draws=max_draws)
    return risk.assign({POSSIBLE: grid[POSSIBLE]})
