"""The tables of a comparison as a page shows them."""

from __future__ import annotations

import pandas as pd

from bayes_sched.comparison import Comparison
from bayes_sched.comparison.misfit import misfit_of
from bayes_sched.comparison.words import certainty, ratio_text
from bayes_sched.numbers import NONE, number, percent, span
from bayes_sched.records import records
from bayes_sched.report.page_table import PageTable, page_table

NONE_DECIDES = "hardly any"


def fit_page(comparison: Comparison) -> PageTable:
    """Return the table of the fits; those that have not converged are marked."""
    rows = [
        {
            "label": member.label,
            "result": member.fit.metadata.name,
            "GPU": member.fit.metadata.labels.get("gpu", NONE),
            "LLM": member.fit.metadata.labels.get("llm", NONE),
            "steps": member.fit.metadata.rows.used,
            "equation off by": NONE if (off := misfit_of(member.fit)) is None else f"< {percent(off, 1)}",
            "price an hour": number(member.price_per_hour),
            "converged": "yes" if member.fit.converged else "NO",
        }
        for member in comparison.members
    ]
    return page_table(rows, failed=[not member.fit.converged for member in comparison.members])


def difference_page(comparison: Comparison) -> PageTable:
    """Return the table of what differs."""
    return page_table(
        [
            {"what": row["what"], **{label: str(row[label]) for label in comparison.labels}}
            for row in records(comparison.differences)
        ]
    )


def share_page(comparison: Comparison) -> PageTable:
    """Return how often each verdict is given."""
    return page_table(
        [
            {
                "server": row["gpu"],
                "against": row["other"],
                "of the": row["of"],
                "distinct": row["num_steps"],
                **{word: percent(row[word]) for word in ("faster", "slower", "equivalent", "undecided")},
                "ratio": span(row["ratio_smallest"], row["ratio_largest"]),
            }
            for row in records(comparison.shares)
        ]
    )


def step_page(comparison: Comparison) -> PageTable:
    """Return what typical steps take."""
    interval = f"ratio ({percent(comparison.probability)} interval)"
    return page_table(
        [
            {
                "step": row["step"],
                "B": row["batch_size"],
                "S": row["total_tokens"],
                "server": row["gpu"],
                "mean (ms)": row["gpu_ms"],
                "against": row["other"],
                "its mean (ms)": row["other_ms"],
                interval: ratio_text(row),
                "P(faster on average)": certainty(row["p_faster"]),
                "P(a step is faster)": certainty(row["p_step_faster"]),
                "verdict": row["verdict"],
            }
            for row in records(comparison.steps)
        ]
    )


def wanted_page(comparison: Comparison) -> PageTable:
    """Return which further data would decide."""
    return page_table(
        [
            {
                "server": row["gpu"],
                "against": row["other"],
                "B": row["batch_size"],
                "S": row["total_tokens"],
                "ratio": ratio_text(row),
                "measure on": row["measure"],
                "such steps so far": row["steps_seen"],
                "data that would decide": NONE_DECIDES
                if row["times_data"] is None
                else f"{number(row['times_data'], 2)} times",
            }
            for row in records(comparison.wanted)
        ]
    )


def equivalent_page(comparison: Comparison) -> PageTable:
    """Return the equivalents."""
    return page_table(
        [
            {
                "decodes": row["batch_size"],
                "on": row["gpu"],
                "cost what": _decodes(row["median"], row["limit"]),
                "on the server": row["other"],
                f"{percent(comparison.probability)} interval": f"{_decodes(row['lower'], row['limit'])} to "
                f"{_decodes(row['upper'], row['limit'])}",
                "extrapolation": "yes" if row["extrapolation"] else "no",
            }
            for row in records(comparison.equivalents)
        ]
    )


def _decodes(value: float | None, limit: float) -> str:
    if value is None:
        return f"> {limit:,.0f}"
    return "< 1" if value == 0 else number(value)


def throughput_page(comparison: Comparison) -> PageTable:
    """Return throughput and cost."""
    interval = f"{percent(comparison.probability)} interval"
    return page_table(
        [
            {
                "case": row["case"],
                "server": row["gpu"],
                "B": NONE if row["batch_size"] is None else f"{row['batch_size']:,.0f}",
                "S": NONE if row["total_tokens"] is None else f"{row['total_tokens']:,.0f}",
                "set by": row["set_by"],
                "tokens/s": number(row["tokens_per_s"]),
                interval: span(row["tokens_per_s_lower"], row["tokens_per_s_upper"], 4),
                "cost of a million": number(row["cost"]),
                f"its {interval}": NONE
                if row["cost"] is None
                else span(row["cost_lower"], row["cost_upper"], 4),
            }
            for row in records(comparison.throughput)
        ]
    )


def money_page(comparison: Comparison) -> PageTable:
    """Return how throughputs and costs compare."""
    return page_table(
        [
            {
                "case": row["case"],
                "quantity": row["quantity"],
                "server": row["gpu"],
                "against": row["other"],
                f"ratio ({percent(comparison.probability)} interval)": ratio_text(row),
                "P(better)": certainty(row["p_better"]),
                "verdict": row["verdict"],
            }
            for row in records(comparison.money)
        ]
    )


def parameter_page(comparison: Comparison) -> PageTable:
    """Return how the parameters compare."""
    medians = {(row["gpu"], row["name"]): number(row["median"]) for row in records(comparison.parameters)}
    return page_table(
        [
            {
                "name": row["name"],
                "unit": row["unit"],
                "server": row["gpu"],
                "median": medians[row["gpu"], row["name"]],
                "against": row["other"],
                "its median": medians[row["other"], row["name"]],
                "difference": f"{number(row['difference'])} "
                f"({span(row['difference_lower'], row['difference_upper'])})",
                "ratio": ratio_text(row),
                "P(greater)": certainty(row["p_greater"]) if row["identified"] else NONE,
                "verdict": row["verdict"],
            }
            for row in records(comparison.parameter_ratios)
        ]
    )


def file_tables(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """Return the tables that are written as files, with full precision."""
    return {
        "latency": comparison.table,
        "steps": comparison.steps,
        "shares": comparison.shares,
        "wanted_data": comparison.wanted,
        "equivalents": comparison.equivalents,
        "throughput": comparison.throughput,
        "throughput_and_cost_ratios": comparison.money,
        "parameters": comparison.parameters,
        "parameter_ratios": comparison.parameter_ratios,
        "differences": comparison.differences,
    }
