"""The members of a pool: which fits may be pooled, of which server each is, and what all of them identify."""

from __future__ import annotations

from collections.abc import Mapping

from bayes_sched.effects import effects_of
from bayes_sched.errors import InputError
from bayes_sched.fitted import FittedModel
from bayes_sched.identified import SUMS, identified_names
from bayes_sched.numbers import listed
from bayes_sched.parameter_table import WELL


def check_members(fits: Mapping[str, FittedModel], *, accept_unconverged: bool) -> None:
    """Make sure that fits can be pooled.

    Raises
    ------
    InputError
        Fewer than two, a trace twice, models that differ or cannot be pooled, a fit under the prior of some
        population, or one that has not converged.
    """
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
