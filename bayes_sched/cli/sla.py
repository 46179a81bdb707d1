"""``bayes-sched sla``: what a fitted server may promise, of its steps and of requests."""

from __future__ import annotations

import argparse
import time

from bayes_sched.cli.command import DONE, REFUSED, Call, given
from bayes_sched.cli.fit_parsers import LIMITS
from bayes_sched.cli.questions import load_fit, say_cautions, token_budget, trust
from bayes_sched.cli.results import print_answer
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.reports import sla as _  # noqa: F401, it registers the report
from bayes_sched.reports.document import report
from bayes_sched.sla.request import RequestSLA, request_sla
from bayes_sched.sla.steps import SLA, StepSLA, step_sla


def run(options: argparse.Namespace, call: Call) -> int:
    """Do what was asked for; return the exit status."""
    start = time.perf_counter()
    fit = load_fit(options)
    steps, request = answer_steps(fit, options), answer_request(fit, options, call)
    answer = SLA.of(fit, steps, request, is_drawn=options.report)
    seconds = time.perf_counter() - start
    say_cautions(fit, call)
    document = report(answer, command=call.line())
    print_answer(document, options, call, numbers=answer.to_dict(), seconds=seconds)
    return DONE if answer.is_promised else REFUSED


def answer_steps(fit: FittedModel, options: argparse.Namespace) -> StepSLA | None:
    """Judge the limit on steps, if there is one."""
    if options.slo_ms is None:
        return None
    return step_sla(
        fit,
        **given(options, "slo_ms", "batch_size", "decodes"),
        token_budget=None if options.decodes is None else options.token_budget,
        **trust(options),
    )


def answer_request(fit: FittedModel, options: argparse.Namespace, call: Call) -> RequestSLA | None:
    """Judge the limits on a request, if one is described."""
    if options.prompt_tokens is None:
        return None
    return request_sla(
        fit,
        **given(options, "prompt_tokens", "output_tokens"),
        decodes=options.decodes or 0,
        token_budget=token_budget(fit, options, call),
        **given(options, *LIMITS),
        **trust(options),
    )
