"""The files of a report, whatever it is about."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bayes_sched.plots.style import save_figure


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
