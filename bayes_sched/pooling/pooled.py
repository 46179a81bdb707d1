"""Pool fits of several servers: each borrows strength from the others, and the next one from all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayes_sched.diagnostics import MIN_ESS
from bayes_sched.errors import InputError
from bayes_sched.fitted import FittedModel
from bayes_sched.identified import SUMS, identified
from bayes_sched.model import all_parameters
from bayes_sched.pooling.hierarchy import TraceDraws, population_model, redraw, sample_population
from bayes_sched.pooling.member_fits import judged, pooled_fit, population_prior_draws, unseen_fit
from bayes_sched.pooling.members import Candidate, check_candidates, servers_of, shared_coordinates
from bayes_sched.pooling.population import Population
from bayes_sched.population_prior import PopulationPrior
from bayes_sched.priors import Priors
from bayes_sched.settings import SamplerSettings

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
