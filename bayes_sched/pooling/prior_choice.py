"""Which of a pool's priors a further trace takes: that of its own server, or of one not yet seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bayes_sched.errors import InputError
from bayes_sched.pooling.members import server_label
from bayes_sched.pooling.population import Population
from bayes_sched.population_prior import PopulationPrior


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
