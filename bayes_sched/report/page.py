"""Renders the page of a fit's report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bayes_sched.report.files import ReportFigure
from bayes_sched.report.fit_summary import Summary
from bayes_sched.report.page_table import mapping_page
from bayes_sched.report.tables import (
    cleaning_page,
    convergence_page,
    cost_page,
    effect_page,
    parameter_page,
    prior_page,
    step_page,
)
from bayes_sched.report.templates import date, render


def render_page(summary: Summary, figures: Mapping[ReportFigure, Path]) -> str:
    """Return the page as one self-contained HTML document.

    Parameters
    ----------
    summary : Summary
    figures : mapping of ReportFigure to Path
        Each figure and its PNG file, in the order of the page.
    """
    metadata = summary.metadata
    values = {
        "summary": summary,
        "metadata": metadata,
        "made_at": date(metadata.created_at),
        "tables": {
            "steps": step_page(summary),
            "costs": cost_page(summary),
            "parameters": parameter_page(summary, combinations=False),
            "combinations": parameter_page(summary, combinations=True),
            "effects": effect_page(summary),
            "convergence": convergence_page(summary),
            "cleaning": cleaning_page(summary),
            "priors": prior_page(summary),
            "bad_lines": mapping_page(dict(metadata.bad_lines), ("reason", "lines")),
            "sampler": mapping_page(dict(metadata.sampler), ("setting", "value")),
            "timings": mapping_page(dict(metadata.timings_s), ("stage", "seconds")),
            "versions": mapping_page(dict(metadata.package_versions), ("package", "version")),
        },
    }
    return render("fit.html.j2", values, figures)
