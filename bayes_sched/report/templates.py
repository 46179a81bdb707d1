"""Renders a template to a page that needs no other file; everything that comes from data is escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bayes_sched.report.files import ReportFigure


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
        loader=PackageLoader("bayes_sched", "report"),
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
