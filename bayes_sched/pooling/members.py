"""The fits of a pool: which may take part, each with the help of the others, and a server not yet seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError
from bayes_sched.files import UNSEEN
from bayes_sched.format import listed
from bayes_sched.model.likelihood import effects_of
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import LatencyModel, all_parameters
from bayes_sched.pooling.population import Population
from bayes_sched.pooling.prior import SUMS, complete, identified_names
from bayes_sched.posterior.diagnostics import WELL, convergence
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.provenance import FitMetadata, RowCounts

_NEEDED = {"tau_0", "tau_S", "w_1", "k_S"}
_PRIOR_DRAWS = 4000


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What decides whether a trace may be pooled: of its fit, or of the fit that is to be made.

    `parameters` are those that have priors, `prior_from` the population whose prior it is under, if one.
    """

    trace_sha256: str
    model: LatencyModel
    noise: str
    parameters: frozenset[str]
    prior_from: str | None = None
    converged: bool = True

    @classmethod
    def of_fit(cls, fit: FittedModel) -> Candidate:
        """Return what a fit says."""
        metadata = fit.metadata
        return cls(
            trace_sha256=metadata.trace_sha256,
            model=fit.model,
            noise=metadata.noise,
            parameters=frozenset(metadata.priors),
            prior_from=metadata.prior_from,
            converged=fit.converged,
        )

    @classmethod
    def of_trace(cls, sha256: str, *, model: LatencyModel, noise: str | None = None) -> Candidate:
        """Return what a fit of a trace will say if it converges, by default with the model's first noise."""
        noise = noise or model.noises[0]
        names = frozenset(p.name for p in all_parameters(model, noise))
        return cls(trace_sha256=sha256, model=model, noise=noise, parameters=names)

    @property
    def model_text(self) -> str:
        """The model with its noise option."""
        return f"{self.model.name} with noise {self.noise}"


def check_candidates(candidates: Mapping[str, Candidate], *, accept_unconverged: bool = False) -> None:
    """Make sure that traces, by name, can be pooled."""
    if len(candidates) < 2:
        raise InputError(f"{len(candidates)} trace: a pool takes two or more")
    first_name, first = next(iter(candidates.items()))
    seen: dict[str, str] = {}
    for name, one in candidates.items():
        twin = seen.setdefault(one.trace_sha256, name)
        if twin != name:
            raise InputError(f"{twin} and {name} are of the same trace: a pool takes each trace once")
        if effects_of(one.model) or not one.parameters >= _NEEDED:
            raise InputError(
                f"{name}: fits of the model {one.model.name} cannot be pooled; use the model saturation or "
                "saturation_context"
            )
        if one.model_text != first.model_text:
            raise InputError(
                f"{first_name} and {name} are of different models ({first.model_text}, {one.model_text}): "
                "pool fits of one model and noise option"
            )
        if one.prior_from is not None:
            raise InputError(
                f"{name}: its prior is from {one.prior_from}; pool fits under documented priors, so that no "
                "trace counts twice"
            )
        if not (one.converged or accept_unconverged):
            raise InputError(
                f"{name}: its fit has not converged; fit it again with more draws, or accept it unconverged"
            )


def servers_of(fits: Mapping[str, FittedModel], given: Mapping[str, str]) -> dict[str, str]:
    """Return the server of each fit: as given, else its labels, else its own name."""
    unknown = sorted(set(given) - set(fits))
    if unknown:
        raise InputError(f"a server is given for {unknown[0]}, but the pool has {listed(list(fits))}")
    return {name: given.get(name) or server_label(fit.metadata.labels) or name for name, fit in fits.items()}


def server_label(labels: Mapping[str, str]) -> str:
    """Return the server that labels tell of, empty if they tell of none."""
    return ", ".join(filter(None, (labels.get(key, "") for key in ("gpu", "llm"))))


def shared_coordinates(fits: Mapping[str, FittedModel]) -> tuple[str, ...]:
    """Return the coordinates that a population shares.

    The sums of the equation, the latency per request, and what else every trace identifies well.
    """
    always = {*SUMS, "tau_B"}
    return tuple(
        name
        for name in identified_names(next(iter(fits.values())).metadata.priors)
        if name in always or all(fit.contraction(name) >= WELL for fit in fits.values())
    )


