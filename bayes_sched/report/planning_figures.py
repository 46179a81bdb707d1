"""The figures of a plan, each with a heading and a caption that says how to read it."""

from __future__ import annotations

from bayes_sched.planning.capacity_plan import CapacityPlan
from bayes_sched.planning.optimum import Optimum
from bayes_sched.plots.planning_frontier import throughput_frontier
from bayes_sched.plots.planning_replicas import replicas_needed
from bayes_sched.plots.planning_terms import cost_shares
from bayes_sched.plots.planning_times import request_times
from bayes_sched.report.files import ReportFigure


def plan_figures(plan: Optimum | CapacityPlan) -> tuple[ReportFigure, ...]:
    """Return the figures in the order of the page; none is drawn yet."""
    return _optimum(plan) if isinstance(plan, Optimum) else _capacity(plan)


def _optimum(plan: Optimum) -> tuple[ReportFigure, ...]:
    band = f"{100 * plan.probability:g}%"
    figures = [
        ReportFigure(
            "throughput_frontier",
            "Throughput against latency",
            "The most tokens a second of any settings that keep a limit: all steps up to them do, at the "
            f"quantile and the confidence asked for. The band ({band} credible) is what we do not know of "
            "the throughput, often less than the line is wide. A curve ends where the trace holds no larger "
            "steps.",
            lambda: throughput_frontier(plan),
        )
    ]
    if any(terms is not None for terms in plan.terms.values()):
        figures.append(
            ReportFigure(
                "cost_shares",
                "Where the time goes",
                "The share of each term of the equation in the mean latency of the best steps, with its "
                f"{band} credible interval. Single terms may be told apart only in sums; the groups say "
                "what to change.",
                lambda: cost_shares(plan),
            )
        )
    return tuple(figures)


def _capacity(plan: CapacityPlan) -> tuple[ReportFigure, ...]:
    band = f"{100 * plan.probability:g}%"
    return (
        ReportFigure(
            "replicas_needed",
            "How many servers",
            "Above: the share of the posterior draws in which a number of servers keeps every limit, and no "
            f"queue grows without end. Below: the share of the requests within all limits, with its {band} "
            "interval over draws.",
            lambda: replicas_needed(plan),
        ),
        ReportFigure(
            "request_times",
            "How long requests take",
            f"The share of the requests that take longer than a time, on a logarithmic scale; {band} of the "
            "posterior draws lie in the band.",
            lambda: request_times(plan),
        ),
    )
