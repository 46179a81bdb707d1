"""What the subcommands that ask a fit share: the fit, how far it is trusted, the report of the answer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bayes_sched.cli.command import Call
from bayes_sched.cli.fit_parsers import TRUST
from bayes_sched.files import result_folder
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.reports.document import Document
from bayes_sched.reports.write import write_report


def load_fit(options: argparse.Namespace) -> FittedModel:
    """Read the fit that is asked."""
    return FittedModel.load(options.posterior, model=options.model)


def say_cautions(fit: FittedModel, call: Call) -> None:
    """Say what is to be known of a fit before its answers are acted on."""
    unconverged = () if fit.converged else ("the fit has not converged", *fit.metadata.problems)
    for warning in dict.fromkeys((*fit.warnings, *unconverged)):
        call.say(f"warning: {warning}")


def trust(options: argparse.Namespace) -> dict[str, Any]:
    """Return how sure an answer has to be, as arguments of the library."""
    return {name: getattr(options, name) for name in TRUST}


def token_budget(fit: FittedModel, options: argparse.Namespace, call: Call) -> int:
    """Return the token budget that was given, or else the largest that the trace shows."""
    if options.token_budget is not None:
        return int(options.token_budget)
    budget = int(fit.cells["total_tokens"].max())
    call.say(f"--token-budget is taken to be {budget:,}, the most tokens of a step of the trace")
    return budget


def write_document(document: Document, options: argparse.Namespace) -> dict[str, str]:
    """Write the folder of a report; return its files by what they are."""
    target: Path = options.folder
    with result_folder(target, overwrite=options.overwrite, holds=document.json_name) as folder:
        write_report(document, folder)
    summary = document.json_name.removesuffix(".json")
    return {
        "folder": str(target),
        "report": str(target / "report.html"),
        summary: str(target / document.json_name),
    }
