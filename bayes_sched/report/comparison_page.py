"""Renders the page of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from bayes_sched.whole_file import VERSION
from bayes_sched.comparison import Comparison
from bayes_sched.report import comparison_tables as tables
from bayes_sched.report.files import ReportFigure
from bayes_sched.report.templates import date, render


def render_comparison(
    comparison: Comparison, figures: Mapping[ReportFigure, Path], *, command: str = ""
) -> str:
    """Return the page as one self-contained HTML document.

    Parameters
    ----------
    comparison : Comparison
    figures : mapping of ReportFigure to Path
        Each figure and its PNG file, in the order of the page.
    command : str
        What it was made by; may be empty.
    """
    values = {
        "comparison": comparison,
        "command": command,
        "version": VERSION,
        "made_at": date(datetime.now(UTC).isoformat()),
        "unconverged": [m.label for m in comparison.members if not m.fit.converged],
        "has_prices": any(m.price_per_hour is not None for m in comparison.members),
        "table_names": list(tables.file_tables(comparison)),
        "tables": {
            "fits": tables.fit_page(comparison),
            "differences": tables.difference_page(comparison),
            "shares": tables.share_page(comparison),
            "steps": tables.step_page(comparison),
            "wanted": tables.wanted_page(comparison),
            "equivalents": tables.equivalent_page(comparison),
            "throughput": tables.throughput_page(comparison),
            "money": tables.money_page(comparison),
            "parameters": tables.parameter_page(comparison),
        },
    }
    return render("comparison.html.j2", values, figures)
