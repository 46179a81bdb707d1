"""The files of a report, whatever it is about."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from bayes_sched.format import NONE, number
from bayes_sched.reports.plots.style import save_figure


@dataclass(frozen=True, slots=True)
class PageTable:
    """A table as a page shows it.

    Attributes
    ----------
    columns : tuple of str
    rows : tuple of tuple of str
        Formatted cells.
    is_text : tuple of bool
        Which columns hold words; the others are aligned as numbers.
    failed : tuple of bool
        Which rows to mark.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    is_text: tuple[bool, ...]
    failed: tuple[bool, ...]


def page_table(rows: list[dict[str, Any]], *, failed: list[bool] | None = None) -> PageTable:
    """Format rows: numbers with three digits, counts in full, words as they stand.

    Parameters
    ----------
    rows : list of dict
        The same keys, the column titles, in each.
    failed : list of bool, optional
        Rows to mark.
    """
    columns = tuple(rows[0]) if rows else ()
    return PageTable(
        columns,
        tuple(tuple(_cell(row[column]) for column in columns) for row in rows),
        tuple(isinstance(rows[0][column], str) and not _is_number(rows[0][column]) for column in columns),
        tuple(failed or [False] * len(rows)),
    )


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text[:1] in {NONE, "-"}


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    return number(value)


def mapping_page(mapping: dict[str, Any], titles: tuple[str, str]) -> PageTable:
    """Return a table of names and values."""
    return page_table([{titles[0]: str(key), titles[1]: value} for key, value in mapping.items()])


def render(template: str, values: Mapping[str, Any], figures: Mapping[ReportFigure, Path]) -> str:
    """Return a template as one self-contained HTML document.

    Parameters
    ----------
    template : str
        File name in this package.
    values : mapping of str to object
        What the template asks for besides ``figures``.
    figures : mapping of ReportFigure to Path
        Each figure and its PNG file, in the order of the page.
    """
    environment = Environment(
        loader=PackageLoader("bayes_sched", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [
        {"name": f.name, "heading": f.heading, "caption": f.caption, "uri": _data_uri(path)}
        for f, path in figures.items()
    ]
    return environment.get_template(template).render(**values, figures=shown)


def date(iso: str) -> str:
    """Write an ISO 8601 time as a person reads it; what is none stays as it is."""
    try:
        return f"{datetime.fromisoformat(iso).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return iso


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


@dataclass(frozen=True, slots=True)
class ReportFigure:
    """A figure of a report: its file name, heading, caption, and how it is drawn."""

    name: str
    heading: str
    caption: str
    draw: Callable[[], Figure]


@dataclass(frozen=True, slots=True)
class ReportPaths:
    """The files of a report.

    Attributes
    ----------
    page : Path
        ``report.html``.
    summary : Path
        The same numbers as JSON: ``summary.json`` of a fit, ``analysis.json`` of a trace.
    tables : Mapping of str to Path
        ``tables/NAME.csv`` by name.
    figures : Mapping of str to tuple of Path
        ``figures/NAME.png`` and ``figures/NAME.svg`` by name.
    """

    page: Path
    summary: Path
    tables: Mapping[str, Path]
    figures: Mapping[str, tuple[Path, Path]]


def write_tables(tables: Mapping[str, pd.DataFrame], folder: Path) -> dict[str, Path]:
    """Write ``NAME.csv`` for each table into a folder, which is made if need be; return the paths by name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.csv" for name in tables}
    for name, table in tables.items():
        table.to_csv(paths[name], index=False, lineterminator="\n")
    return paths


def write_figures(figures: Sequence[ReportFigure], folder: Path) -> dict[ReportFigure, tuple[Path, Path]]:
    """Draw each figure into ``NAME.png`` and ``NAME.svg`` of a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    return {figure: save_figure(figure.draw(), folder, figure.name) for figure in figures}


def write_json(numbers: Mapping[str, Any], path: Path) -> None:
    """Write plain values as strict JSON."""
    text = json.dumps(numbers, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
