"""The tables of a validation as a page shows them."""

from __future__ import annotations

import math

from bayes_sched.numbers import NONE, number, percent
from bayes_sched.records import records
from bayes_sched.report.page_table import PageTable, page_table
from bayes_sched.validation import Validation
from bayes_sched.validation.regimes import REGIMES

_SHARES = ("mape", "ape_p95")
_TITLES = {
    "crps_ms": "CRPS (ms)",
    "log_score": "log score",
    "mape": "MAPE",
    "ape_p95": "95th pct. of APE",
    "r2": "R²",
    "rmse_ms": "RMSE (ms)",
    "mae_ms": "MAE (ms)",
    "bias_ms": "bias (ms)",
    "coverage_50": "in 50 % band",
    "coverage_90": "in 90 % band",
    "coverage_99": "in 99 % band",
}


def score_page(found: Validation, *, server: str) -> PageTable:
    """Return CRPS and coverage of the 90 % band by model and split."""
    rows = []
    for model in found.models_of(server):
        cells = {}
        for split in found.splits_of(server):
            crps_ms, covered = (
                found.value(metric, server=server, split=split, model=model)
                for metric in ("crps_ms", "coverage_90")
            )
            cells[split] = NONE if math.isnan(crps_ms) else f"{number(crps_ms)} ({percent(covered)})"
        rows.append({"model": model, **cells})
    return page_table(rows)


def regime_page(found: Validation, *, server: str, split: str) -> PageTable:
    """Return the scores of every model by regime, of one split."""
    chosen = found.scores.query("server == @server and split == @split")
    counts = chosen.groupby("regime")["rows"].mean().to_dict()
    rows = []
    for regime in (name for name in REGIMES if name in counts):
        for model in found.models_of(server):
            values = {
                title: _cell(
                    found.value(metric, server=server, split=split, model=model, regime=regime), metric
                )
                for metric, title in _TITLES.items()
            }
            rows.append({"regime": regime, "model": model, "steps": round(counts[regime]), **values})
    return page_table(rows)


def fit_page(found: Validation) -> PageTable:
    """Return what was fitted, how long it took and whether it passed its gate."""
    rows = [
        {
            "server": row["server"],
            "split": row["split"],
            "model": row["model"],
            "repeat": row["repeat"] + 1,
            "learned from": f"{row['train_rows']:,} of {row['train_available']:,}",
            "predicted": f"{row['test_rows']:,} of {row['test_available']:,}",
            "seconds": number(row.get("seconds")),
            "gate": {True: "passed", False: "FAILED", None: NONE}[row["converged"]],
            "error": row["error"] or "",
        }
        for row in records(found.fits)
    ]
    return page_table(rows, failed=[row["gate"] == "FAILED" or bool(row["error"]) for row in rows])


def _cell(value: float, metric: str) -> str:
    if math.isnan(value):
        return NONE
    is_share = metric in _SHARES or metric.startswith("coverage")
    return percent(value, 1) if is_share else number(value)
