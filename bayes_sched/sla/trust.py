"""Whether a fit may promise anything at all."""

from __future__ import annotations

from bayes_sched.errors import InputError
from bayes_sched.fitted import FittedModel

COLUMNS = ("batch_size", "total_tokens")


def check_columns(fit: FittedModel) -> None:
    """Refuse a model that a step's requests and tokens do not suffice for.

    Raises
    ------
    InputError
        Its model needs further columns.
    """
    further = [name for name in fit.model.columns if name not in COLUMNS]
    if further:
        raise InputError(
            f"the model {fit.model.name} of {fit.metadata.name} needs {', '.join(further)} of every step: "
            "what follows from requests and tokens alone cannot be said with it; fit the trace with --model "
            "saturation for that"
        )


def refusals(fit: FittedModel, *, accept_unconverged: bool) -> tuple[str, ...]:
    """Return why nothing is promised whatever the numbers say; empty where nothing stands against it."""
    if fit.converged or accept_unconverged:
        return ()
    return (
        f"The fit {fit.metadata.name} has not converged: its numbers are shown, and nothing is promised "
        "on them.",
    )
