"""Pool fits of several servers: each borrows strength from the others, and the next one from all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import all_parameters
from bayes_sched.pooling.hierarchy import (
    BETWEEN,
    WITHIN,
    TraceDraws,
    population_model,
    redraw,
    sample_population,
)
from bayes_sched.pooling.members import (
    Candidate,
    check_candidates,
    judged,
    pooled_fit,
    population_prior_draws,
    server_label,
    servers_of,
    shared_coordinates,
    unseen_fit,
)
from bayes_sched.pooling.population import Population
from bayes_sched.pooling.prior import SUMS, PopulationPrior, identified
from bayes_sched.posterior.diagnostics import MIN_ESS
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.sampling.nuts import SamplerSettings


def choose_prior(
    population: Population,
    *,
    model: str,
    noise: str | None = None,
    labels: Mapping[str, str] | None = None,
    server: str | None = None,
    accept_unconverged: bool = False,
) -> PopulationPrior:
    """Return what a pool tells of a further trace before it is fitted.

    Parameters
    ----------
    population : Population
    model : str
        Name of the model that the trace is fitted with.
    noise : str, optional
        Its noise option; by default the pool's.
    labels : mapping of str to str, optional
        ``gpu`` and ``llm`` of the trace: they tell its server if the pool has it.
    server : str, optional
        The server that the trace is of; it goes before the labels.
    accept_unconverged : bool
        Whether a pool that has not converged may be used; its prior says so.

    Returns
    -------
    PopulationPrior

    Raises
    ------
    InputError
        The pool is of another model or noise option, has no such server, or has not converged.
    """
    if (population.model, population.noise) != (model, noise or population.noise):
        raise InputError(
            f"the pool {population.name} is of the model {population.model} with noise {population.noise}: "
            "fit the trace with these (--model, --noise)"
        )
    if not (population.converged or accept_unconverged):
        raise InputError(
            f"the pool {population.name} has not converged ({population.problems[0]}); make it again, or "
            "give --accept-unconverged"
        )
    labelled = server_label(labels or {})
    prior = population.prior(server or (labelled if labelled in population.servers else None))
    if population.converged:
        return prior
    return replace(prior, text=f"{prior.text}; the pool has NOT CONVERGED")


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


type Progress = Callable[[str, float | None], None]

type Refit = Callable[[str, PopulationPrior], FittedModel | None]
"""Fits the trace of this name under this prior; None where the trace is not at hand."""

POPULATION_SETTINGS = SamplerSettings(tune=1000)
"""How a population is sampled unless told otherwise."""
_TARGET_ACCEPT = (0.98, 0.995)


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
    refit: Refit | None = None,
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
    refit : callable, optional
        Fits a trace again, given its name and a prior. Called for traces so short that the population leaves
        too few of their fit's draws: under the population's prior, which is then divided out.
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
    candidates = {key: Candidate.of_fit(fit) for key, fit in members.items()}
    check_candidates(candidates, accept_unconverged=accept_unconverged)
    server_of = servers_of(members, servers or {})
    first = next(iter(members.values()))
    names = shared_coordinates(members)
    draws = {key: TraceDraws.of(fit, names) for key, fit in members.items()}
    empty = Population(
        name=name,
        data=xr.DataTree(),
        server_of_trace=server_of,
        effective_draws={},
        model=first.model.name,
        noise=first.metadata.noise,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
    )
    show = progress or _silent
    show("sampling the population", None)
    population, chosen = _sampled(empty, names, draws, first.metadata.priors, settings)
    sources = dict(members)
    weak = [key for key, number in population.effective_draws.items() if number < MIN_ESS]
    if refit is not None:
        for key in weak:
            show(f"fitting {key} again", None)
            prior = population.prior(server_of[key])
            again = refit(key, prior)
            if again is not None:
                sources[key], draws[key] = again, TraceDraws.of(again, names, prior=prior)
    if sources != members:
        show("sampling the population", None)
        population, chosen = _sampled(empty, names, draws, first.metadata.priors, settings)
    rng = np.random.default_rng([settings.seed, 1])  # other numbers than those that chose the draws
    return _with_members(population, members, sources, chosen, rng)


def _sampled(
    empty: Population,
    names: Sequence[str],
    draws: Mapping[str, TraceDraws],
    priors: Priors,
    settings: SamplerSettings,
) -> tuple[Population, dict[str, NDArray[np.int64]]]:
    """Sample the population; return it and which of its draws each trace keeps."""
    server_of = empty.server_of_trace
    labels = list(dict.fromkeys(server_of.values()))
    model = population_model(
        list(draws.values()),
        names=names,
        servers=labels,
        server_of_trace=[labels.index(server_of[key]) for key in draws],
        priors=priors,
    )
    for accept in _TARGET_ACCEPT:
        data = sample_population(model, replace(settings, target_accept=accept))
        if not data["sample_stats"]["diverging"].any():
            break
    population = replace(empty, data=data)
    rng = np.random.default_rng(settings.seed)
    found = {key: redraw(own, *population.moments(server_of[key]), rng) for key, own in draws.items()}
    effective = {key: number for key, (_, number) in found.items()}
    return replace(population, effective_draws=effective), {key: kept for key, (kept, _) in found.items()}


def _with_members(
    population: Population,
    members: Mapping[str, FittedModel],
    sources: Mapping[str, FittedModel],
    chosen: Mapping[str, NDArray[np.int64]],
    rng: np.random.Generator,
) -> Pool:
    """Return the pool of a population whose members are the chosen draws of their sources."""
    priors = next(iter(members.values())).metadata.priors
    problems = list(population.convergence.problems)
    pooled = {}
    for name, source in sources.items():
        number = population.effective_draws[name]
        if number < MIN_ESS:
            problems.append(
                f"{name}: its pooled posterior rests on {number:.0f} effective draws of its own (wanted: "
                f"{MIN_ESS:.0f}); give the trace, to be fitted again, or leave it out and use --prior-from"
            )
        prior = population_prior_draws(population, population.server_of_trace[name], priors, rng)
        pooled[name] = pooled_fit(source, members[name].metadata, chosen[name], population, prior)
    population = replace(population, problems=tuple(problems))
    return Pool(
        population=population,
        alone=members,
        pooled={name: judged(fit, population) for name, fit in pooled.items()},
        unseen=judged(unseen_fit(population, members, priors, rng), population),
    )


def _coordinates(fit: FittedModel, names: Sequence[str]) -> np.ndarray:
    logs = {str(key): np.log(draws.to_numpy().ravel()) for key, draws in fit.posterior.items()}
    found: np.ndarray = identified(logs, names, np)
    return found


def _units(fit: FittedModel) -> dict[str, str]:
    parameters = {p.name: p.unit for p in all_parameters(fit.model, fit.metadata.noise)}
    return parameters | {name: unit for name, (_, unit) in SUMS.items()}


def _silent(stage: str, share: float | None) -> None:
    """Report progress to nobody."""
