"""Writes a report into a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bayes_sched.errors import InputError
from bayes_sched.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.plots.style import save_figure
from bayes_sched.report.figures import ReportFigure, report_figures
from bayes_sched.report.page import render_page
from bayes_sched.report.summary import Summary, summary
from bayes_sched.report.tables import latency_grid


@dataclass(frozen=True, slots=True)
class ReportPaths:
    """The files of a report.

    Attributes
    ----------
    page : Path
        ``report.html``.
    summary : Path
        ``summary.json``; :meth:`Summary.to_dict` says what it holds.
    tables : Mapping of str to Path
        ``tables/NAME.csv`` by name.
    figures : Mapping of str to tuple of Path
        ``figures/NAME.png`` and ``figures/NAME.svg`` by name.
    """

    page: Path
    summary: Path
    tables: Mapping[str, Path]
    figures: Mapping[str, tuple[Path, Path]]


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
        The cleaned steps in the order of the trace: ``batch_size``, ``total_tokens``, ``latency_ms`` (ms).
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
        There are no steps, or the probability is not between 0 and 1.
    """
    if steps.empty:
        raise InputError("there are no steps to report on")
    folder = Path(folder)
    found = summary(fit, steps, probability=probability)
    tables = _write_tables(fit, steps, found, folder / "tables")
    figures = _write_figures(report_figures(fit, steps, found), folder / "figures")
    page, numbers = folder / "report.html", folder / "summary.json"
    page.write_text(render_page(found, {f: png for f, (png, _) in figures.items()}), encoding="utf-8")
    text = json.dumps(found.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    numbers.write_text(text + "\n", encoding="utf-8")
    return ReportPaths(page, numbers, tables, {figure.name: paths for figure, paths in figures.items()})


def _write_tables(fit: FittedModel, steps: pd.DataFrame, found: Summary, folder: Path) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "parameters": found.parameters,
        "convergence": found.convergence,
        "typical_steps": found.table,
        "costs": found.costs,
        "coverage": found.coverage,
        "latency_grid": latency_grid(fit, steps, probability=found.probability),
    }
    paths = {name: folder / f"{name}.csv" for name in tables}
    for name, table in tables.items():
        table.to_csv(paths[name], index=False, lineterminator="\n")
    return paths


def _write_figures(figures: tuple[ReportFigure, ...], folder: Path) -> dict[ReportFigure, tuple[Path, Path]]:
    folder.mkdir(parents=True, exist_ok=True)
    return {figure: save_figure(figure.draw(), folder, figure.name) for figure in figures}
