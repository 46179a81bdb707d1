"""The tables of a plan: as files, and as a page shows them."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bayes_sched.numbers import NONE, number, percent, span
from bayes_sched.planning.capacity_plan import CapacityPlan
from bayes_sched.planning.measures import KEYS, LEVELS, NAMES
from bayes_sched.planning.optimum import Optimum
from bayes_sched.records import records
from bayes_sched.report.page_table import PageTable, page_table
from bayes_sched.sla.words import chance, sureness


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
