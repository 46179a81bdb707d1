"""Pool fits of several servers: each borrows strength from the others, and the next one from all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError
from bayes_sched.files import MEMBERS, POPULATION, POSTERIOR, UNSEEN
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import all_parameters
from bayes_sched.pooling.members import (
    Candidate,
    check_candidates,
    pooled_fit,
    population_prior_draws,
    server_label,
    servers_of,
    shared_coordinates,
    unseen_fit,
)
from bayes_sched.pooling.population import Population, TraceDraws, population_model, redraw, sample_population
from bayes_sched.pooling.prior import SUMS, PopulationPrior, identified
from bayes_sched.posterior.diagnostics import MIN_ESS
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.sampling.nuts import SamplerSettings

type Progress = Callable[[str, float | None], None]
type Refit = Callable[[str, PopulationPrior], FittedModel | None]
"""Fits the trace of this name under this prior; None where the trace is not at hand."""

POPULATION_SETTINGS = SamplerSettings(tune=1000)
"""How a population is sampled unless told otherwise."""
_TARGET_ACCEPT = (0.98, 0.995)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """Several fits, and what they say of each other."""

    population: Population
    alone: Mapping[str, FittedModel]
    pooled: Mapping[str, FittedModel]
    """The fit of each trace by itself and with the strength of the others, by name."""
    unseen: FittedModel
    """A server of the population that no trace was seen of; its region is what the traces cover together."""

    @property
    def converged(self) -> bool:
        """Whether the population and every pooled fit passed the gate."""
        return self.population.converged

    @property
    def members(self) -> dict[str, FittedModel]:
        """The pooled fits by name, and that of the server not yet seen, which comes last."""
        return {**self.pooled, UNSEEN: self.unseen}

    def table(self, *, probability: float = 0.9) -> pd.DataFrame:
        """Return what pooling did to what data identify, one row a trace and coordinate.

        ``trace``, ``server``, ``coordinate``, ``unit``; medians and equal-tailed credible intervals of the
        trace by itself (``alone``, ``alone_lower``, ``alone_upper``) and pooled (``pooled``, ...);
        ``effective_draws``; ``width_ratio``, the width of the pooled interval over that alone (logarithms);
        and ``shift``, the move of the median in widths of the interval alone.
        """
        first = next(iter(self.alone.values()))
        units = {p.name: p.unit for p in all_parameters(first.model, first.metadata.noise)}
        units |= {name: unit for name, (_, unit) in SUMS.items()}
        coordinates = self.population.coordinates
        levels = [0.5 * (1.0 - probability), 0.5, 0.5 * (1.0 + probability)]
        rows = []
        for name, server in self.population.server_of_trace.items():
            both = {"alone": self.alone[name], "pooled": self.pooled[name]}
            ends = {
                kind: np.exp(np.quantile(_identified(fit, coordinates), levels, axis=0))
                for kind, fit in both.items()
            }
            for k, coordinate in enumerate(coordinates):
                row: dict[str, object] = {"trace": name, "server": server, "coordinate": coordinate}
                row["unit"] = units.get(coordinate, "")
                for kind, values in ends.items():
                    keys = (f"{kind}_lower", kind, f"{kind}_upper")
                    row |= dict(zip(keys, values[:, k].tolist(), strict=True))
                rows.append(row | {"effective_draws": self.population.effective_draws[name]})
        table = pd.DataFrame(rows)
        alone = np.log(table["alone_upper"] / table["alone_lower"])
        table["width_ratio"] = np.log(table["pooled_upper"] / table["pooled_lower"]) / alone
        table["shift"] = np.log(table["pooled"] / table["alone"]) / alone
        return table

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``population.nc`` and ``members/NAME/posterior.nc``, of the server not yet seen too."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.population.save(folder / POPULATION)
        for name, fit in self.members.items():
            place = folder / MEMBERS / name
            place.mkdir(parents=True, exist_ok=True)
            fit.save(place / POSTERIOR)


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
    first = next(iter(members.values()))
    empty = Population(
        name=name,
        data=xr.DataTree(),
        server_of_trace=servers_of(members, servers or {}),
        effective_draws={},
        model=first.model.name,
        noise=first.metadata.noise,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
    )
    names, priors = shared_coordinates(members), first.metadata.priors
    draws = {key: TraceDraws.of(fit, names) for key, fit in members.items()}
    show = progress or (lambda stage, share: None)
    show("sampling the population", None)
    population, chosen = _sampled(empty, names, draws, priors, settings)
    sources = dict(members)
    for key in _weak(population) if refit is not None else ():
        show(f"fitting {key} again", None)
        prior = population.prior(empty.server_of_trace[key])
        again = refit(key, prior) if refit is not None else None
        if again is not None:
            sources[key], draws[key] = again, TraceDraws.of(again, names, prior=prior)
    if sources != members:
        show("sampling the population", None)
        population, chosen = _sampled(empty, names, draws, priors, settings)
    rng = np.random.default_rng([settings.seed, 1])  # other numbers than those that chose the draws
    return _with_members(population, members, sources, chosen, rng)


def _weak(population: Population) -> list[str]:
    """Return the traces of whose own draws the population leaves too few."""
    return [key for key, number in population.effective_draws.items() if number < MIN_ESS]


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
    return replace(population, effective_draws=effective), {key: rows for key, (rows, _) in found.items()}


def _with_members(
    population: Population,
    members: Mapping[str, FittedModel],
    sources: Mapping[str, FittedModel],
    chosen: Mapping[str, NDArray[np.int64]],
    rng: np.random.Generator,
) -> Pool:
    """Return the pool of a population whose members are the chosen draws of their sources."""
    priors = next(iter(members.values())).metadata.priors
    few = [
        f"{name}: its pooled posterior rests on {population.effective_draws[name]:.0f} effective draws of "
        f"its own (wanted: {MIN_ESS:.0f}); give the trace, to be fitted again, or leave it out and fit it "
        "under the pool's prior"
        for name in _weak(population)
    ]
    population = replace(population, problems=(*population.convergence.problems, *few))
    pooled = {}
    for name, source in sources.items():
        prior = population_prior_draws(population, population.server_of_trace[name], priors, rng)
        pooled[name] = pooled_fit(source, members[name].metadata, chosen[name], population, prior)
    unseen = unseen_fit(population, members, priors, rng)
    return Pool(population=population, alone=members, pooled=pooled, unseen=unseen)


def choose_prior(
    population: Population,
    *,
    model: str,
    noise: str | None = None,
    labels: Mapping[str, str] | None = None,
    server: str | None = None,
    accept_unconverged: bool = False,
) -> PopulationPrior:
    """Return what a pool tells of a further trace before it is fitted with `model` and `noise`.

    The trace is of `server`, else of the pool's server that its `labels` tell of, else of one not yet seen.
    """
    if (population.model, population.noise) != (model, noise or population.noise):
        raise InputError(
            f"the pool {population.name} is of the model {population.model} with noise {population.noise}: "
            "fit the trace with these"
        )
    if not (population.converged or accept_unconverged):
        raise InputError(
            f"the pool {population.name} has not converged ({population.problems[0]}); make it again, or "
            "accept it unconverged"
        )
    labelled = server_label(labels or {})
    prior = population.prior(server or (labelled if labelled in population.servers else None))
    if population.converged:
        return prior
    return replace(prior, text=f"{prior.text}; the pool has NOT CONVERGED")


def _identified(fit: FittedModel, names: Sequence[str]) -> Floats:
    """Return draws of the logarithms of coordinates, dims (draw, coordinate)."""
    logs = {str(key): np.log(draws.to_numpy().ravel()) for key, draws in fit.posterior.items()}
    found: Floats = identified(logs, names, np)
    return found
