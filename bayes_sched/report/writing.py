"""Writes the report of a fit into a folder."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bayes_sched.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.report.figures import report_figures
from bayes_sched.report.files import ReportPaths, write_figures, write_json, write_tables
from bayes_sched.report.fit_summary import Summary, reported_steps, summary
from bayes_sched.report.page import render_page
from bayes_sched.report.tables import latency_grid


def write_report(
    fit: FittedModel,
    steps: pd.DataFrame,
    folder: str | Path,
    *,
    probability: float = DEFAULT_PROBABILITY,
) -> ReportPaths:
    """Write the report of a fit.

    ``report.html`` needs no other file. Beside it lie the same numbers with full precision, ``summary.json``
    and ``tables/*.csv``, and the figures, ``figures/*.png`` and ``*.svg``.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame
        The cleaned steps in the order of the trace: ``latency_ms`` (ms) and the model's columns; steps that
        lack one of them are left out. Further columns tell whether a richer model would predict better.
    folder : str or Path
        Made if it does not exist. Files of the same names are overwritten, others left alone.
    probability : float
        Of every interval and band, between 0 and 1.

    Returns
    -------
    ReportPaths

    Raises
    ------
    InputError
        There are no steps, they lack a column of the model, or the probability is not between 0 and 1.
    """
    steps = reported_steps(fit, steps)
    folder = Path(folder)
    found = summary(fit, steps, probability=probability)
    tables = write_tables(_tables(fit, steps, found), folder / "tables")
    figures = write_figures(report_figures(fit, steps, found), folder / "figures")
    page, numbers = folder / "report.html", folder / "summary.json"
    page.write_text(render_page(found, {f: png for f, (png, _) in figures.items()}), encoding="utf-8")
    write_json(found.to_dict(), numbers)
    return ReportPaths(page, numbers, tables, {figure.name: paths for figure, paths in figures.items()})


def _tables(fit: FittedModel, steps: pd.DataFrame, found: Summary) -> dict[str, pd.DataFrame]:
    tables = {
        "parameters": found.parameters,
        "convergence": found.convergence,
        "typical_steps": found.table,
        "costs": found.costs,
        "coverage": found.coverage,
        "latency_grid": latency_grid(fit, steps, probability=found.probability),
    }
    return tables if found.effects.empty else {**tables, "effects": found.effects}
