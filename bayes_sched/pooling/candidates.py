"""What can be told of a pool before its traces are fitted, which may take long."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bayes_sched.effects import effects_of
from bayes_sched.errors import InputError
from bayes_sched.fitted import FittedModel
from bayes_sched.model import load_model_file


def check_candidates(
    fits: Mapping[str, FittedModel],
    digests: Mapping[str, str],
    *,
    model: str | Path,
    noise: str | None = None,
    accept_unconverged: bool = False,
) -> None:
    """Make sure that fits, and traces that have yet to be fitted, can be pooled.

    Parameters
    ----------
    fits : mapping of str to FittedModel
        Those that exist, by name.
    digests : mapping of str to str
        SHA-256 of the traces that are to be fitted, by name.
    model : str or Path
        What they are to be fitted with.
    noise : str, optional
        With which noise option; by default the model's first.
    accept_unconverged : bool
        Whether a fit that has not converged may take part.

    Raises
    ------
    InputError
        A trace is there twice, a fit has not converged, or the models differ or cannot be pooled.
    """
    seen: dict[str, str] = {}
    for name, digest in [*((n, fit.metadata.trace_sha256) for n, fit in fits.items()), *digests.items()]:
        if digest in seen:
            raise InputError(f"{seen[digest]} and {name} are of the same trace: a pool takes each trace once")
        seen[digest] = name
    for name, fit in fits.items():
        if not (fit.converged or accept_unconverged):
            raise InputError(
                f"{name}: its fit has not converged; fit it again with more draws, or give "
                "--accept-unconverged"
            )
    if digests:
        _check_model(fits, model, noise)


def _check_model(fits: Mapping[str, FittedModel], model: str | Path, noise: str | None) -> None:
    wanted = load_model_file(model).model
    if effects_of(wanted):
        raise InputError(
            f"fits of the model {wanted.name} cannot be pooled; use --model saturation or saturation_context"
        )
    noise = noise or wanted.noises[0]
    for name, fit in fits.items():
        if (fit.model.name, fit.metadata.noise) != (wanted.name, noise):
            raise InputError(
                f"{name} is a fit of the model {fit.model.name} with noise {fit.metadata.noise}, the traces "
                f"would be fitted with {wanted.name} and noise {noise}: give --model and --noise of the fit"
            )
