"""Writes the report of a plan into a folder."""

from __future__ import annotations

import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from bayes_sched.files import PLAN, VERSION
from bayes_sched.format import NONE, chance, number, percent, records, span, sureness
from bayes_sched.planning.capacity import CapacityPlan
from bayes_sched.planning.settings import CASES, Optimum
from bayes_sched.planning.simulator import KEYS, LEVELS, NAMES, Simulation
from bayes_sched.reports.page import (
    PageTable,
    ReportFigure,
    ReportPaths,
    date,
    page_table,
    render,
    write_figures,
    write_json,
    write_tables,
)
from bayes_sched.reports.plots.planning import (
    cost_shares,
    replicas_needed,
    request_times,
    throughput_frontier,
)
from bayes_sched.reports.terminal import WIDTH, text_table

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


def plan_frames(plan: Optimum | CapacityPlan) -> dict[str, pd.DataFrame]:
    """Return the tables that are written, with full precision, by name."""
    if isinstance(plan, CapacityPlan):
        return {"servers": plan.table, "request_times": time_quantiles(plan)}
    frames = {"frontier": plan.frontier, "settings": plan.settings}
    for case, terms in plan.terms.items():
        if terms is not None:
            frames[f"terms_{case.replace(' ', '_').replace('-', '_')}"] = terms
    return frames


def time_quantiles(plan: CapacityPlan) -> pd.DataFrame:
    """Return the distribution of each time over requests: ``time``, ``level``, ``ms`` with its interval."""
    tail = 0.5 * (1.0 - plan.probability)
    parts = []
    for key in KEYS:
        draws = pd.DataFrame(plan.shown.quantile_draws(key), columns=LEVELS)
        ends = draws.quantile([0.5, tail, 1.0 - tail]).to_numpy()
        columns = dict(zip(("ms", "ms_lower", "ms_upper"), ends, strict=True))
        parts.append(pd.DataFrame({"time": key, "level": LEVELS, **columns}))
    return pd.concat(parts, ignore_index=True)


def plan_pages(plan: Optimum | CapacityPlan) -> dict[str, PageTable]:
    """Return the tables of the page by their headings."""
    if isinstance(plan, CapacityPlan):
        return {"Servers tried": _servers(plan), "Times of requests": _times(plan), "Load": _load(plan)}
    pages = {"Settings by number of requests": _settings(plan)}
    for case, terms in plan.terms.items():
        if terms is not None:
            pages[f"Where the time goes: {case}"] = _terms(terms)
    return pages


def _settings(plan: Optimum) -> PageTable:
    return page_table(
        [
            {
                "requests (max_num_seqs)": row["batch_size"],
                "token budget": NONE if row["total_tokens"] is None else f"{row['total_tokens']:,}",
                "limited by": row["limited_by"],
                "mean latency (ms)": number(row["latency_ms"]),
                "tokens a second": number(row["tokens_per_s"]),
                "decoding only: tokens a second": number(row["decode_tokens_per_s"]),
            }
            for row in records(plan.settings)
        ]
    )


def _terms(terms: pd.DataFrame) -> PageTable:
    return page_table(
        [
            {
                "kind": row["kind"],
                "what": row["name"],
                "group": row["group"],
                "ms": number(row["latency_ms"]),
                "credible (ms)": span(row["latency_ms_lower"], row["latency_ms_upper"]),
                "share": percent(row["share"], 1),
                "credible": f"{percent(row['share_lower'], 1)} to {percent(row['share_upper'], 1)}",
                "largest of its kind": chance(row["p_largest"]) if row["p_largest"] else "0%",
            }
            for row in records(terms)
        ]
    )


