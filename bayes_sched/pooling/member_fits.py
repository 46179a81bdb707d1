"""The fits of a pool: each trace with the strength of the others, and a server not yet seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayes_sched.diagnostics import convergence
from bayes_sched.fitted import FittedModel
from bayes_sched.identified import complete
from bayes_sched.metadata import FitMetadata, RowCounts
from bayes_sched.pooling import UNSEEN
from bayes_sched.pooling.population import Population
from bayes_sched.priors import Priors

_PRIOR_DRAWS = 4000


def pooled_fit(
    source: FittedModel,
    metadata: FitMetadata,
    chosen: NDArray[np.int64],
    population: Population,
    prior: xr.Dataset,
) -> FittedModel:
    """Return the fit of a trace with those draws of its source that the population chose.

    Parameters
    ----------
    source : FittedModel
        The fit that was drawn again: the trace's own, or one under the population's prior.
    metadata : FitMetadata
        Of the trace's own fit.
    chosen : ndarray, dims (population draw,)
        Positions among the source's draws, chains one after the other.
    population : Population
    prior : Dataset, dims (draw,)
        As :func:`population_prior_draws` returns it.
    """
    draws = population.posterior
    shape = (draws.sizes["chain"], draws.sizes["draw"])
    flat = {name: source.posterior[name].to_numpy().ravel()[chosen] for name in source.posterior.data_vars}
    posterior = xr.Dataset(
        {name: (("chain", "draw"), values.reshape(shape)) for name, values in flat.items()},
        coords={"chain": draws["chain"], "draw": draws["draw"]},
    )
    kept = {name: source.data[name] for name in ("cells", "typical") if name in source.data.children}
    data = xr.DataTree.from_dict(
        {"posterior": posterior, "prior": prior, "sample_stats": population.data["sample_stats"], **kept}
    )
    return FittedModel(data=data, model=source.model, metadata=metadata)


def population_prior_draws(
    population: Population, server: str | None, priors: Priors, rng: np.random.Generator
) -> xr.Dataset:
    """Return draws of a further trace's parameters, dims (draw,); without a server, of one not yet seen."""
    logs = population.prior(server, documented_share=0.0).draw(priors, _PRIOR_DRAWS, rng)
    return xr.Dataset({key: ("draw", np.exp(value)) for key, value in logs.items()})


def unseen_fit(
    population: Population,
    members: Mapping[str, FittedModel],
    priors: Priors,
    rng: np.random.Generator,
) -> FittedModel:
    """Return a fit whose posterior is the population's predictive distribution."""
    first = next(iter(members.values()))
    mean, sd = population.moments()
    logs = complete(rng.normal(mean, sd), population.coordinates, priors, rng)
    draws = population.posterior
    shape = (draws.sizes["chain"], draws.sizes["draw"])
    posterior = xr.Dataset(
        {name: (("chain", "draw"), np.exp(logs[name]).reshape(shape)) for name in priors},
        coords={"chain": draws["chain"], "draw": draws["draw"]},
    )
    data = xr.DataTree.from_dict(
        {
            "posterior": posterior,
            "prior": population_prior_draws(population, None, priors, rng),
            "sample_stats": population.data["sample_stats"],
            "cells": _joint_cells([fit.cells for fit in members.values()]),
        }
    )
    if "typical" in first.data.children:
        data["typical"] = first.data["typical"]
    rows = [fit.metadata.rows for fit in members.values()]
    metadata = replace(
        first.metadata,
        name=UNSEEN,
        labels={},
        traces=(),
        bad_lines={},
        warnings=("no step of this server was seen: it is drawn from the population",),
        rows=RowCounts(
            **{key: sum(getattr(row, key) for row in rows) for key in ("read", "cleaned", "used")}
        ),
        trace_sha256=f"unseen server of {population.name}",
    )
    return FittedModel(data=data, model=first.model, metadata=metadata)


def judged(fit: FittedModel, population: Population) -> FittedModel:
    """Return a fit with the account of the pool that it is of."""
    found = convergence(fit.data)
    problems = (*population.problems, *(p for p in found.problems if p not in population.problems))
    whose = f"the pool {population.name} ({len(population.server_of_trace)} traces)"
    metadata = replace(
        fit.metadata,
        converged=not problems,
        problems=problems,
        prior_from=whose,
        command=population.command,
        created_at=population.created_at,
    )
    return FittedModel(data=fit.data, model=fit.model, metadata=metadata)


def _joint_cells(cells: Sequence[xr.Dataset]) -> xr.Dataset:
    """Return the cells of several fits as those of one: counts added, quantiles averaged by count."""
    table = pd.concat([each.to_dataframe() for each in cells], ignore_index=True)
    keys, levels = ["batch_size", "total_tokens"], ["q05_ms", "median_ms", "q95_ms"]
    table[levels] = table[levels].mul(table["count"], axis=0)
    joint = table.groupby(keys, sort=True)[["count", *levels]].sum().reset_index()
    joint[levels] = joint[levels].div(joint["count"], axis=0)
    return xr.Dataset({str(name): ("cell", joint[name].to_numpy()) for name in joint})