def pooled_fit(
    source: FittedModel,
    metadata: FitMetadata,
    chosen: NDArray[np.int64],
    population: Population,
    prior: xr.Dataset,
) -> FittedModel:
    """Return the fit of a trace with those draws of its source that the population chose.

    `source` is the trace's own fit, or one under the population's prior; `metadata`, of its own fit;
    `chosen`, dims (population draw,), positions among the source's draws, chains one after the other;
    `prior`, of :func:`population_prior_draws`.
    """
    draws = {str(name): values.to_numpy().ravel()[chosen] for name, values in source.posterior.items()}
    same = {
        name: group
        for name, group in source.data.children.items()
        if name in ("cells", "typical", "observed")
    }
    return _fit_of(population, draws, prior=prior, model=source.model, metadata=metadata, groups=same)


def unseen_fit(
    population: Population, members: Mapping[str, FittedModel], priors: Priors, rng: np.random.Generator
) -> FittedModel:
    """Return a fit whose posterior is the population's predictive distribution."""
    first = next(iter(members.values()))
    mean, sd = population.moments()
    logs = complete(rng.normal(mean, sd), population.coordinates, priors, rng)
    cells = _joint_cells([fit.cells for fit in members.values()])
    typical = {name: group for name, group in first.data.children.items() if name == "typical"}
    rows = [fit.metadata.rows for fit in members.values()]
    metadata = replace(
        first.metadata,
        name=UNSEEN,
        labels={},
        traces=(),
        bad_lines={},
        warnings=("no step of this server was seen: it is drawn from the population",),
        rows=RowCounts(**{key: sum(getattr(r, key) for r in rows) for key in ("read", "cleaned", "used")}),
        trace_sha256=f"unseen server of {population.name}",
    )
    return _fit_of(
        population,
        {name: np.exp(logs[name]) for name in priors},
        prior=population_prior_draws(population, None, priors, rng),
        model=first.model,
        metadata=metadata,
        groups={"cells": xr.DataTree(cells), **typical},
    )


def population_prior_draws(
    population: Population, server: str | None, priors: Priors, rng: np.random.Generator
) -> xr.Dataset:
    """Return draws of a further trace's parameters, dims (draw,); without a server, of one not yet seen."""
    logs = population.prior(server, documented_share=0.0).draw(priors, _PRIOR_DRAWS, rng)
    return xr.Dataset({key: ("draw", np.exp(value)) for key, value in logs.items()})


def _fit_of(
    population: Population,
    flat: Mapping[str, Floats],
    *,
    prior: xr.Dataset,
    model: LatencyModel,
    metadata: FitMetadata,
    groups: Mapping[str, xr.DataTree],
) -> FittedModel:
    """Return a fit with a draw for each of the population's, judged by its gate and its own."""
    draws = population.posterior
    shape = (draws.sizes["chain"], draws.sizes["draw"])
    posterior = xr.Dataset(
        {name: (("chain", "draw"), values.reshape(shape)) for name, values in flat.items()},
        coords={"chain": draws["chain"], "draw": draws["draw"]},
    )
    stats = population.data["sample_stats"]
    data = xr.DataTree.from_dict({"posterior": posterior, "prior": prior, "sample_stats": stats, **groups})
    problems = tuple(dict.fromkeys([*population.problems, *convergence(data).problems]))
    metadata = replace(
        metadata,
        converged=not problems,
        problems=problems,
        prior_from=f"the pool {population.name} ({len(population.server_of_trace)} traces)",
        command=population.command,
        created_at=population.created_at,
    )
    return FittedModel(data=data, model=model, metadata=metadata)


def _joint_cells(cells: Sequence[xr.Dataset]) -> xr.Dataset:
    """Return the cells of several fits as those of one: counts added, quantiles averaged by count."""
    table = pd.concat([each.to_dataframe() for each in cells], ignore_index=True)
    keys, levels = ["batch_size", "total_tokens"], ["q05_ms", "median_ms", "q95_ms"]
    table[levels] = table[levels].mul(table["count"], axis=0)
    joint = table.groupby(keys, sort=True)[["count", *levels]].sum().reset_index()
    joint[levels] = joint[levels].div(joint["count"], axis=0)
    return xr.Dataset({str(name): ("cell", joint[name].to_numpy()) for name in joint})
