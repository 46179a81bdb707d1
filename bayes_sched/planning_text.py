"""Plans as plain text, no wider than a terminal."""

from __future__ import annotations

import textwrap
from typing import Any

from bayes_sched.numbers import NONE, number, percent, span
from bayes_sched.planning.capacity_plan import CapacityPlan
from bayes_sched.planning.measures import KEYS
from bayes_sched.planning.optimum import CASES, Optimum
from bayes_sched.planning.simulation import Simulation
from bayes_sched.records import records
from bayes_sched.sla.words import chance, sureness
from bayes_sched.terminal import WIDTH, text_table

_MAX_ROWS = 12


def plan_text(plan: Optimum | CapacityPlan) -> str:
    """Return a plan as text."""
    return optimum_text(plan) if isinstance(plan, Optimum) else capacity_text(plan)


def optimum_text(plan: Optimum) -> str:
    """Return the best settings, the settings by number of requests, and where the time goes."""
    parts = [f"Steps: {plan.objective.text}.", filled(plan.text), _settings_text(plan)]
    parts += [_terms_text(plan, case) for case in CASES]
    return "\n\n".join([*filter(None, parts), verdict(plan.is_promised)])


def verdict(is_promised: bool) -> str:
    """Return the last line."""
    return f"The plan {'CAN' if is_promised else 'can NOT'} be made."


def _settings_text(plan: Optimum) -> str:
    rows = records(plan.settings)
    every = -(-len(rows) // _MAX_ROWS) or 1
    shown = [row for i, row in enumerate(rows) if (len(rows) - 1 - i) % every == 0]
    if not any(row["total_tokens"] for row in shown):
        return ""
    titles = ["requests", "token budget", "limit", "latency ms", "tokens/s", "decoding only: tokens/s"]
    cells = [
        [
            f"{row['batch_size']:,}",
            NONE if row["total_tokens"] is None else f"{row['total_tokens']:,}",
            str(row["limited_by"]),
            number(row["latency_ms"]),
            number(row["tokens_per_s"]),
            number(row["decode_tokens_per_s"]),
        ]
        for row in shown
    ]
    head = "Largest token budget for so many requests (means of a step as large):"
    return f"{head}\n{text_table(titles, cells, right=set(titles) - {'limit'})}"


def _terms_text(plan: Optimum, case: str) -> str:
    terms, best = plan.terms[case], plan.best[case]
    if terms is None or best is None:
        return ""
    titles = ["", "where its time goes", "ms", "share", "credible", "P(largest)"]
    cells = [
        [
            str(row["kind"]),
            str(row["name"]),
            number(row["latency_ms"]),
            percent(row["share"], 1),
            f"{percent(row['share_lower'], 1)} to {percent(row['share_upper'], 1)}",
            chance(row["p_largest"]) if row["p_largest"] else "0%",
        ]
        for row in records(terms)
    ]
    head = f"A step of {best['batch_size']:,} requests and {best['total_tokens']:,} tokens ({case}):"
    return f"{head}\n{text_table(titles, cells, right=set(titles[2:]))}"


def capacity_text(plan: CapacityPlan) -> str:
    """Return the verdict, the servers that were tried, and the times of the one that is shown."""
    shown = plan.shown
    parts = [
        filled(f"Workload: {plan.workload.text}. Scheduler: {plan.settings.text}."),
        filled(plan.text),
        _replicas_text(plan),
        _times_text(plan, shown),
        _load_text(plan, shown),
        f"Simulated {plan.num_steps:,} scheduler steps, {plan.steps_per_second:,.0f} a second.",
    ]
    return "\n\n".join([*filter(None, parts), verdict(plan.is_promised)])


def budget_text(numbers: dict[str, Any]) -> str:
    """Return the budget of a step.

    Parameters
    ----------
    numbers : dict
        ``slo_ms``, ``decodes``, ``waiting_tokens``, ``total_tokens``, ``prefill_tokens``, ``is_kept``,
        ``is_promised`` and ``microseconds``, the time of an answer.
    """
    verdict_text = "keeps" if numbers["is_kept"] else "does NOT keep"
    lines = (
        f"Next step: {numbers['total_tokens']:,} tokens, {numbers['decodes']:,} of them decodes and "
        f"{numbers['prefill_tokens']:,} of the {numbers['waiting_tokens']:,} waiting; it {verdict_text} "
        f"{numbers['slo_ms']:g} ms."
    )
    return "\n\n".join(
        [
            filled(lines),
            f"An answer takes {numbers['microseconds']:.2f} us (StepBudgets.next_step).",
            verdict(numbers["is_promised"]),
        ]
    )


def _replicas_text(plan: CapacityPlan) -> str:
    titles = ["servers", "confidence", "overload", *(f"{key.upper()} kept by" for key in plan.shown.asked)]
    titles += ["queue p95", "busy", "draws"]
    cells = []
    for simulation in plan.simulations:
        row = simulation.to_dict(probability=plan.probability)
        cells.append(
            [
                f"{simulation.replicas:,}",
                sureness(simulation.confidence),
                sureness(simulation.p_overloaded) if simulation.p_overloaded else "0%",
                *(_share(row["times"][key]["within"]["median"]) for key in simulation.asked),
                number(row["queue_p95"]["median"]),
                percent(row["utilisation"]["median"]),
                f"{row['num_draws']:,}",
            ]
        )
    head = "Servers tried (of shares and queues the median over draws):"
    return f"{head}\n{text_table(titles, cells, right=set(titles))}"


def _times_text(plan: CapacityPlan, simulation: Simulation) -> str:
    row = simulation.to_dict(probability=plan.probability)
    titles = ["ms", "p50", "p95", "p99", "credible p99", "limit", "kept by", "confidence"]
    cells = [[key.upper(), *_time_cells(row["times"][key])] for key in KEYS]
    head = f"Requests with {simulation.replicas:,} server{'' if simulation.replicas == 1 else 's'}:"
    return f"{head}\n{text_table(titles, cells, right=set(titles) - {'ms'})}"


def _time_cells(time: dict[str, Any]) -> list[str]:
    p99 = time["p99_ms"]
    limits = [NONE, NONE, NONE]
    if "limit_ms" in time:
        limits = [f"{time['limit_ms']:g}", _shares(time["within"]), sureness(time["confidence"])]
    middle = [number(time[level]["median"]) for level in ("p50_ms", "p95_ms", "p99_ms")]
    return [*middle, span(p99["lower"], p99["upper"]), *limits]


def _load_text(plan: CapacityPlan, simulation: Simulation) -> str:
    row = simulation.to_dict(probability=plan.probability)
    titles = ["each server, over time", "median", "credible"]
    names = {
        "queue_mean": "waiting requests, mean",
        "queue_p95": "waiting requests, p95",
        "in_system": "requests there, mean",
        "utilisation": "share of the time busy",
        "preemptions": "preemptions a request",
    }
    cells = [
        [name, number(row[key]["median"]), span(row[key]["lower"], row[key]["upper"])]
        for key, name in names.items()
    ]
    return text_table(titles, cells, right=set(titles[1:]))


def _share(value: float | None) -> str:
    return NONE if value is None else percent(value, 1)


def _shares(interval: dict[str, float | None]) -> str:
    middle, lower, upper = (interval[name] for name in ("median", "lower", "upper"))
    if middle is None or lower is None or upper is None:
        return NONE
    return f"{100 * middle:.1f}% ({100 * lower:.1f} to {100 * upper:.1f})"


def filled(text: str) -> str:
    """Wrap a paragraph."""
    return textwrap.fill(text, WIDTH, break_on_hyphens=False)
