"""Writes a comparison into a folder."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from bayes_sched.comparison import Comparison
from bayes_sched.report.comparison_figures import comparison_figures
from bayes_sched.report.comparison_page import render_comparison
from bayes_sched.report.comparison_tables import file_tables
from bayes_sched.report.files import ReportPaths, write_figures, write_json, write_tables
from bayes_sched.results import COMPARISON


def write_comparison(
    comparison: Comparison, folder: str | Path, *, command: str = "", with_report: bool = True
) -> ReportPaths:
    """Write a comparison: numbers, tables and maps, and a page with figures.

    ``report.html`` needs no other file. Beside it lie ``summary.json``, ``tables/*.csv``, ``comparison.nc``
    (the maps, dims gpu, pair, batch_size, total_tokens) and ``figures/*.png`` and ``*.svg``.

    Parameters
    ----------
    comparison : Comparison
    folder : str or Path
        Made if it does not exist. Files of the same names are overwritten, others left alone.
    command : str
        What it was made by, to be shown on the page.
    with_report : bool
        Whether to make the page and the figures.

    Returns
    -------
    ReportPaths
    """
    folder = Path(folder)
    tables = write_tables(file_tables(comparison), folder / "tables")
    page, numbers = folder / "report.html", folder / "summary.json"
    write_json({**comparison.to_dict(), "command": command}, numbers)
    _maps(comparison).to_netcdf(folder / COMPARISON, engine="h5netcdf")
    if not with_report:
        return ReportPaths(page, numbers, tables, {})
    figures = write_figures(comparison_figures(comparison), folder / "figures")
    shown = {figure: png for figure, (png, _) in figures.items()}
    page.write_text(render_comparison(comparison, shown, command=command), encoding="utf-8")
    return ReportPaths(page, numbers, tables, {figure.name: paths for figure, paths in figures.items()})


def _maps(comparison: Comparison) -> xr.Dataset:
    """Return the maps and the grid with texts in a form that netCDF knows, and what they mean."""
    maps = comparison.maps.merge(comparison.grid)
    texts = {name: variable for name, variable in maps.variables.items() if variable.dtype.kind in "OUT"}
    plain = maps.assign_coords(
        {n: (v.dims, v.to_numpy().astype(object)) for n, v in texts.items() if n in maps.coords}
    ).assign({n: (v.dims, v.to_numpy().astype(object)) for n, v in texts.items() if n in maps.data_vars})
    return plain.assign_attrs(
        {"rope": comparison.rope, "probability": comparison.probability, "rule": comparison.rule}
    )
