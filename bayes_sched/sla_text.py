"""What may be promised, as plain text, no wider than a terminal."""

from __future__ import annotations

import textwrap
from typing import Any

from bayes_sched.numbers import NONE, number, span
from bayes_sched.records import records
from bayes_sched.sla import RequestSLA, StepSLA
from bayes_sched.sla.words import chance, chances, sureness
from bayes_sched.terminal import WIDTH, text_table

_MAX_ROWS = 12


def sla_text(steps: StepSLA | None, request: RequestSLA | None) -> str:
    """Return the verdict, what it rests on, and the tables.

    Parameters
    ----------
    steps : StepSLA or None
    request : RequestSLA or None
    """
    parts: list[str] = []
    if steps is not None:
        parts += [_steps_text(steps), _frontier_text(steps)]
    if request is not None:
        parts += [_filled(request.request_text), _request_text(request)]
        if bool(request.step_table["extrapolation"].any()):
            parts.append("EXTRAPOLATION: the trace holds no such steps as some of this request.")
    reasons = [*(steps.refusals if steps else ()), *(request.refusals if request else ())]
    parts += [_filled(reason) for reason in dict.fromkeys(reasons)]
    asked = [answer for answer in (steps, request) if answer is not None]
    is_promised = all(answer.is_promised for answer in asked)
    return "\n\n".join([*filter(None, parts), f"The promise {'CAN' if is_promised else 'can NOT'} be made."])


def _steps_text(steps: StepSLA) -> str:
    lines = [f"Steps: {steps.objective.text}."]
    if steps.is_below_floor:
        lines.append(_filled(steps.floor_text))
    lines += [_filled(limit.text) for limit in steps.limits]
    return "\n".join(lines)


def _frontier_text(steps: StepSLA) -> str:
    """Return the frontier, at most `_MAX_ROWS` rows of it."""
    rows = records(steps.frontier)
    every = -(-len(rows) // _MAX_ROWS) or 1
    shown = [row for i, row in enumerate(rows) if (len(rows) - 1 - i) % every == 0]
    titles = [
        "B",
        "promised",
        "limit",
        "within SLO",
        "confidence",
        "late in trace",
        "point allows",
        "late there",
    ]
    cells = [
        [
            f"{row['batch_size']:,}",
            _count(row["total_tokens"]) + ("*" if row["extrapolation"] else ""),
            str(row["limited_by"]),
            chances(row["lower"], row["upper"]),
            sureness(row["confidence"]),
            _seen(row),
            _count(row["point_tokens"]),
            chance(row["point_breach"]),
        ]
        for row in shown
    ]
    if not cells:
        return ""
    head = "Most tokens of a step with B requests:"
    foot = ["  * extrapolation"] if any(row["extrapolation"] for row in shown) else []
    if any(row["is_contradicted"] for row in shown):
        foot.append(
            "  ! contradicted: more of the trace's steps near it are late than the promise can explain"
        )
    return "\n".join([head, text_table(titles, cells, right=set(titles) - {"limit"}), *foot])


def _request_text(request: RequestSLA) -> str:
    share = f"{100 * request.times[0].quantile:g}%"
    titles = [
        "ms",
        "median",
        share,
        "credible",
        "limit",
        "kept by",
        "credible ",
        "confidence",
        "",
    ]
    cells = [
        [
            row["key"].upper(),
            number(row["median_ms"], 4),
            number(row["quantile_ms"], 4),
            span(row["quantile_lower_ms"], row["quantile_upper_ms"], 4),
            NONE if row["limit_ms"] is None else f"{row['limit_ms']:g}",
            chance(row["probability"]),
            NONE if row["lower"] is None else chances(row["lower"], row["upper"]),
            sureness(row["confidence"]),
            {None: "", True: "yes", False: "NO"}[row["is_kept"]],
        ]
        for row in (time.to_dict() for time in request.times)
    ]
    foot = "  ".join(["", *(f"{time.key.upper()}: {time.name}" for time in request.times)])
    return f"{text_table(titles, cells, right=set(titles) - {'ms', ''})}\n{foot}"


def _seen(row: dict[str, Any]) -> str:
    """Write how many steps of the trace near a promise are late, at least, and of how many."""
    if row["near_steps"] is None:
        return NONE
    share = NONE if row["near_late"] is None else f"{100.0 * row['near_late']:.0f}%"
    return f"{'! ' if row['is_contradicted'] else ''}{share} of {row['near_steps']:,}"


def _count(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_on_hyphens=False)
