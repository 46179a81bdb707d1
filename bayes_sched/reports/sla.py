"""Writes the report of a promise into a folder."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.errors import InputError
from bayes_sched.files import SLA, VERSION
from bayes_sched.format import NONE, number, percent, records, span
from bayes_sched.region import TOLERANCE
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
from bayes_sched.reports.plots.sla import decode_promise, promise_map, request_survival
from bayes_sched.reports.terminal import WIDTH, text_table
from bayes_sched.sla.limits import tried_numbers
from bayes_sched.sla.request import RequestSLA
from bayes_sched.sla.risk import risk_map, step_risk
from bayes_sched.sla.steps import StepSLA
from bayes_sched.sla.words import chance, chances, sureness
from bayes_sched.steps import steps_arrays

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


def decode_risk(steps: StepSLA) -> xr.Dataset:
    """Return risk and confidence of decode-only batches over the range of the data, dims (step,)."""
    largest = math.floor(math.exp(float(steps.fit.region.corners[:, 0].max()) + TOLERANCE))
    numbers = tried_numbers(1, max(largest, steps.decode_only.last or 1))
    batches = steps_arrays(numbers, numbers)
    risk = step_risk(steps.fit, batches, steps.objective, probability=steps.probability)
    return risk.assign(batch_size=("step", numbers))


def sla_figures(
    steps: StepSLA | None, request: RequestSLA | None, *, risk: xr.Dataset | None, decode: xr.Dataset | None
) -> tuple[ReportFigure, ...]:
    """Return the figures in the order of the page; none is drawn yet.

    Parameters
    ----------
    steps : StepSLA or None
    request : RequestSLA or None
    risk : Dataset or None
        :func:`bayes_sched.sla.risk.risk_map`, where there are steps.
    decode : Dataset or None
        :func:`decode_risk`, where there are steps.
    """
    figures: list[ReportFigure] = []
    if steps is not None and risk is not None and decode is not None:
        figures += [_map(steps, risk), _decode(steps, decode)]
    if request is not None:
        figures.append(_requests(request))
    return tuple(figures)


def _map(steps: StepSLA, risk: xr.Dataset) -> ReportFigure:
    return ReportFigure(
        "promise_map",
        "Where the limit is kept",
        "Colours are the probability that a step keeps the limit, noise and parameters together. Stay below "
        "the solid line. Between it and the dashed one lie the steps that a single fitted curve allows and "
        "that are late too often. Hatched parts are extrapolation; a step cannot hold fewer tokens "
        "than requests.",
        lambda: promise_map(steps, risk),
    )


def _decode(steps: StepSLA, decode: xr.Dataset) -> ReportFigure:
    band = f"{100 * steps.probability:g}%"
    return ReportFigure(
        "decode_promise",
        "Risk and confidence",
        "Above: the share of decode-only steps that take longer than the limit, on a logarithmic scale; the "
        f"band ({band} credible) is what we do not know of the server. Below: how sure one may be that no "
        "more than the allowed share is late. More data narrow the band; they do not lower the curve.",
        lambda: decode_promise(steps, decode),
    )


def _requests(request: RequestSLA) -> ReportFigure:
    return ReportFigure(
        "request_survival",
        "How long requests take",
        "The share of the requests that take longer than a time, on a logarithmic scale; the band is what we "
        "do not know of the server. Steps share its parameters; their noise is taken as independent.",
        lambda: request_survival(request),
    )


def risk_table(risk: xr.Dataset) -> xr.Dataset:
    """Return the map as it is written: possible steps only, dims (step,)."""
    flat = risk.stack(step=("batch_size", "total_tokens"))  # noqa: PD013, it is an xarray object
    return flat.isel(step=np.flatnonzero(flat["possible"].to_numpy())).drop_vars("possible")


def write_sla(
    steps: StepSLA | None,
    request: RequestSLA | None,
    folder: str | Path,
    *,
    numbers: Mapping[str, Any],
    command: str = "",
) -> ReportPaths:
    """Write the report of a promise.

    ``report.html`` needs no other file. Beside it lie ``sla.json``, ``tables/*.csv`` with full precision, and
    the figures, ``figures/*.png`` and ``*.svg``.

    Parameters
    ----------
    steps : StepSLA or None
    request : RequestSLA or None
        One of them at least.
    folder : str or Path
        Made if it does not exist. Files of the same names are overwritten, others left alone.
    numbers : mapping
        What ``sla.json`` holds.
    command : str
        What it was made by, to be shown on the page.

    Returns
    -------
    ReportPaths

    Raises
    ------
    InputError
        There is neither.
    """
    if steps is None and request is None:
        raise InputError("there is no promise to report on")
    folder = Path(folder)
    risk = None if steps is None else risk_map(steps.fit, steps.objective, probability=steps.probability)
    decode = None if steps is None else decode_risk(steps)
    frames: dict[str, pd.DataFrame] = {}
    if steps is not None and risk is not None and decode is not None:
        frames["frontier"] = steps.frontier
        frames["probability_map"] = risk_table(risk).reset_index("step").to_dataframe().reset_index(drop=True)
        frames["decode_only"] = decode.to_dataframe().reset_index(drop=True)
    if request is not None:
        frames["request_times"] = request.table
        frames["request_steps"] = request.step_table
    tables = write_tables(frames, folder / "tables")
    figures = write_figures(sla_figures(steps, request, risk=risk, decode=decode), folder / "figures")
    page = folder / "report.html"
    shown = {figure: png for figure, (png, _) in figures.items()}
    page.write_text(_page(steps, request, shown, command=command, tables=list(tables)), encoding="utf-8")
    write_json({**numbers, "command": command}, folder / SLA)
    return ReportPaths(page, folder / SLA, tables, {figure.name: paths for figure, paths in figures.items()})


def _page(
    steps: StepSLA | None,
    request: RequestSLA | None,
    figures: Mapping[ReportFigure, Path],
    *,
    command: str,
    tables: Sequence[str],
) -> str:
    answers = [answer for answer in (steps, request) if answer is not None]
    fit = answers[0].fit
    reasons = dict.fromkeys(reason for answer in answers for reason in answer.refusals)
    values = {
        "metadata": fit.metadata,
        "region": fit.region.text,
        "warnings": fit.warnings,
        "is_promised": all(answer.is_promised for answer in answers),
        "refusals": list(reasons),
        "steps": steps,
        "request": request,
        "limits": None if steps is None else limit_page(steps),
        "frontier": None if steps is None else frontier_page(steps),
        "times": None if request is None else request_page(request),
        "request_steps": None if request is None else request_step_page(request),
        "command": command,
        "version": VERSION,
        "made_at": date(datetime.now(UTC).isoformat()),
        "table_names": tables,
    }
    return render("sla.html.j2", values, figures)
