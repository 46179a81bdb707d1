"""The tables of a promise as a page shows them."""

from __future__ import annotations

from bayes_sched.numbers import NONE, number, percent, span
from bayes_sched.records import records
from bayes_sched.report.page_table import PageTable, page_table
from bayes_sched.sla import RequestSLA, StepSLA
from bayes_sched.sla.words import chance, chances, sureness


def frontier_page(steps: StepSLA) -> PageTable:
    """Return the frontier."""
    return page_table(
        [
            {
                "requests, B": row["batch_size"],
                "tokens searched": f"{row['first_tokens']:,} to {row['last_tokens']:,}",
                "tokens promised": _count(row["total_tokens"]),
                "limited by": row["limited_by"],
                "within the limit": chances(row["lower"], row["upper"]),
                "confidence": sureness(row["confidence"]),
                "extrapolation": {None: NONE, True: "yes", False: "no"}[row["extrapolation"]],
                "trace: steps near it": _count(row["near_steps"]),
                "of them late, at least": _share(row["near_late"]),
                "a point estimate allows": _count(row["point_tokens"]),
                "late there": chance(row["point_breach"]),
            }
            for row in records(steps.frontier)
        ],
        failed=[bool(flag) for flag in steps.frontier["is_contradicted"].fillna(False)],
    )


def limit_page(steps: StepSLA) -> PageTable:
    """Return the limits: the decode-only batch, and the token budget where it was asked for."""
    rows = []
    for limit in steps.limits:
        for name, cap in (
            ("promised", limit.promised),
            ("asked", limit.asked),
            ("point estimate", limit.point),
        ):
            if cap is None and name == "asked":
                continue
            rows.append(
                {
                    "what": limit.name,
                    "limit": name,
                    "number": NONE if cap is None else f"{cap.number:,} {limit.unit}",
                    "late there": NONE if cap is None else chance(1.0 - cap.probability),
                    "credible": NONE if cap is None else chances(1.0 - cap.upper, 1.0 - cap.lower),
                    "confidence": NONE if cap is None else sureness(cap.confidence),
                    "extrapolation": NONE if cap is None else "yes" if cap.extrapolation else "no",
                    "trace: steps near it": NONE if cap is None else f"{cap.evidence.num_steps:,}",
                    "of them late, at least": NONE if cap is None else _share(cap.evidence.late_share),
                }
            )
    return page_table(rows, failed=[row["limit"] == "asked" and not steps.is_promised for row in rows])


def request_page(request: RequestSLA) -> PageTable:
    """Return the times of the request."""
    share = f"{100 * request.times[0].quantile:g}%"
    rows = [time.to_dict() for time in request.times]
    return page_table(
        [
            {
                "time": row["name"],
                "half within (ms)": number(row["median_ms"], 4),
                f"{share} within (ms)": number(row["quantile_ms"], 4),
                "credible (ms)": span(row["quantile_lower_ms"], row["quantile_upper_ms"], 4),
                "limit (ms)": NONE if row["limit_ms"] is None else f"{row['limit_ms']:g}",
                "kept by": chance(row["probability"]),
                "credible": NONE if row["lower"] is None else chances(row["lower"], row["upper"]),
                "confidence": sureness(row["confidence"]),
                "may be promised": {None: NONE, True: "yes", False: "NO"}[row["is_kept"]],
            }
            for row in rows
        ],
        failed=[row["is_kept"] is False for row in rows],
    )


def request_step_page(request: RequestSLA) -> PageTable:
    """Return the steps of the request."""
    return page_table(
        [
            {
                "phase": row["phase"],
                "requests, B": row["batch_size"],
                "tokens, S": row["total_tokens"],
                "steps": row["count"],
                "extrapolation": "yes" if row["extrapolation"] else "no",
            }
            for row in records(request.step_table)
        ]
    )


def _share(share: float | None) -> str:
    return NONE if share is None else percent(share)


def _count(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"
