"""``bayes-sched plan``: the best settings, how many servers a workload needs, the next step's budget."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from bayes_sched.cli.command import DONE, REFUSED, Call, print_json
from bayes_sched.cli.fit_parsers import LIMITS
from bayes_sched.cli.progress import Show, shown_progress
from bayes_sched.cli.questions import load_fit, say_cautions, token_budget, trust
from bayes_sched.files import PLAN, result_folder
from bayes_sched.planning.capacity import CapacityPlan, plan_capacity
from bayes_sched.planning.next_step import StepBudgets
from bayes_sched.planning.replay import SchedulerSettings
from bayes_sched.planning.settings import Optimum, optimize_steps
from bayes_sched.planning.workload import Lengths, PoissonWorkload, Workload, read_workload
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.reports.planning import budget_text, plan_text, write_plan


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
        paths = write(options, call, plan, show)
    if options.json:
        about = {"kind": options.kind, "fit": fit.metadata.name, "converged": fit.converged}
        print_json({**about, **plan.to_dict(), "paths": paths, "seconds": round(seconds, 2)})
    else:
        print("\n\n".join([plan_text(plan), *([f"Saved {paths['report']}"] if paths else [])]))
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
        max_num_seqs=options.max_num_seqs,
        kv_tokens=options.kv_tokens,
        step_overhead_ms=options.step_overhead_ms,
    )
    return plan_capacity(
        fit,
        workload,
        settings,
        **{name: getattr(options, name) for name in LIMITS},
        replicas=options.replicas,
        max_replicas=options.max_replicas,
        num_draws=options.draws,
        seed=options.seed,
        progress=show,
        **trust(options),
    )


def next_step(fit: FittedModel, options: argparse.Namespace) -> int:
    """Answer for one step, and say how long an answer takes."""
    seen = round(float(fit.cells["batch_size"].max()))
    needed = options.decodes + 1  # requests of the step; beyond the data only where that is asked for
    budgets = StepBudgets.of_fit(
        fit,
        quantile=options.quantile,
        confidence=options.confidence,
        max_batch_size=needed if options.extrapolate else min(needed, seen),
    )
    asked = {"slo_ms": options.slo_ms, "decodes": options.decodes, "waiting_tokens": options.waiting_tokens}
    answer = budgets.next_step(**asked)
    microseconds = measured_us(lambda: budgets.next_step(**asked))
    is_promised = answer.is_kept and (fit.converged or options.accept_unconverged)
    about = {"is_promised": is_promised, "microseconds": round(microseconds, 2)}
    numbers = {**asked, **answer._asdict(), **about}
    if options.json:
        print_json(numbers)
    else:
        print(budget_text(numbers))
    return DONE if is_promised else REFUSED


def measured_us(ask: Callable[[], object], *, times: int = 2000) -> float:
    """Return how long a call takes, us: the median of several runs."""
    runs = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(times):
            ask()
        runs.append(1e6 * (time.perf_counter() - start) / times)
    return sorted(runs)[2]


def write(
    options: argparse.Namespace, call: Call, plan: Optimum | CapacityPlan, show: Show
) -> dict[str, str]:
    """Write the report where one is wanted; return its files by what they are."""
    if options.folder is None:
        return {}
    show("writing the report", None)
    with result_folder(options.folder, overwrite=options.overwrite, holds=PLAN) as folder:
        write_plan(plan, folder, command=call.line())
    names = {"folder": "", "report": "report.html", "plan": PLAN}
    return {what: str(options.folder / name) for what, name in names.items()}
