"""Pool fits of several servers: each borrows strength from the others, and a population is left for the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.diagnostics import MIN_ESS, convergence
from bayes_sched.effects import effects_of
from bayes_sched.errors import InputError
from bayes_sched.fitted import FittedModel
from bayes_sched.identified import SUMS, complete, identified, identified_names
from bayes_sched.metadata import RowCounts
from bayes_sched.numbers import listed
from bayes_sched.parameter_table import WELL
from bayes_sched.pooling.hierarchy import TraceDraws, population_model, redraw, sample_population
from bayes_sched.pooling.population import Population
from bayes_sched.priors import Priors
from bayes_sched.settings import SamplerSettings

type Progress = Callable[[str, float | None], None]

POPULATION_SETTINGS = SamplerSettings(tune=1000)
"""How a population is sampled unless told otherwise."""
UNSEEN = "unseen"
"""Name of the fit of a server not yet seen."""

_TARGET_ACCEPT = (0.98, 0.995)
_PRIOR_DRAWS = 4000


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """Several fits, and what they say of each other.

    Attributes
    ----------
    population : Population
    alone, pooled : Mapping of str to FittedModel
        The fit of each trace by itself and with the strength of the others, by name.
    unseen : FittedModel
        A server of the population that no trace was seen of; its region is what the traces cover together.
    """

    population: Population
    alone: Mapping[str, FittedModel]
    pooled: Mapping[str, FittedModel]
    unseen: FittedModel

    @property
    def converged(self) -> bool:
        """Whether the population and every pooled fit passed the gate."""
        return self.population.converged

    def table(self, *, probability: float = 0.9) -> pd.DataFrame:
        """Return what pooling did to what data identify.

        Returns
        -------
        DataFrame
            One row a trace and coordinate: ``trace``, ``server``, ``coordinate``, ``unit``, and medians and
            equal-tailed credible intervals of the trace by itself (``alone``, ``alone_lower``,
            ``alone_upper``) and pooled (``pooled``, ...), and ``effective_draws``.
        """
        tails = [0.5 * (1.0 - probability), 0.5, 0.5 * (1.0 + probability)]
        units = _units(next(iter(self.alone.values())))
        rows = []
        for name, server in self.population.server_of_trace.items():
            both = [
                np.exp(np.quantile(_coordinates(fit, self.population.coordinates), tails, axis=0))
                for fit in (self.alone[name], self.pooled[name])
            ]
            for k, coordinate in enumerate(self.population.coordinates):
                row: dict[str, object] = {"trace": name, "server": server, "coordinate": coordinate}
                row["unit"] = units.get(coordinate, "")
                for kind, values in zip(("alone", "pooled"), both, strict=True):
                    keys = (f"{kind}_lower", kind, f"{kind}_upper")
                    row |= {key: float(value) for key, value in zip(keys, values[:, k], strict=True)}
                rows.append(row | {"effective_draws": self.population.effective_draws[name]})
        return pd.DataFrame(rows)


def pool(
    fits: Sequence[FittedModel] | Mapping[str, FittedModel],
    *,
    servers: Mapping[str, str] | None = None,
    name: str = "pool",
    settings: SamplerSettings = POPULATION_SETTINGS,
    accept_unconverged: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
) -> Pool:
    """Let fits borrow strength from each other by a population of their servers.

    Parameters
    ----------
    fits : sequence, or mapping of name to FittedModel
        Two or more, of one model and noise option, under documented priors.
    servers : mapping of str to str, optional
        The server of a fit, by the fit's name: fits of one server are likened more closely. By default
        the GPU and LLM that a fit is labelled with; a fit without labels is a server of its own.
    name : str
        Name of the result.
    settings : SamplerSettings
        How the population is sampled; the fits' own draws are used as they are.
    accept_unconverged : bool
        Whether a fit that has not converged may take part.
    command : str, optional
        The command line, for the account.
    progress : callable, optional
        Called with a stage in words and the share of it that is done, or None.

    Returns
    -------
    Pool
        Converged or not: ``result.converged`` and ``result.population.problems`` say so.

    Raises
    ------
    InputError
        Fewer than two fits, one twice, fits that cannot be pooled, or a server for a fit that is not there.
    """
    members = dict(fits) if isinstance(fits, Mapping) else {fit.metadata.name: fit for fit in fits}
    if len(members) < len(fits):
        raise InputError("two fits have the same name: give a mapping of names to fits")
    _check(members, accept_unconverged=accept_unconverged)
    server_of = servers_of(members, servers or {})
    labels = list(dict.fromkeys(server_of.values()))
    first = next(iter(members.values()))
    names = shared_coordinates(members)
    traces = {key: TraceDraws.of(fit, names) for key, fit in members.items()}
    (progress or _silent)("sampling the population", None)
    model = population_model(
        list(traces.values()),
        names=names,
        servers=labels,
        server_of_trace=[labels.index(server_of[key]) for key in members],
        priors=first.metadata.priors,
    )
    for accept in _TARGET_ACCEPT:
        data = sample_population(model, replace(settings, target_accept=accept))
        if not data["sample_stats"]["diverging"].any():
            break
    population = Population(
        name=name,
        data=data,
        server_of_trace=server_of,
        effective_draws={},
        model=first.model.name,
        noise=first.metadata.noise,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
    )
    (progress or _silent)("drawing the traces again", None)
    return _with_members(population, members, traces, np.random.default_rng(settings.seed))


def servers_of(fits: Mapping[str, FittedModel], given: Mapping[str, str]) -> dict[str, str]:
    """Return the server of each fit: as given, else its labels, else its own name.

    Raises
    ------
    InputError
        A server is given for a fit that is not there.
    """
    unknown = sorted(set(given) - set(fits))
    if unknown:
        raise InputError(f"a server is given for {unknown[0]}, but the pool has {listed(list(fits))}")
    found = {}
    for name, fit in fits.items():
        labels = [fit.metadata.labels.get(key, "") for key in ("gpu", "llm")]
        found[name] = given.get(name) or ", ".join(filter(None, labels)) or name
    return found


def shared_coordinates(fits: Mapping[str, FittedModel]) -> tuple[str, ...]:
    """Return the coordinates that a population shares.

    The sums of the equation, the latency per request, and what else every trace identifies well.
    """
    priors = next(iter(fits.values())).metadata.priors
    always = {*SUMS, "tau_B"}
    return tuple(
        name
        for name in identified_names(priors)
        if name in always or all(fit.contraction(name) >= WELL for fit in fits.values())
    )


def _check(fits: Mapping[str, FittedModel], *, accept_unconverged: bool) -> None:
    if len(fits) < 2:
        raise InputError(f"{len(fits)} trace: a pool takes two or more")
    first_name, first = next(iter(fits.items()))
    seen: dict[str, str] = {}
    for name, fit in fits.items():
        digest = fit.metadata.trace_sha256
        if digest in seen:
            raise InputError(f"{seen[digest]} and {name} are of the same trace: a pool takes each trace once")
        seen[digest] = name
        if effects_of(fit.model) or not {"tau_0", "tau_S", "w_1", "k_S"} <= set(fit.metadata.priors):
            raise InputError(
                f"{name}: fits of the model {fit.model.name} cannot be pooled; use --model saturation or "
                "saturation_context"
            )
        if (fit.model.name, fit.metadata.noise) != (first.model.name, first.metadata.noise):
            raise InputError(
                f"{first_name} and {name} are fits of different models ({first.model.name} with noise "
                f"{first.metadata.noise}, {fit.model.name} with noise {fit.metadata.noise}): pool fits of one"
            )
        if fit.metadata.prior_from is not None:
            raise InputError(
                f"{name}: its prior is from {fit.metadata.prior_from}; pool fits under documented priors, so "
                "that no trace counts twice"
            )
        if not (fit.converged or accept_unconverged):
            raise InputError(
                f"{name}: its fit has not converged; fit it again with more draws, or give "
                "--accept-unconverged"
            )


def _with_members(
    population: Population,
    members: Mapping[str, FittedModel],
    traces: Mapping[str, TraceDraws],
    rng: np.random.Generator,
) -> Pool:
    priors = next(iter(members.values())).metadata.priors
    pooled, effective = {}, {}
    problems = list(population.convergence.problems)
    for name, fit in members.items():
        mean, sd = population.moments(population.server_of_trace[name])
        chosen, effective[name] = redraw(traces[name], mean, sd, rng)
        if effective[name] < MIN_ESS:
            problems.append(
                f"{name}: its pooled posterior rests on {effective[name]:.0f} effective draws of its own "
                f"(wanted: {MIN_ESS:.0f}); leave it out of the pool and fit it with --prior-from"
            )
        pooled[name] = _pooled(fit, chosen, population, _prior(population, name, priors, rng))
    population = replace(population, effective_draws=effective, problems=tuple(problems))
    pooled = {name: _judged(fit, population) for name, fit in pooled.items()}
    unseen = _judged(_unseen(population, members, priors, rng), population)
    return Pool(population=population, alone=members, pooled=pooled, unseen=unseen)


def _pooled(fit: FittedModel, chosen: np.ndarray, population: Population, prior: xr.Dataset) -> FittedModel:
    """Return the fit with those of its draws that the population chose."""
    draws = population.posterior
    shape = (draws.sizes["chain"], draws.sizes["draw"])
    flat = {name: fit.posterior[name].to_numpy().ravel()[chosen] for name in fit.posterior.data_vars}
    posterior = xr.Dataset(
        {name: (("chain", "draw"), values.reshape(shape)) for name, values in flat.items()},
        coords={"chain": draws["chain"], "draw": draws["draw"]},
    )
    kept = {name: fit.data[name] for name in ("cells", "typical") if name in fit.data.children}
    data = xr.DataTree.from_dict(
        {"posterior": posterior, "prior": prior, "sample_stats": population.data["sample_stats"], **kept}
    )
    return FittedModel(data=data, model=fit.model, metadata=fit.metadata)


def _prior(population: Population, name: str | None, priors: Priors, rng: np.random.Generator) -> xr.Dataset:
    server = None if name is None else population.server_of_trace[name]
    logs = population.prior(server).draw(priors, _PRIOR_DRAWS, rng)
    return xr.Dataset({key: ("draw", np.exp(value)) for key, value in logs.items()})


def _unseen(
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
            "prior": _prior(population, None, priors, rng),
            "sample_stats": population.data["sample_stats"],
            "cells": _joint_cells([fit.cells for fit in members.values()]),
        }
    )
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


def _judged(fit: FittedModel, population: Population) -> FittedModel:
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


def _coordinates(fit: FittedModel, names: Sequence[str]) -> np.ndarray:
    logs = {str(key): np.log(draws.to_numpy().ravel()) for key, draws in fit.posterior.items()}
    found: np.ndarray = identified(logs, names, np)
    return found


def _units(fit: FittedModel) -> dict[str, str]:
    table = fit.parameter_table()
    return dict(zip(table["name"], table["unit"], strict=True))


def _silent(stage: str, share: float | None) -> None:
    """Report progress to nobody."""
