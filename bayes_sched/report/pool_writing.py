"""Writes a pool into a folder: its population, its fits, and the report."""

from __future__ import annotations

from pathlib import Path

from bayes_sched.pooling import Pool
from bayes_sched.report.files import ReportPaths, write_figures, write_json, write_tables
from bayes_sched.report.pool_figures import pool_figures
from bayes_sched.report.pool_page import render_pool
from bayes_sched.report.pool_summary import PoolSummary, fits_by_name
from bayes_sched.report.pool_tables import file_tables
from bayes_sched.results import MEMBERS, POPULATION, POSTERIOR


def save_pool(pool: Pool, folder: str | Path) -> None:
    """Write ``population.nc`` and ``members/NAME/posterior.nc``, of the server not yet seen too.

    Parameters
    ----------
    pool : Pool
    folder : str or Path
        Made if it does not exist.

    Raises
    ------
    InputError
        The place cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pool.population.save(folder / POPULATION)
    for name, fit in fits_by_name(pool).items():
        place = folder / MEMBERS / name
        place.mkdir(parents=True, exist_ok=True)
        fit.save(place / POSTERIOR)


def write_pool(
    pool: Pool, found: PoolSummary, folder: str | Path, *, with_report: bool = True
) -> ReportPaths:
    """Write the report of a pool: numbers and tables, and a page with figures.

    ``report.html`` needs no other file. Beside it lie ``summary.json``, ``tables/*.csv`` and
    ``figures/*.png`` and ``*.svg``.

    Parameters
    ----------
    pool : Pool
    found : PoolSummary
        What :func:`~bayes_sched.report.pool_summary.pool_summary` said of it.
    folder : str or Path
        Made if it does not exist. Files of the same names are overwritten, others left alone.
    with_report : bool
        Whether to make the page and the figures.

    Returns
    -------
    ReportPaths
    """
    folder = Path(folder)
    tables = write_tables(file_tables(found), folder / "tables")
    page, numbers = folder / "report.html", folder / "summary.json"
    write_json(found.to_dict(), numbers)
    if not with_report:
        return ReportPaths(page, numbers, tables, {})
    figures = write_figures(pool_figures(pool, found), folder / "figures")
    shown = {figure: png for figure, (png, _) in figures.items()}
    page.write_text(render_pool(found, shown), encoding="utf-8")
    return ReportPaths(page, numbers, tables, {figure.name: paths for figure, paths in figures.items()})
