"""Writes the report of a promise into a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from bayes_sched.whole_file import VERSION
from bayes_sched.errors import InputError
from bayes_sched.report.files import ReportFigure, ReportPaths, write_figures, write_json, write_tables
from bayes_sched.report.sla_figures import decode_risk, risk_table, sla_figures
from bayes_sched.report.sla_tables import frontier_page, limit_page, request_page, request_step_page
from bayes_sched.report.templates import date, render
from bayes_sched.results import SLA
from bayes_sched.sla import RequestSLA, StepSLA
from bayes_sched.sla.risk import risk_map


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
