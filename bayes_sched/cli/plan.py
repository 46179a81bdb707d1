"""``bayes-sched plan``: the best settings, how many servers a workload needs, the next step's budget."""

from __future__ import annotations

import argparse
import time

from bayes_sched.cli.command import DONE, REFUSED, Call, given, print_json
from bayes_sched.cli.fit_parsers import LIMITS
from bayes_sched.cli.progress import Show, shown_progress
from bayes_sched.cli.questions import load_fit, say_cautions, token_budget, trust
from bayes_sched.cli.results import print_answer
from bayes_sched.planning.capacity import CapacityPlan, plan_capacity
from bayes_sched.planning.next_step import plan_next_step
from bayes_sched.planning.replay import SchedulerSettings
from bayes_sched.planning.settings import Optimum, optimize_steps
from bayes_sched.planning.workload import Lengths, PoissonWorkload, Workload, read_workload
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.reports import planning as _  # noqa: F401, it registers the report
from bayes_sched.reports.document import report
from bayes_sched.reports.terminal import terminal


def run(options: argparse.Namespace, call: Call) -> int:
    """Do what was asked for; return the exit status."""
    workload = workload_of(options) if options.kind == "capacity" else None
    fit = load_fit(options)
    say_cautions(fit, call)
    if options.kind == "budget":
        return next_step(fit, options)
    start = time.perf_counter()
    with shown_progress(call) as show:
        plan: Optimum | CapacityPlan
        if workload is None:
            plan = optimize_steps(fit, slo_ms=options.slo_ms, max_draws=options.draws, **trust(options))
        else:
            plan = capacity(fit, workload, options, call, show)
    seconds = time.perf_counter() - start
    about = {"kind": options.kind, "fit": fit.metadata.name, "converged": fit.converged}
    document = report(plan, command=call.line())
    print_answer(document, options, call, numbers={**about, **plan.to_dict()}, seconds=seconds)
    return DONE if plan.is_promised else REFUSED


def workload_of(options: argparse.Namespace) -> Workload | PoissonWorkload:
    """Read the workload, or describe the one that is generated."""
    if options.workload is not None:
        return read_workload(options.workload)
    return PoissonWorkload(
        rate_per_s=options.rate,
        prompt=Lengths(options.prompt_tokens, options.prompt_spread or 1.0),
        output=Lengths(options.output_tokens, options.output_spread or 1.0),
        num_requests=options.requests or 1000,
    )


def capacity(
    fit: FittedModel,
    workload: Workload | PoissonWorkload,
    options: argparse.Namespace,
    call: Call,
    show: Show,
) -> CapacityPlan:
    """Find how many servers the workload needs."""
    settings = SchedulerSettings(
        token_budget=token_budget(fit, options, call),
        **given(options, "max_num_seqs", "kv_tokens", "step_overhead_ms"),
    )
    return plan_capacity(
        fit,
        workload,
        settings,
        num_draws=options.draws,
        **given(options, *LIMITS, "replicas", "max_replicas", "seed"),
        progress=show,
        **trust(options),
    )


def next_step(fit: FittedModel, options: argparse.Namespace) -> int:
    """Answer for one step, and say how long an answer takes."""
    asked = ("slo_ms", "decodes", "waiting_tokens")
    trusted = ("quantile", "confidence", "extrapolate", "accept_unconverged")
    answer = plan_next_step(fit, **given(options, *asked, *trusted))
    if options.json:
        print_json(answer.to_dict())
    else:
        print(terminal(report(answer)))
    return DONE if answer.is_promised else REFUSED
