"""Writes the report of a plan into a folder."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from bayes_sched.whole_file import VERSION
from bayes_sched.planning.capacity_plan import CapacityPlan
from bayes_sched.planning.optimum import Optimum
from bayes_sched.report.files import ReportPaths, write_figures, write_json, write_tables
from bayes_sched.report.planning_figures import plan_figures
from bayes_sched.report.planning_tables import plan_frames, plan_pages
from bayes_sched.report.templates import date, render
from bayes_sched.results import PLAN


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