def _servers(plan: CapacityPlan) -> PageTable:
    rows = []
    for simulation in plan.simulations:
        row = simulation.to_dict(probability=plan.probability)
        rows.append(
            {
                "servers": simulation.replicas,
                "confidence": sureness(simulation.confidence),
                "overloaded in": sureness(simulation.p_overloaded) if simulation.p_overloaded else "0%",
                **{
                    f"{NAMES[key]} kept by": _interval(row["times"][key]["within"], 100.0, "%")
                    for key in simulation.asked
                },
                "waiting, p95 over time": _interval(row["queue_p95"]),
                "busy": _interval(row["utilisation"], 100.0, "%"),
                "draws": row["num_draws"],
                "outside of the data": percent(simulation.extrapolated, 1),
            }
        )
    return page_table(rows, failed=[s.replicas != plan.replicas for s in plan.simulations])


def _times(plan: CapacityPlan) -> PageTable:
    row = plan.shown.to_dict(probability=plan.probability)
    return page_table(
        [
            {
                "time": NAMES[key],
                **{
                    f"{level} (ms)": _interval(row["times"][key][f"{level}_ms"])
                    for level in ("p50", "p95", "p99")
                },
                "limit (ms)": number(row["times"][key].get("limit_ms")),
                "confidence": sureness(row["times"][key].get("confidence")),
            }
            for key in KEYS
        ]
    )


def _load(plan: CapacityPlan) -> PageTable:
    row = plan.shown.to_dict(probability=plan.probability)
    names = {
        "queue_mean": "waiting requests, mean over time",
        "queue_p95": "waiting requests, 95% of the time at most",
        "queue_max": "waiting requests, at most",
        "in_system": "requests at a server, mean over time",
        "utilisation": "share of the time busy",
        "preemptions": "preemptions a request",
        "all_within": "share of the requests within all limits",
    }
    return page_table(
        [{"of each server": name, "median and interval": _interval(row[key])} for key, name in names.items()]
    )


def _interval(interval: dict[str, Any], factor: float = 1.0, unit: str = "") -> str:
    if interval["median"] is None:
        return NONE
    middle, lower, upper = (number(factor * interval[name]) for name in ("median", "lower", "upper"))
    return f"{middle}{unit} ({lower} to {upper})"


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


def write_plan(plan: Optimum | CapacityPlan, folder: str | Path, *, command: str = "") -> ReportPaths:
    """Write the report of a plan.

    ``report.html`` needs no other file. Beside it lie ``plan.json``, ``tables/*.csv`` with full precision,
    and the figures, ``figures/*.png`` and ``*.svg``.

    Parameters
    ----------
    plan : Optimum or CapacityPlan
    folder : str or Path
        Made if it does not exist. Files of the same names are overwritten, others left alone.
    command : str
        What it was made by, to be shown on the page.

    Returns
    -------
    ReportPaths
    """
    folder = Path(folder)
    tables = write_tables(plan_frames(plan), folder / "tables")
    figures = write_figures(plan_figures(plan), folder / "figures")
    is_capacity = isinstance(plan, CapacityPlan)
    values = {
        "metadata": plan.fit.metadata,
        "title": "How many servers" if is_capacity else "The most throughput",
        "region": plan.fit.region.text,
        "warnings": plan.fit.warnings,
        "is_promised": plan.is_promised,
        "goal": _capacity_goal(plan) if isinstance(plan, CapacityPlan) else f"Steps: {plan.objective.text}.",
        "answer": plan.text,
        "is_capacity": is_capacity,
        "pages": plan_pages(plan),
        "command": command,
        "version": VERSION,
        "made_at": date(datetime.now(UTC).isoformat()),
        "table_names": list(tables),
    }
    page = folder / "report.html"
    shown = {figure: png for figure, (png, _) in figures.items()}
    page.write_text(render("planning.html.j2", values, shown), encoding="utf-8")
    write_json({**plan.to_dict(), "command": command}, folder / PLAN)
    return ReportPaths(page, folder / PLAN, tables, {figure.name: paths for figure, paths in figures.items()})


def _capacity_goal(plan: CapacityPlan) -> str:
    limits = [f"{key.upper()}: {of.text}" for key, of in plan.objectives.items() if of is not None]
    return f"Workload: {plan.workload.text}. Scheduler: {plan.settings.text}. {'; '.join(limits)}."
