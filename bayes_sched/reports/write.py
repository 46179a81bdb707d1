"""A document in a folder: the page, the same numbers as JSON and CSV, the figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayes_sched.reports import plots
from bayes_sched.reports.document import Document
from bayes_sched.reports.html import html


@dataclass(frozen=True, slots=True)
class ReportPaths:
    """The files of a report."""

    page: Path  # ``report.html``
    summary: Path  # the same numbers as JSON
    tables: Mapping[str, Path]  # ``tables/NAME.csv`` by name
    figures: Mapping[str, tuple[Path, ...]]
    """``figures/NAME.png``, and ``figures/NAME.svg`` where that was wanted, by name."""


def write_report(
    document: Document, folder: str | Path, *, with_page: bool = True, with_svg: bool = False
) -> ReportPaths:
    """Write a document into a folder.

    ``report.html`` needs no other file. Beside it lie the numbers as JSON, ``tables/*.csv`` with full
    precision, and the figures, ``figures/*.png``.

    Parameters
    ----------
    document : Document
    folder : str or Path
        Made if it does not exist. Files of the same names are overwritten, others left alone.
    with_page : bool
        Whether to make the page and the figures.
    with_svg : bool
        Whether to write the figures as ``figures/*.svg``, too.
    """
    folder = Path(folder)
    for part in ("tables", "figures")[: 1 + with_page]:
        (folder / part).mkdir(parents=True, exist_ok=True)
    tables = {name: folder / "tables" / f"{name}.csv" for name in document.frames}
    for name, frame in document.frames.items():
        frame.to_csv(tables[name], index=False, lineterminator="\n")
    figures = {
        figure.name: plots.style.save_figure(
            figure.draw(), folder / "figures", figure.name, with_svg=with_svg
        )
        for figure in (document.figures if with_page else ())
    }
    page = folder / "report.html"
    if with_page:
        page.write_text(html(document, figures), encoding="utf-8")
    write_json(document.numbers, folder / document.json_name)
    return ReportPaths(page, folder / document.json_name, tables, figures)


def write_json(numbers: Mapping[str, Any], path: Path) -> None:
    """Write plain values as strict JSON."""
    text = json.dumps(numbers, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
