"""How alike pooled servers are, coordinate by coordinate, and what pooling changed: tables of numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayes_sched.pooling.hierarchy import BETWEEN, WITHIN
from bayes_sched.pooling.pooled import Pool
from bayes_sched.pooling.population import Population

Floats = NDArray[np.float64]

_SEED = 20_261


def spread_table(pool: Pool, *, probability: float = 0.9) -> pd.DataFrame:
    """Return what the population says of each coordinate.

    Parameters
    ----------
    pool : Pool
    probability : float
        Of the equal-tailed intervals.

    Returns
    -------
    DataFrame
        One row a coordinate: ``coordinate``, ``unit``; medians, ``_lower`` and ``_upper`` of ``mean`` (over
        servers, in the unit), of ``between`` and ``within`` (standard deviations of the logarithm from
        server to server, and from trace to trace of one), and of ``unseen`` (a trace of a server not yet
        seen, in the unit); ``between_contraction`` and ``within_contraction``: 1 minus the ratio of
        posterior to prior variance of their logarithms, near 0 where traces hardly tell.
    """
    population = pool.population
    draws = population.posterior
    units = pool.table(probability=probability).drop_duplicates("coordinate").set_index("coordinate")["unit"]
    unseen = _unseen(population)
    rows = []
    for k, name in enumerate(population.coordinates):
        of_name = {key: draws[key].sel(coordinate=name).to_numpy() for key in ("mean", "between", "within")}
        row: dict[str, object] = {"coordinate": name, "unit": str(units[name])}
        row |= _quantiles("mean", np.exp(of_name["mean"]), probability)
        for key, prior in (("between", BETWEEN), ("within", WITHIN)):
            row |= _quantiles(key, of_name[key], probability)
            row[f"{key}_contraction"] = 1.0 - float(np.log(of_name[key]).var(ddof=1)) / prior.sigma**2
        rows.append(row | _quantiles("unseen", unseen[:, k], probability))
    return pd.DataFrame(rows)


def change_table(pool: Pool, *, probability: float = 0.9) -> pd.DataFrame:
    """Return :meth:`Pool.table` with how much pooling changed each interval.

    Returns
    -------
    DataFrame
        Its columns, and ``width_ratio``, the width of the pooled interval over that alone (logarithms), and
        ``shift``, the move of the median in widths of the interval alone.
    """
    table = pool.table(probability=probability)
    alone = np.log(table["alone_upper"] / table["alone_lower"])
    table["width_ratio"] = np.log(table["pooled_upper"] / table["pooled_lower"]) / alone
    table["shift"] = np.log(table["pooled"] / table["alone"]) / alone
    return table


def _unseen(population: Population) -> Floats:
    """Draw a trace of a server not yet seen for each draw of the population, dims (draw, coordinate)."""
    mean, sd = population.moments()
    drawn: Floats = np.exp(np.random.default_rng(_SEED).normal(mean, sd))
    return drawn


def _quantiles(name: str, draws: Floats, probability: float) -> dict[str, object]:
    tail = 0.5 * (1.0 - probability)
    lower, middle, upper = np.quantile(draws, [tail, 0.5, 1.0 - tail])
    return {f"{name}_lower": float(lower), name: float(middle), f"{name}_upper": float(upper)}
