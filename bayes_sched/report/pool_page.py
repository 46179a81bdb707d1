"""Renders the page of a pool."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bayes_sched.whole_file import VERSION
from bayes_sched.numbers import number
from bayes_sched.pooling.hierarchy import BETWEEN, WITHIN
from bayes_sched.report import pool_tables as tables
from bayes_sched.report.files import ReportFigure
from bayes_sched.report.pool_summary import PoolSummary
from bayes_sched.report.templates import date, render


def render_pool(found: PoolSummary, figures: Mapping[ReportFigure, Path]) -> str:
    """Return the page as one self-contained HTML document.

    Parameters
    ----------
    found : PoolSummary
    figures : mapping of ReportFigure to Path
        Each figure and its PNG file, in the order of the page.
    """
    values = {
        "found": found,
        "population": found.population,
        "gate": found.gate,
        "efficiency": number(found.gate["ess_per_1000_gradients"]),
        "priors": {"between": BETWEEN, "within": WITHIN},
        "version": VERSION,
        "made_at": date(found.population.created_at),
        "table_names": list(tables.file_tables(found)),
        "tables": {
            "spread": tables.spread_page(found),
            "members": tables.member_page(found),
            "changes": tables.change_page(found),
            "steps": tables.step_page(found),
        },
    }
    return render("pool.html.j2", values, figures)
