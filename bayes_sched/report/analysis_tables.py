"""The tables of a trace's analysis: as files with full precision, and as a page shows them."""

from __future__ import annotations

import pandas as pd

from bayes_sched.analysis import Finding, TraceAnalysis
from bayes_sched.analysis.statistics import label
from bayes_sched.numbers import number, percent, quantity
from bayes_sched.records import records
from bayes_sched.report.page_table import PageTable, page_table

MAX_SHOWN = 50
"""A page lists this many findings of a kind, the worst ones; the file holds all."""


def findings_table(analysis: TraceAnalysis) -> pd.DataFrame:
    """Return one row a finding, with the attributes of `bayes_sched.analysis.Finding`."""
    columns = list(Finding.__dataclass_fields__)
    return pd.DataFrame([finding.to_dict() for finding in analysis.findings], columns=columns)


def slow_schedules(analysis: TraceAnalysis) -> pd.DataFrame:
    """Return every batch whose scheduling took longer than the limit: its place, time and content."""
    columns = [
        *("source", "line", "timestamp", "time_s", "schedule_ms", "latency_ms", "num_prefill_reqs"),
        *("num_decode_reqs", "total_tokens", "num_waiting_reqs"),
    ]
    shown = [name for name in columns if name in analysis.steps]
    if "schedule_ms" not in analysis.steps:
        return analysis.steps.iloc[:0][shown]
    return analysis.steps.loc[analysis.steps["schedule_ms"] > analysis.limits.slow_schedule_ms, shown]


def worst_first(findings: list[Finding], num: int) -> list[Finding]:
    """Return the worst findings of a kind in the order of the trace."""
    kept = {id(finding) for finding in sorted(findings, key=lambda f: -f.value)[:num]}
    return [finding for finding in findings if id(finding) in kept]


def statistics_page(analysis: TraceAnalysis) -> PageTable:
    """Return the table of statistics."""
    return page_table(
        [
            {
                "quantity": label(row["title"], row["unit"]),
                **{
                    name: quantity(row[name], row["unit"])
                    for name in ("mean", "min", "p50", "p95", "p99", "max")
                },
                "batches": row["steps"],
            }
            for row in records(analysis.table)
        ]
    )


def regime_page(analysis: TraceAnalysis) -> PageTable:
    """Return the table of the kinds of batches."""
    return page_table(
        [
            {
                "batches": row["regime"],
                "number": row["steps"],
                "share": percent(row["share"], 1),
                "share of model-run time": percent(row["time_share"] or 0.0, 1),
                "tokens": row["tokens"],
                "mean (ms)": number(row["mean_ms"]),
                "p50 (ms)": number(row["p50_ms"]),
                "p95 (ms)": number(row["p95_ms"]),
                "p99 (ms)": number(row["p99_ms"]),
            }
            for row in records(analysis.regimes)
        ]
    )


def slowest_page(analysis: TraceAnalysis) -> PageTable:
    """Return the table of the slowest batches."""
    return page_table(
        [
            {
                "file and line": f"{row['source']}:{row['line']}",
                "moment": row["moment"] or "",
                "kind": row["regime"],
                **({"schedule (ms)": number(row["schedule_ms"])} if "schedule_ms" in row else {}),
                "model run (ms)": number(row["latency_ms"]),
                "times like batches": number(row["times_typical"], 2),
                "prefill requests": int(row["num_prefill_reqs"]),
                "decode requests": int(row["num_decode_reqs"]),
                "tokens": int(row["total_tokens"]),
            }
            for row in records(analysis.slowest)
        ]
    )


def finding_pages(analysis: TraceAnalysis) -> list[dict[str, object]]:
    """Return for each kind of finding its title, how many there are, and the table of the worst."""
    pages: list[dict[str, object]] = []
    for kind in dict.fromkeys(finding.kind for finding in analysis.findings):
        found = [finding for finding in analysis.findings if finding.kind == kind]
        shown = worst_first(found, MAX_SHOWN)
        rows = [
            {
                "moment": finding.start or "step",
                "file and line": f"{finding.source}:{finding.first_line}",
                "what": finding.text,
            }
            for finding in shown
        ]
        title = kind[0].upper() + kind[1:]
        pages.append({"title": title, "num": len(found), "shown": len(shown), "table": page_table(rows)})
    return pages
