"""What a pool says, in numbers: how alike servers are, what pooling changed, what steps take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bayes_sched.arrays import Floats
from bayes_sched.format import counted, listed
from bayes_sched.pooling.pool import Pool
from bayes_sched.pooling.population import BETWEEN, WITHIN, Population
from bayes_sched.posterior.diagnostics import PARTLY, Convergence
from bayes_sched.posterior.fitted import DEFAULT_PROBABILITY
from bayes_sched.posterior.prediction import band_levels
from bayes_sched.posterior.typical_steps import band_table, size_table, typical_steps
from bayes_sched.steps import log_grid, steps_arrays

CURVES = (1, 8, 32)
"""Requests of the steps whose latency is followed over their tokens."""
_NUM_POINTS = 50
_SEED = 20_261


@dataclass(frozen=True, eq=False, kw_only=True)
class PoolSummary:
    """What a pool says; intervals have the given probability and equal tails."""

    population: Population
    convergence: Convergence  # the gate, applied to the population's own draws
    probability: float
    spread: pd.DataFrame
    """One row a coordinate: ``coordinate``, ``unit``; medians, ``_lower`` and ``_upper`` of ``mean`` (over
    servers, in the unit), of ``between`` and ``within`` (standard deviations of the logarithm from server to
    server, and from trace to trace of one), and of ``unseen`` (a trace of a server not yet seen, in the
    unit); ``between_contraction`` and ``within_contraction``: 1 minus the ratio of posterior to prior
    variance of their logarithms, near 0 where traces hardly tell."""
    changes: pd.DataFrame  # what pooling did to each trace: :meth:`bayes_sched.pooling.pool.Pool.table`
    members: pd.DataFrame
    """One row a trace: ``trace``, ``server``, ``steps`` (used), ``draws``, ``effective_draws``, ``converged``
    (of the fit alone)."""
    steps: pd.DataFrame
    """What typical steps of all traces together take on each ``trace``'s server and on one not yet seen."""
    curves: pd.DataFrame
    """Mean latency over tokens: ``requests``, ``trace``, ``total_tokens``, ``lower_ms``, ``median_ms``,
    ``upper_ms``, ``extrapolation``."""
    typical_load: str
    """For what context bands over (B, S) alone are, a sentence; empty where B and S say it all."""
    seconds: float | None  # wall time of pooling, the fits of the traces apart
    warnings: tuple[str, ...]  # what to beware of

    @property
    def converged(self) -> bool:
        """Whether the gate passed."""
        return self.population.converged


def pool_summary(
    pool: Pool, *, probability: float = DEFAULT_PROBABILITY, seconds: float | None = None
) -> PoolSummary:
    """Compute what a pool says; `seconds` is the wall time that pooling took."""
    changes = pool.table(probability=probability)
    spread = _spread(pool.population, changes, probability)
    return PoolSummary(
        population=pool.population,
        convergence=pool.population.convergence,
        probability=probability,
        spread=spread,
        changes=changes,
        members=_members(pool),
        steps=_steps(pool, probability),
        curves=_curves(pool, probability),
        typical_load=next(iter(pool.alone.values())).context_text,
        seconds=None if seconds is None else round(seconds, 1),
        warnings=warnings_of(pool, spread),
    )


def _spread(population: Population, changes: pd.DataFrame, probability: float) -> pd.DataFrame:
    draws = population.posterior
    units = changes.drop_duplicates("coordinate").set_index("coordinate")["unit"]
    unseen = np.exp(np.random.default_rng(_SEED).normal(*population.moments()))
    rows = []
    for k, name in enumerate(population.coordinates):
        of_name = {key: draws[key].sel(coordinate=name).to_numpy() for key in ("mean", "between", "within")}
        row: dict[str, object] = {"coordinate": name, "unit": str(units[name])}
        row |= _interval("mean", np.exp(of_name["mean"]), probability)
        for key, prior in (("between", BETWEEN), ("within", WITHIN)):
            row |= _interval(key, of_name[key], probability)
            row[f"{key}_contraction"] = 1.0 - float(np.log(of_name[key]).var(ddof=1)) / prior.sigma**2
        rows.append(row | _interval("unseen", unseen[:, k], probability))
    return pd.DataFrame(rows)


def _interval(name: str, draws: Floats, probability: float) -> dict[str, float]:
    ends = np.quantile(draws, band_levels(probability)).tolist()
    return dict(zip((f"{name}_lower", name, f"{name}_upper"), ends, strict=True))


def _members(pool: Pool) -> pd.DataFrame:
    population = pool.population
    rows = [
        {
            "trace": name,
            "server": population.server_of_trace[name],
            "steps": fit.metadata.rows.used,
            "draws": fit.posterior.sizes["chain"] * fit.posterior.sizes["draw"],
            "effective_draws": float(population.effective_draws[name]),
            "converged": fit.converged,
        }
        for name, fit in pool.alone.items()
    ]
    return pd.DataFrame(rows)


def _steps(pool: Pool, probability: float) -> pd.DataFrame:
    cells = pool.unseen.cells.to_dataframe()
    every = cells.loc[cells.index.repeat(cells["count"].to_numpy()), ["batch_size", "total_tokens"]]
    sizes = size_table(typical_steps(every.reset_index(drop=True)))
    tables = [
        band_table(fit, sizes.assign(trace=name), probability=probability)
        for name, fit in pool.members.items()
    ]
    return pd.concat(tables, ignore_index=True)


def _curves(pool: Pool, probability: float) -> pd.DataFrame:
    most = float(pool.unseen.cells["total_tokens"].max())
    tables = []
    for requests in CURVES:
        tokens = log_grid(requests, max(most, 2.0 * requests), _NUM_POINTS)
        steps = steps_arrays(float(requests), tokens)
        for name, fit in pool.members.items():
            band = fit.mean_band(steps, probability=probability)
            ends = {f"{key}_ms": band[key].to_numpy() for key in ("lower", "median", "upper")}
            known = {"requests": requests, "trace": name, "total_tokens": tokens}
            tables.append(pd.DataFrame(known | ends | {"extrapolation": band["extrapolation"].to_numpy()}))
    return pd.concat(tables, ignore_index=True)


def warnings_of(pool: Pool, spread: pd.DataFrame) -> tuple[str, ...]:
    """Return what to beware of, each a sentence."""
    found = [f"{name} has NOT CONVERGED by itself" for name, fit in pool.alone.items() if not fit.converged]
    num_servers, num_traces = len(pool.population.servers), len(pool.alone)
    count = f"{counted(num_servers, 'server')} and {num_traces:,} traces"
    for key, of in (("between", "servers"), ("within", "traces of one server")):
        open_names = spread.loc[spread[f"{key}_contraction"] < PARTLY, "coordinate"].tolist()
        if open_names:
            found.append(
                f"{count} tell little of how far {of} differ in {listed(open_names)}: that is mostly what "
                "the prior of the population says"
            )
    found.append(
        "pooled fits share their population, so they are not quite independent, as comparisons of fits take "
        "them to be"
    )
    return tuple(found)
