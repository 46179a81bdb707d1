"""The members of a pool: which may be pooled, of which server each is, and what all of them identify."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bayes_sched.effects import effects_of
from bayes_sched.errors import InputError
from bayes_sched.fitted import FittedModel
from bayes_sched.identified import SUMS, identified_names
from bayes_sched.model import LatencyModel, all_parameters
from bayes_sched.numbers import listed
from bayes_sched.parameter_table import WELL

_NEEDED = {"tau_0", "tau_S", "w_1", "k_S"}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What decides whether a trace may be pooled: of its fit, or of the fit that is to be made.

    Attributes
    ----------
    trace_sha256 : str
        Digest of the trace.
    model : LatencyModel
    noise : str
    parameters : frozenset of str
        Names of those that have priors.
    prior_from : str or None
        The population whose prior it is under, if one.
    converged : bool
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
        """Return what a fit of a trace will say if it converges; the noise is by default the model's first.

        Raises
        ------
        InputError
            The model has no such noise option.
        """
        noise = noise or model.noises[0]
        names = frozenset(p.name for p in all_parameters(model, noise))
        return cls(trace_sha256=sha256, model=model, noise=noise, parameters=names)

    @property
    def model_text(self) -> str:
        """The model with its noise option."""
        return f"{self.model.name} with noise {self.noise}"


def check_candidates(candidates: Mapping[str, Candidate], *, accept_unconverged: bool = False) -> None:
    """Make sure that traces can be pooled.

    Parameters
    ----------
    candidates : mapping of str to Candidate
        By name.
    accept_unconverged : bool
        Whether a fit that has not converged may take part.

    Raises
    ------
    InputError
        Fewer than two, a trace twice, models that differ or cannot be pooled, a fit under the prior of some
        population, or one that has not converged.
    """
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
                f"{name}: fits of the model {one.model.name} cannot be pooled; use --model saturation or "
                "saturation_context"
            )
        if one.model_text != first.model_text:
            raise InputError(
                f"{first_name} and {name} are of different models ({first.model_text}, {one.model_text}): "
                "pool fits of one model and noise option (--model, --noise)"
            )
        if one.prior_from is not None:
            raise InputError(
                f"{name}: its prior is from {one.prior_from}; pool fits under documented priors, so that no "
                "trace counts twice"
            )
        if not (one.converged or accept_unconverged):
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
        found[name] = given.get(name) or server_label(fit.metadata.labels) or name
    return found


def server_label(labels: Mapping[str, str]) -> str:
    """Return the server that labels tell of, empty if they tell of none."""
    return ", ".join(filter(None, (labels.get(key, "") for key in ("gpu", "llm"))))


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
