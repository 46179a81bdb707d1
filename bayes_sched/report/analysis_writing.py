"""Writes the report of a trace's analysis into a folder."""

from __future__ import annotations

from pathlib import Path

from bayes_sched.analysis import TraceAnalysis
from bayes_sched.report.analysis_figures import analysis_figures
from bayes_sched.report.analysis_page import render_analysis
from bayes_sched.report.analysis_tables import findings_table, slow_schedules
from bayes_sched.report.files import ReportPaths, write_figures, write_json, write_tables
from bayes_sched.results import ANALYSIS


def write_analysis(analysis: TraceAnalysis, folder: str | Path, *, command: str = "") -> ReportPaths:
    """Write the report of a trace's analysis.

    ``report.html`` needs no other file. Beside it lie the same numbers with full precision, ``analysis.json``
    and ``tables/*.csv``, and the figures, ``figures/*.png`` and ``*.svg``.

    Parameters
    ----------
    analysis : TraceAnalysis
    folder : str or Path
        Made if it does not exist. Files of the same names are overwritten, others left alone.
    command : str
        What it was made by, to be shown on the page.

    Returns
    -------
    ReportPaths
    """
    folder = Path(folder)
    tables = write_tables(
        {
            "statistics": analysis.table,
            "regimes": analysis.regimes,
            "slowest": analysis.slowest,
            "findings": findings_table(analysis),
            "slow_schedules": slow_schedules(analysis),
            "over_time": analysis.over_time,
        },
        folder / "tables",
    )
    figures = write_figures(analysis_figures(analysis), folder / "figures")
    page, numbers = folder / "report.html", folder / ANALYSIS
    shown = {figure: png for figure, (png, _) in figures.items()}
    html = render_analysis(analysis, shown, command=command, tables=list(tables))
    page.write_text(html, encoding="utf-8")
    write_json({**analysis.to_dict(), "command": command}, numbers)
    return ReportPaths(page, numbers, tables, {figure.name: paths for figure, paths in figures.items()})
