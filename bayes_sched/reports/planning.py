"""Plans as documents: the best settings, the servers that a workload needs, the next step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd

from bayes_sched.files import PLAN as JSON_NAME
from bayes_sched.format import NONE, chance, count, counted, number, percent, span, sureness
from bayes_sched.planning.capacity import CapacityPlan
from bayes_sched.planning.next_step import NextStep
from bayes_sched.planning.settings import Optimum
from bayes_sched.planning.simulator import KEYS
from bayes_sched.reports import document as doc
from bayes_sched.sla.request import NAMES

_MAX_ROWS = 12
_ENDS = ("median", "lower", "upper")

_SETTINGS = (
    "Settings are a number of requests and a token budget; they keep a limit where all steps up to them do "
    "at once, at the quantile (what steps do) and the confidence (what we know) asked for. {} Nothing "
    "outside of it is used unless that was asked for."
)
_SIMULATION = (
    "Each posterior draw is a replay of its own: all of its steps share the draw's parameters, so that what "
    "we do not know of the server does not average out, and each has noise of its own. The scheduler is that "
    "of vLLM V1 with chunked prefill: running requests first, then waiting ones in the order of their "
    "arrival, within the token budget, the number of sequences and the KV cache, where a running request "
    "that finds no room preempts the newest. Simplified: scheduling is synchronous, the prefix cache is "
    "empty, requests are dealt to servers in turn, all servers are of the same draw, and the noise of steps "
    "is independent (real steps drift together: leave a margin). {}"
)


@doc.report.register
def _(plan: Optimum, *, command: str = "") -> doc.Document:
    frames = {"frontier": plan.frontier, "settings": plan.settings}
    sections = [_settings(plan)]
    for case, terms in plan.terms.items():
        if terms is not None:
            frames[f"terms_{case.replace(' ', '_').replace('-', '_')}"] = terms
            sections.append(_terms(plan, case, terms))
    head: tuple[doc.Item, ...] = (
        doc.Text(f"Steps: {plan.objective.text}.", "lead"),
        doc.Text(plan.text, "lead"),
        *doc.beware(plan.fit.cautions),
        doc.Text(_SETTINGS.format(plan.fit.region.text), on="page"),
        *_optimum_figures(plan),
    )
    return _document(plan, "The most throughput", (*head, *sections), frames, command)


@doc.report.register
def _(plan: CapacityPlan, *, command: str = "") -> doc.Document:
    limits = [f"{key.upper()}: {of.text}" for key, of in plan.objectives.items() if of is not None]
    goal = f"Workload: {plan.workload.text}. Scheduler: {plan.settings.text}."
    speed = f"Simulated {plan.num_steps:,} scheduler steps, {plan.steps_per_second:,.0f} a second."
    sections: tuple[doc.Item, ...] = (
        doc.Text(goal, on="terminal"),
        doc.Text(" ".join([goal, *([f"{'; '.join(limits)}."] if limits else [])]), "lead", on="page"),
        doc.Text(plan.text, "lead"),
        *doc.beware(plan.fit.cautions),
        doc.Text(_SIMULATION.format(plan.fit.region.text), on="page"),
        *_capacity_figures(plan),
        _servers(plan),
        _times(plan),
        _load(plan),
        doc.Text(speed, on="terminal"),
    )
    frames = {"servers": plan.table, "request_times": plan.request_times}
    return _document(plan, "How many servers", sections, frames, command)


@doc.report.register
def _(step: NextStep, *, command: str = "") -> doc.Document:
    budget = step.budget
    told = (
        f"Next step: {budget.total_tokens:,} tokens, {step.decodes:,} of them decodes and "
        f"{budget.prefill_tokens:,} of the {step.waiting_tokens:,} waiting; it "
        f"{'keeps' if budget.is_kept else 'does NOT keep'} {step.slo_ms:g} ms."
    )
    speed = f"An answer takes {step.microseconds:.2f} us (StepBudgets.next_step)."
    sections = (
        doc.Text(told),
        *map(doc.Text, step.notes),
        doc.Text(speed),
        _verdict(is_promised=step.is_promised),
    )
    return doc.Document(
        title="The next step", name="The next step", sections=sections, numbers=step.to_dict()
    )


def _document(
    plan: Optimum | CapacityPlan,
    what: str,
    sections: tuple[doc.Item, ...],
    frames: dict[str, pd.DataFrame],
    command: str,
) -> doc.Document:
    fit, title = plan.fit, f"{what}: {plan.fit.metadata.name}"
    verdict = "the plan can be made" if plan.is_promised else "THE PLAN CAN NOT BE MADE"
    return doc.Document(
        title=title,
        name=title,
        subtitle=doc.made(*doc.labelled(fit.metadata.labels)),
        head=(doc.Text(verdict, "good" if plan.is_promised else "bad", on="page"),),
        sections=(
            *sections,
            _verdict(is_promised=plan.is_promised),
            doc.how_made(command, files=[JSON_NAME], frames=list(frames), end=fit.source_text),
        ),
        numbers={**plan.to_dict(), "command": command},
        json_name=JSON_NAME,
        frames=frames,
    )


def _verdict(*, is_promised: bool) -> doc.Text:
    return doc.Text(f"The plan {'CAN' if is_promised else 'can NOT'} be made.", on="terminal")


def _settings(plan: Optimum) -> doc.Section:
    is_any = bool(plan.settings["total_tokens"].notna().any())
    head = "Largest token budget for so many requests (means of a step as large):"
    table = doc.Table(
        plan.settings,
        (
            doc.Column("batch_size", "requests (max_num_seqs)", short="requests"),
            doc.Column("total_tokens", "token budget", count),
            doc.Column("limited_by", "limited by", short="limit"),
            doc.Column("latency_ms", "mean latency (ms)", number, short="latency ms"),
            doc.Column("tokens_per_s", "tokens a second", number, short="tokens/s"),
            doc.Column(
                "decode_tokens_per_s", "decoding only: tokens a second", number, "decoding only: tokens/s"
            ),
        ),
        on=None if is_any else "page",
        max_rows=_MAX_ROWS,
    )
    return doc.Section(
        "Settings by number of requests", (*([doc.Text(head, on="terminal")] if is_any else ()), table)
    )


def _terms(plan: Optimum, case: str, terms: pd.DataFrame) -> doc.Section:
    best = plan.best[case] or {}
    head = (
        f"A step of {count(best['batch_size'])} requests and {count(best['total_tokens'])} tokens ({case}):"
    )
    share = partial(percent, digits=1)
    table = doc.Table(
        terms,
        (
            doc.Column("kind", "kind"),
            doc.Column("name", "what", short="where its time goes"),
            doc.Column("group", "group", short=""),
            doc.Column("latency_ms", "ms", number),
            doc.Column(("latency_ms_lower", "latency_ms_upper"), "credible (ms)", span, short=""),
            doc.Column("share", "share", share),
            doc.Column(("share_lower", "share_upper"), "credible", lambda a, b: f"{share(a)} to {share(b)}"),
            doc.Column("p_largest", "largest of its kind", _or_zero(chance), short="P(largest)"),
        ),
    )
    return doc.Section(f"Where the time goes: {case}", (doc.Text(head, on="terminal"), table))


def _servers(plan: CapacityPlan) -> doc.Section:
    share, shares = partial(percent, digits=1), partial(_interval, factor=100.0, unit="%")
    within = (
        *(_on_page(f"{key}_within", f"{NAMES[key]} kept by", shares) for key in plan.shown.asked),
        *(
            doc.Column(f"{key}_within_median", "", share, f"{key.upper()} kept by")
            for key in plan.shown.asked
        ),
    )
    columns = (
        doc.Column("replicas", "servers"),
        doc.Column("confidence", "confidence", sureness),
        doc.Column("p_overloaded", "overloaded in", _or_zero(sureness), short="overload"),
        *within,
        _on_page("queue_p95", "waiting, p95 over time", _interval),
        doc.Column("queue_p95_median", "", number, short="queue p95"),
        _on_page("utilisation", "busy", shares),
        doc.Column("utilisation_median", "", percent, short="busy"),
        doc.Column("num_draws", "draws"),
        doc.Column("extrapolated", "outside of the data", share, short=""),
    )
    head = "Servers tried (of shares and queues the median over draws):"
    failed = [simulation.replicas != plan.replicas for simulation in plan.simulations]
    return doc.Section(
        "Servers tried", (doc.Text(head, on="terminal"), doc.Table(plan.table, columns, failed))
    )


def _times(plan: CapacityPlan) -> doc.Section:
    shown = plan.shown
    rows = [
        {"time": NAMES[key], "key": key.upper(), "limit_ms": None, "confidence": None}
        | {name: value for name, value in shown.times[key].items() if not isinstance(value, dict)}
        | {
            f"{name}_{end}": shown.times[key].get(name, {}).get(end)
            for name in ("p50_ms", "p95_ms", "p99_ms", "within")
            for end in _ENDS
        }
        for key in KEYS
    ]
    columns = (
        doc.Column("time", "time", short=""),
        doc.Column("key", "", short="ms"),
        *(_on_page(f"{level}_ms", f"{level} (ms)", _interval) for level in ("p50", "p95", "p99")),
        *(doc.Column(f"{level}_ms_median", "", number, short=level) for level in ("p50", "p95", "p99")),
        doc.Column(("p99_ms_lower", "p99_ms_upper"), "", span, short="credible p99"),
        doc.Column("limit_ms", "limit (ms)", number, short="limit"),
        doc.Column(tuple(f"within_{end}" for end in _ENDS), "", _shares, short="kept by"),
        doc.Column("confidence", "confidence", sureness),
    )
    head = f"Requests with {counted(shown.replicas, 'server')}:"
    table = doc.Table(pd.DataFrame(rows).astype(object), columns)
    return doc.Section("Times of requests", (doc.Text(head, on="terminal"), table))


def _load(plan: CapacityPlan) -> doc.Section:
    names = {
        "queue_mean": "waiting requests, mean over time",
        "queue_p95": "waiting requests, 95% of the time at most",
        "queue_max": "waiting requests, at most",
        "in_system": "requests at a server, mean over time",
        "utilisation": "share of the time busy",
        "preemptions": "preemptions a request",
        "all_within": "share of the requests within all limits",
    }
    intervals = {**plan.shown.load, "all_within": plan.shown.all_within}
    rows = [{"name": name, **intervals[key]} for key, name in names.items()]
    columns = (
        doc.Column("name", "of each server"),
        doc.Column(_ENDS, "median and interval", _interval, short=""),
        doc.Column("median", "", number, short="median"),
        doc.Column(("lower", "upper"), "", span, short="credible"),
    )
    return doc.Section("Load", (doc.Table(pd.DataFrame(rows), columns),))


def _on_page(name: str, title: str, write: Callable[..., str]) -> doc.Column:
    """Return a column of intervals that a terminal has no room for."""
    return doc.Column(tuple(f"{name}_{end}" for end in _ENDS), title, write, short="")


def _interval(
    median: float | None, lower: float | None, upper: float | None, *, factor: float = 1.0, unit: str = ""
) -> str:
    if median is None or lower is None or upper is None:
        return NONE
    return f"{number(factor * median)}{unit} ({span(factor * lower, factor * upper)})"


def _shares(median: float | None, lower: float | None, upper: float | None) -> str:
    if median is None or lower is None or upper is None:
        return NONE
    return f"{100 * median:.1f}% ({100 * lower:.1f} to {100 * upper:.1f})"


def _or_zero(write: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda share: write(share) if share else "0%"


def _optimum_figures(plan: Optimum) -> list[doc.Figure]:
    band = f"{100 * plan.probability:g}%"
    frontier = (
        "The most tokens a second of any settings that keep a limit: all steps up to them do, at the "
        f"quantile and the confidence asked for. The band ({band} credible) is what we do not know of the "
        "throughput, often less than the line is wide. A curve ends where the trace holds no larger steps."
    )
    shares = (
        f"The share of each term of the equation in the mean latency of the best steps, with its {band} "
        "credible interval. Single terms may be told apart only in sums; the groups say what to change."
    )
    figures = [doc.figure("limits.throughput_frontier", "Throughput against latency", frontier, plan)]
    if any(terms is not None for terms in plan.terms.values()):
        figures.append(doc.figure("limits.cost_shares", "Where the time goes", shares, plan))
    return figures


def _capacity_figures(plan: CapacityPlan) -> tuple[doc.Figure, ...]:
    band = f"{100 * plan.probability:g}%"
    servers = (
        "Above: the share of the posterior draws in which a number of servers keeps every limit, and no "
        f"queue grows without end. Below: the share of the requests within all limits, with its {band} "
        "interval over draws."
    )
    times = (
        f"The share of the requests that take longer than a time, on a logarithmic scale; {band} of the "
        "posterior draws lie in the band."
    )
    return (
        doc.figure("limits.replicas_needed", "How many servers", servers, plan),
        doc.figure("limits.request_times", "How long requests take", times, plan),
    )
