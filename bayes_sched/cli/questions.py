"""What the subcommands that ask a fit share: the fit, and how far it is trusted."""

from __future__ import annotations

import argparse
from typing import Any

from bayes_sched.cli.command import Call, given
from bayes_sched.cli.fit_parsers import TRUST
from bayes_sched.posterior.fitted import FittedModel


def load_fit(options: argparse.Namespace) -> FittedModel:
    """Read the fit that is asked."""
    return FittedModel.load(options.posterior, model=options.model, context_tokens=options.context)


def say_cautions(fit: FittedModel, call: Call) -> None:
    """Say what is to be known of a fit before its answers are acted on."""
    unconverged = () if fit.converged else ("the fit has not converged", *fit.metadata.problems)
    unheld = "the fit keeps no steps of its trace, so that answers cannot be held against them: fit it again"
    warnings = (*fit.warnings, *unconverged, *((unheld,) if fit.observed.empty else ()))
    call.warn(dict.fromkeys(warnings))
    if fit.context_text:
        call.say(fit.context_text)


def trust(options: argparse.Namespace) -> dict[str, Any]:
    """Return how sure an answer has to be, as arguments of the library."""
    return given(options, *TRUST)


def token_budget(fit: FittedModel, options: argparse.Namespace, call: Call) -> int:
    """Return the token budget that was given, or else the largest that the trace shows."""
    if options.token_budget is not None:
        return int(options.token_budget)
    budget = int(fit.cells["total_tokens"].max())
    call.say(f"--token-budget is taken to be {budget:,}, the most tokens of a step of the trace")
    return budget
