"""Renders the page of a trace's analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bayes_sched.whole_file import VERSION
from bayes_sched.analysis import TraceAnalysis
from bayes_sched.report.analysis_tables import finding_pages, regime_page, slowest_page, statistics_page
from bayes_sched.report.files import ReportFigure
from bayes_sched.report.page_table import mapping_page
from bayes_sched.report.templates import date, render


def render_analysis(
    analysis: TraceAnalysis,
    figures: Mapping[ReportFigure, Path],
    *,
    command: str = "",
    tables: Sequence[str] = (),
) -> str:
    """Return the page as one self-contained HTML document.

    Parameters
    ----------
    analysis : TraceAnalysis
    figures : mapping of ReportFigure to Path
        Each figure and its PNG file, in the order of the page.
    command : str
        What it was made by; may be empty.
    tables : sequence of str
        Names of the CSV files that lie beside the page.
    """
    values = {
        "analysis": analysis,
        "command": command,
        "version": VERSION,
        "made_at": date(datetime.now(UTC).isoformat()),
        "statistics": statistics_page(analysis),
        "regimes": regime_page(analysis),
        "slowest": slowest_page(analysis),
        "findings": finding_pages(analysis),
        "bad_lines": mapping_page(dict(analysis.bad_lines.counts), ("reason", "lines")),
        "table_names": tables,
    }
    return render("analysis.html.j2", values, figures)
