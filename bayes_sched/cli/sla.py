"""``bayes-sched sla``: what a fitted server may promise, of its steps and of requests."""

from __future__ import annotations

import argparse
import time
from typing import Any

from bayes_sched.cli.command import DONE, REFUSED, Call, print_json
from bayes_sched.cli.parsers import LIMITS
from bayes_sched.cli.progress import shown_progress
from bayes_sched.files import SLA, result_folder
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.reports.sla import sla_text, write_sla
from bayes_sched.sla.request import RequestSLA, request_sla
from bayes_sched.sla.steps import StepSLA, step_sla


def run(options: argparse.Namespace, call: Call) -> int:
    """Do what was asked for; return the exit status."""
    start = time.perf_counter()
    fit = load_fit(options)
    steps, request = answer_steps(fit, options), answer_request(fit, options, call)
    seconds = time.perf_counter() - start
    say_warnings(fit, call)
    is_promised = all(answer.is_promised for answer in (steps, request) if answer is not None)
    numbers = {
        "fit": fit.metadata.name,
        "labels": dict(fit.metadata.labels),
        "converged": fit.converged,
        "warnings": list(fit.warnings),
        "region": fit.region.text,
        "is_promised": is_promised,
        "steps": None if steps is None else steps.to_dict(),
        "request": None if request is None else request.to_dict(),
    }
    paths = write(options, call, steps, request, numbers)
    if options.json:
        print_json({**numbers, "paths": paths, "seconds": round(seconds, 2)})
    else:
        saved = [f"Saved {paths['report']}"] if paths else []
        print("\n\n".join([sla_text(steps, request), *saved]))
    return DONE if is_promised else REFUSED


def load_fit(options: argparse.Namespace) -> FittedModel:
    """Read the fit that a question is about."""
    return FittedModel.load(options.posterior, model=options.model)


def say_warnings(fit: FittedModel, call: Call) -> None:
    """Say what is to be known of a fit before it is trusted."""
    unconverged = () if fit.converged else ("the fit has not converged", *fit.metadata.problems)
    for warning in dict.fromkeys((*fit.warnings, *unconverged)):
        call.say(f"warning: {warning}")


def trust(options: argparse.Namespace) -> dict[str, Any]:
    """Return how sure an answer has to be."""
    names = ("quantile", "confidence", "probability", "extrapolate", "accept_unconverged")
    return {name: getattr(options, name) for name in names}


def token_budget(fit: FittedModel, options: argparse.Namespace, call: Call) -> int:
    """Return the token budget that was given, or else the largest that the trace shows."""
    if options.token_budget is not None:
        return int(options.token_budget)
    budget = int(fit.cells["total_tokens"].max())
    call.say(f"--token-budget is taken to be {budget:,}, the most tokens of a step of the trace")
    return budget


def answer_steps(fit: FittedModel, options: argparse.Namespace) -> StepSLA | None:
    """Judge the limit on steps, if there is one."""
    if options.slo_ms is None:
        return None
    return step_sla(
        fit,
        slo_ms=options.slo_ms,
        batch_size=options.batch_size,
        decodes=options.decodes,
        token_budget=None if options.decodes is None else options.token_budget,
        **trust(options),
    )


def answer_request(fit: FittedModel, options: argparse.Namespace, call: Call) -> RequestSLA | None:
    """Judge the limits on a request, if one is described."""
    if options.prompt_tokens is None:
        return None
    return request_sla(
        fit,
        prompt_tokens=options.prompt_tokens,
        output_tokens=options.output_tokens,
        decodes=options.decodes or 0,
        token_budget=token_budget(fit, options, call),
        **{name: getattr(options, name) for name in LIMITS},
        **trust(options),
    )


def write(
    options: argparse.Namespace,
    call: Call,
    steps: StepSLA | None,
    request: RequestSLA | None,
    numbers: dict[str, Any],
) -> dict[str, str]:
    """Write the report where one is wanted; return its files by what they are."""
    if options.folder is None:
        return {}
    with shown_progress(call) as show:
        show("writing the report", None)
        with result_folder(options.folder, overwrite=options.overwrite, holds=SLA) as folder:
            write_sla(steps, request, folder, numbers=numbers, command=call.line())
    names = {"folder": "", "report": "report.html", "sla": SLA}
    return {what: str(options.folder / name) for what, name in names.items()}
