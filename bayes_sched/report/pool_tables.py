"""The tables of a pool as a page shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from bayes_sched.numbers import number, percent, span
from bayes_sched.pooling import UNSEEN
from bayes_sched.records import records
from bayes_sched.report.page_table import PageTable, page_table
from bayes_sched.report.pool_summary import PoolSummary
from bayes_sched.report.pool_words import coordinate_words, factor_text

NOT_SEEN = "a server not yet seen"


def spread_page(found: PoolSummary) -> PageTable:
    """Return how alike servers are, coordinate by coordinate."""
    share = percent(found.probability)
    return page_table(
        [
            {
                "coordinate": coordinate_words(row["coordinate"]),
                "unit": row["unit"],
                f"mean server ({share} interval)": _value(row, "mean"),
                "from server to server, factor": factor_text(row, "between"),
                "its contraction": f"{row['between_contraction']:.2f}",
                "from trace to trace, factor": factor_text(row, "within"),
                "contraction": f"{row['within_contraction']:.2f}",
                f"{NOT_SEEN} ({share})": _value(row, "unseen"),
            }
            for row in records(found.spread)
        ]
    )


def member_page(found: PoolSummary) -> PageTable:
    """Return the pooled traces; those that have not converged by themselves are marked."""
    return page_table(
        [
            {
                "trace": row["trace"],
                "server": row["server"],
                "steps": row["steps"],
                "draws": row["draws"],
                "effective draws, pooled": round(row["effective_draws"]),
                "converged alone": "yes" if row["converged"] else "NO",
            }
            for row in records(found.members)
        ],
        failed=[not converged for converged in found.members["converged"]],
    )


def change_page(found: PoolSummary) -> PageTable:
    """Return what pooling did to each trace, ordered by coordinate."""
    share = percent(found.probability)
    order = found.spread["coordinate"].tolist()
    ordered = found.changes.sort_values("coordinate", key=lambda names: names.map(order.index), kind="stable")
    return page_table(
        [
            {
                "coordinate": row["coordinate"],
                "unit": row["unit"],
                "trace": row["trace"],
                f"alone ({share} interval)": _value(row, "alone"),
                f"pooled ({share} interval)": _value(row, "pooled"),
                "width, pooled over alone": f"{row['width_ratio']:.2f}",
            }
            for row in records(ordered)
        ]
    )


def step_page(found: PoolSummary) -> PageTable:
    """Return what typical steps take on each server."""
    share = percent(found.probability)
    return page_table(
        [
            {
                "step": row["step"],
                "B": row["batch_size"],
                "S": row["total_tokens"],
                "server of": NOT_SEEN if row["trace"] == UNSEEN else row["trace"],
                "mean (ms)": number(row["mean_median_ms"]),
                f"mean, {share} credible (ms)": span(row["mean_lower_ms"], row["mean_upper_ms"]),
                f"{share} of steps (ms)": span(row["lower_ms"], row["upper_ms"]),
                "extrapolation": "yes" if row["extrapolation"] else "no",
            }
            for row in records(found.steps.sort_values(["batch_size", "total_tokens"], kind="stable"))
        ]
    )


def file_tables(found: PoolSummary) -> dict[str, pd.DataFrame]:
    """Return the tables that are written as files, with full precision."""
    return {
        "spread": found.spread,
        "alone_and_pooled": found.changes,
        "members": found.members,
        "typical_steps": found.steps,
        "convergence": found.population.convergence.table.rename_axis("variable").reset_index(),
    }


def _value(row: Mapping[str, Any], key: str) -> str:
    return f"{number(row[key])} ({span(row[f'{key}_lower'], row[f'{key}_upper'])})"
